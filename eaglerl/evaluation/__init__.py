"""Measuring and comparing ways to decode."""
