"""Fixtures that every test may use.

They import what they need themselves: the process of a parallel run that hands the tests out reads
this file as well, and would take two seconds of torch's imports and six of transformers' for it.
"""

import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path

# Before anything imports huggingface_hub, which reads it once: tests never ask the network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before anything loads OpenMP: side by side, processes whose threads wait by spinning would take
# the cores from each other, and every test would take ten times as long.
if _workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(_workers))))

from types import SimpleNamespace

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Have the garbage collector leave out what is imported here, and stays to the end.

    Looking through these million objects again and again takes 2 % of the time of all tests.
    """
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


def pytest_sessionfinish() -> None:
    """Let what was left out be collected at the end, or native libraries report it as leaked."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Start every test from the same random state, whichever tests ran before."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """Folder of SmolLM2-135M-Instruct with its GGUF file, converted on first use."""
    from eaglerl.prepare import prepare_model

    return prepare_model()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that all processes of a parallel run share, for what one of them makes for all."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def tiny_folders(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Folders of a small random target with SmolLM2's tokenizer, and of a random head for it."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from eaglerl.eagle3 import Eagle3Config, Eagle3DraftHead

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 8192,
    }
    # No end-of-sequence token: the length of what is generated is known in advance.
    config = LlamaConfig(**shape, num_hidden_layers=8, eos_token_id=None, bos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(root / "target")
    tokenizer.save_pretrained(root / "target")
    head = Eagle3DraftHead(Eagle3Config(**shape, draft_vocab_size=512))
    head.set_draft_vocabulary(torch.arange(512))
    head.save_pretrained(root / "head")
    return SimpleNamespace(
        target=root / "target",
        head=root / "head",
        arguments=["--model", str(root / "target"), "--draft", str(root / "head")],
    )
