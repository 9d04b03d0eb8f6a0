"""Cycles on a device whose parts are captured as CUDA graphs."""
