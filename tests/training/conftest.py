"""A tiny target on disk and data for it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from transformers import LlamaConfig, LlamaForCausalLM

from .tiny import VOCAB, WIDTH


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory) -> Path:
    """Folder of a random Llama with 7 layers, the fewest for which EAGLE's layers are distinct."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    path = tmp_path_factory.mktemp("target")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def tiny_data(tmp_path) -> Path:
    """JSONL file of 60 rows, some of whose prompts are held out."""
    generator = torch.Generator().manual_seed(1)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(VOCAB, (length,), generator=generator).tolist()

    path = tmp_path / "rows.jsonl"
    rows = [{"p": ids(2, 8), "r": ids(1, 14)} for _ in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, which wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _undrawn_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning curves are made, but an empty file is saved: drawing takes most of a run's time.

    A test that looks at the picture asks for `drawn_curves`.
    """
    if "drawn_curves" not in request.fixturenames:
        monkeypatch.setattr(Figure, "savefig", lambda _, path, **options: Path(path).touch())


@pytest.fixture
def drawn_curves() -> None:
    """Have learning curves drawn."""
