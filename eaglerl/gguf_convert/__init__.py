"""Convert a language model stored as GGUF into a transformers folder in fp32.

transformers reads GGUF itself, but drops RoPE's scaling, takes some architectures' sizes from their
defaults, and refuses to save what it has loaded. Here config and weights come from the file; the
tokenizer is left to transformers.
"""

from eaglerl.gguf_convert.convert import Progress, convert_gguf
from eaglerl.gguf_convert.tensor_names import ARCHITECTURES, weight_name

__all__ = ["ARCHITECTURES", "Progress", "convert_gguf", "weight_name"]
