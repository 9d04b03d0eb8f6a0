"""EAGLE-3 speculative decoding whose draft tree is chosen by a learned policy."""

__version__ = "0.1.0"
