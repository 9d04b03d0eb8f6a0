"""Triton kernels, installed as the package ``eaglerl.kernels``."""
