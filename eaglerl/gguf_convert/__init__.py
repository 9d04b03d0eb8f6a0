"""Convert a language model stored as GGUF into a folder of transformers.

transformers reads GGUF itself, but it drops RoPE's scaling, takes some sizes from an architecture's
defaults, and refuses to save the model that it loaded. Here config and weights are read from the
file, and transformers converts the tokenizer.
"""

from eaglerl.gguf_convert.convert import GGUF_NAME, add_float32, convert_gguf
from eaglerl.gguf_convert.float32_weights import INDEX_NAME, WEIGHTS_NAME, Progress
from eaglerl.gguf_convert.tensor_names import ARCHITECTURES, weight_name

__all__ = [
    "ARCHITECTURES",
    "GGUF_NAME",
    "INDEX_NAME",
    "WEIGHTS_NAME",
    "Progress",
    "add_float32",
    "convert_gguf",
    "weight_name",
]
