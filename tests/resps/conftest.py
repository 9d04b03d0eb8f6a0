"""The tiny decoder and the policies of the comparisons serve these tests, too."""

from ..evaluation.conftest import decoder, policies, tiny

__all__ = ["decoder", "policies", "tiny"]
