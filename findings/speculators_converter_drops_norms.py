"""speculators 0.9.0: its EAGLE-3 converter drops fc_norm's weights and resets RoPE's base.

A head with ``fc_norm: true`` and three norm weights, whose config gives RoPE as transformers 5
writes it, is converted. Expected: the converted head has the norms and the base. Seen:
``config.json`` still says ``fc_norm: true``, ``model.safetensors`` has no ``fc_norm`` tensor, and
``rope_theta`` is 10,000 instead of 500,000.

Run with an interpreter that has torch and transformers; it was seen with transformers 5.24.0
(speculators declares 5.19 at most). The rest is installed into a temporary folder. Ends with an
error if any of this is no longer seen.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = [
    "speculators==0.9.0",
    "hs-connectors==0.9.0",
    "loguru==0.7.3",
    "pydantic-settings==2.16.3",
    "python-dotenv==1.2.4",
    "datasets==4.4.1",
]
# What these import, at any version.
IMPORTED = [
    "pyarrow",
    "pandas",
    "python-dateutil",
    "six",
    "pytz",
    "tzdata",
    "dill",
    "multiprocess",
    "xxhash",
    "aiohttp",
    "aiosignal",
    "frozenlist",
    "multidict",
    "yarl",
    "propcache",
    "attrs",
    "aiohappyeyeballs",
    "requests",
    "urllib3",
    "idna",
    "certifi",
    "charset_normalizer",
    "openai",
    "jiter",
    "distro",
    "anyio",
    "sniffio",
]
HIDDEN, VOCAB, DRAFT_VOCAB, BASE = 32, 60, 24, 500_000.0

CONVERT = """
import sys
from speculators.convert.eagle.eagle3_converter import Eagle3Converter
head, output, target = sys.argv[1:]
Eagle3Converter().convert(head, output, target, validate=False)
"""


def write_head(folder: Path) -> None:
    """A valid EAGLE-3 head of one layer, 32 wide, with three norms before fc."""
    import torch
    from safetensors.torch import save_file

    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB,
        "draft_vocab_size": DRAFT_VOCAB,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": BASE},
        "fc_norm": True,
        "torch_dtype": "float32",
    }
    layer = {
        "self_attn.q_proj": (32, 64),
        "self_attn.k_proj": (16, 64),
        "self_attn.v_proj": (16, 64),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (48, 32),
        "mlp.up_proj": (48, 32),
        "mlp.down_proj": (32, 48),
        "hidden_norm": (32,),
        "input_layernorm": (32,),
        "post_attention_layernorm": (32,),
    }
    shapes = {f"midlayer.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {"fc.weight": (32, 96), "norm.weight": (32,), "lm_head.weight": (DRAFT_VOCAB, 32)}
    shapes |= {f"fc_norm.{i}.weight": (32,) for i in range(3)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    tensors["d2t"] = torch.arange(DRAFT_VOCAB)
    tensors["t2d"] = torch.arange(VOCAB) % 2 == 0
    tensors["t2d"][2 * DRAFT_VOCAB :] = False
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


def write_target(folder: Path) -> None:
    """The config of the target, which the converter reads sizes from."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))


def main() -> int:
    import transformers
    from safetensors import safe_open

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
        packages = root / "packages"
        subprocess.run([*install, str(packages), *PACKAGES, *IMPORTED], check=True)
        write_head(root / "head")
        write_target(root / "target")
        arguments = [str(root / part) for part in ("head", "converted", "target")]
        environment = os.environ | {"PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, "-c", CONVERT, *arguments], check=True, env=environment)
        converted = json.loads((root / "converted" / "config.json").read_text())
        with safe_open(root / "converted" / "model.safetensors", "pt") as file:
            norms = [key for key in file.keys() if "fc_norm" in key]  # noqa: SIM118
    rope = converted["transformer_layer_config"]["rope_parameters"]
    print(f"transformers {transformers.__version__}")  # noqa: T201
    print(f"fc_norm in the config: {converted['fc_norm']}")  # noqa: T201
    print(f"fc_norm tensors: {norms}, of 3")  # noqa: T201
    print(f"rope_theta: {rope['rope_theta']}, of {BASE}")  # noqa: T201
    seen = converted["fc_norm"] and not norms and rope["rope_theta"] == 10_000.0
    print("as described" if seen else "this has changed")  # noqa: T201
    return 0 if seen else 1


if __name__ == "__main__":
    sys.exit(main())
