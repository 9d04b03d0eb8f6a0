"""Time of a draft pass over that of its packed matrix products.

    python benchmarks/bench_draft_pass.py [--context 512] [--threads N] [--cold]

One row per number of rows K and dtype: median of a pass (`PackedDraft.expand`), median of its five
products alone, and their ratio, for a head of SmolLM2-135M's sizes with random weights. Passes and
products alternate, so that other load on the machine affects both.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from eaglerl._ext import build_info
from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.packed_draft import PackedDraft
from eaglerl.eagle3.layers.linear import is_supported

ROWS = (1, 4, 8, 10, 16)
DTYPES = ("float32", "bfloat16", "int8")
CONFIG = Eagle3Config(
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    vocab_size=49152,
    draft_vocab_size=8192,
    max_position_embeddings=8192,
    fc_norm=True,
)


def make_head() -> Eagle3DraftHead:
    """Return a head with random weights."""
    torch.manual_seed(0)
    head = Eagle3DraftHead(CONFIG, embed_tokens=torch.randn(CONFIG.vocab_size, CONFIG.hidden_size))
    head.set_draft_vocabulary(torch.randperm(CONFIG.vocab_size)[: CONFIG.draft_vocab_size])
    return head.eval()


def make_pass(draft: PackedDraft, rows: int) -> Callable[[], object]:
    """Return the first round of a tree of width ``rows``."""
    token_ids = torch.randint(CONFIG.vocab_size, (rows,))
    hidden = torch.randn(rows, CONFIG.hidden_size)
    mask = (1 << torch.arange(rows))[:, None]
    return lambda: draft.expand(token_ids, hidden, 0, mask)


def make_products(draft: PackedDraft, rows: int) -> Callable[[], object]:
    """Return the pass's matrix products, by themselves."""
    layers = (draft._qkv, draft._out, draft._gate_up, draft._down, draft._lm_head)
    inputs = [(layer, torch.randn(rows, layer.in_features)) for layer in layers]

    @torch.inference_mode()
    def run() -> None:
        for layer, x in inputs:
            layer(x)

    return run


def measure(
    functions: list[Callable[[], object]], repeats: int, before: Callable[[], object]
) -> list[float]:
    """Return the median seconds of each function, called in turn."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 5):
        for function, seconds in zip(functions, times, strict=True):
            before()
            start = time.perf_counter()
            function()
            if repeat >= 5:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=512, help="stable rows")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--cold", action="store_true", help="sweep the caches before every call")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sweep = torch.zeros(16 * 2**20)
    before = sweep.sum if arguments.cold else (lambda: None)
    sys.stdout.write(f"torch {torch.__version__}, {arguments.threads} threads, {build_info()}\n")
    head = make_head()
    for dtype in filter(is_supported, DTYPES):
        draft = PackedDraft(head, capacity=arguments.context + 64, dtype=dtype)
        draft.extend(
            torch.randint(CONFIG.vocab_size, (arguments.context,)),
            torch.randn(arguments.context, 3 * CONFIG.hidden_size),
        )
        for rows in ROWS:
            functions = [make_pass(draft, rows), make_products(draft, rows)]
            whole, products = measure(functions, arguments.repeats, before)
            sys.stdout.write(
                f"{dtype:>9} K={rows:<3} pass {1e3 * whole:7.3f} ms   "
                f"products {1e3 * products:7.3f} ms   ratio {whole / products:5.2f}\n"
            )


if __name__ == "__main__":
    main()
