"""Convert a language model stored as GGUF into a transformers folder in fp32.

transformers reads GGUF itself, but it drops RoPE's scaling, takes some sizes from an architecture's
defaults, and refuses to save the model that it loaded. Here config and weights are read from the
file, and transformers converts the tokenizer.
"""

from eaglerl.gguf_convert.convert import Progress, convert_gguf
from eaglerl.gguf_convert.tensor_names import ARCHITECTURES, weight_name

__all__ = ["ARCHITECTURES", "Progress", "convert_gguf", "weight_name"]
