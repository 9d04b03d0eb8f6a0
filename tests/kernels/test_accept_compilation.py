"""Acceptance and prompt lookup, compiled for devices that this machine need not have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: nothing is compiled", allow_module_level=True)

from eaglerl.kernels._launch import Launch  # noqa: E402
from eaglerl.kernels.accept_draft_kernel import (  # noqa: E402
    prepare_accept_draft,
    prepare_extend_ngrams,
)
from eaglerl.ops.ngram_table import TableSizes  # noqa: E402

from .aot import TARGETS, compile_launch, signature_of  # noqa: E402
from .test_selection_compilation import check, check_order  # noqa: E402

SLOTS = 8
# The tensors that a launch writes and reads again: those of the path, and those of the text.
PATH = {"rows": 0, "token_ids": 2}
TEXT = {"texts": 0}


def on_meta(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def table_of(capacity: int, proposed: int = 12) -> tuple[list[torch.Tensor], TableSizes]:
    ends = on_meta(SLOTS, 15, 2 * capacity, dtype=torch.int32)
    tensors = [
        on_meta(SLOTS, capacity), on_meta(SLOTS), ends, on_meta(SLOTS), on_meta(SLOTS),
        on_meta(SLOTS, proposed),
    ]  # fmt: skip
    return tensors, TableSizes(capacity, 15, 2 * capacity, proposed)


def accept_launch(rows: int, longest: int, *, looks_up: bool = True) -> Launch:
    flags = on_meta(SLOTS, rows, rows, dtype=torch.bool), on_meta(SLOTS, rows, dtype=torch.bool)
    numbers = [on_meta(SLOTS, rows) for _ in range(4)]
    accepted = [on_meta(SLOTS, longest), on_meta(SLOTS), on_meta(SLOTS, longest)]
    table, sizes = table_of(4096) if looks_up else ([], None)
    return prepare_accept_draft([*numbers[:3], *flags, numbers[3]], accepted, table, sizes)


def extend_launch(width: int) -> Launch:
    table, sizes = table_of(32_768)
    return prepare_extend_ngrams(table, on_meta(SLOTS, width), on_meta(SLOTS), sizes)


@pytest.fixture(scope="module", autouse=True)
def _folder(shared_folder: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.knobs.cache, "dir", str(shared_folder / "triton-accept"))
        yield


@pytest.mark.parametrize("target", ["sm_90"])
def test_no_spills_and_order(target: str, tmp_path: Path) -> None:
    launch = accept_launch(32, 13)
    check(launch, target, tmp_path, "accepted", PATH)
    check_order(launch, compile_launch(launch, TARGETS[target]).asm["ptx"], "table", TEXT)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("rows", [4, 32, 64, 256])
def test_every_device(rows: int, target: str, tmp_path: Path) -> None:
    check(accept_launch(rows, 13), target, tmp_path, "accepted", PATH)
    check(accept_launch(rows, 13, looks_up=False), target, tmp_path, "accepted", {"rows": 0})


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_texts_on_every_device(target: str, tmp_path: Path) -> None:
    check(extend_launch(512), target, tmp_path, "table", TEXT)


def test_one_kernel_for_texts_of_any_width() -> None:
    """A prompt of another length must not wait for a compiler."""
    compiled = [signature_of(extend_launch(width)) for width in (1, 16, 513)]
    assert compiled[0] == compiled[1] == compiled[2]


@pytest.mark.slow
def test_gfx942() -> None:
    code = compile_launch(accept_launch(32, 13), TARGETS["gfx942"]).asm["amdgcn"]
    assert int(re.search(r"\.vgpr_spill_count:\s*(\d+)", code)[1]) == 0


def test_the_check_of_the_order_can_fail() -> None:
    launch = accept_launch(32, 13)
    ptx = compile_launch(launch, TARGETS["sm_90"]).asm["ptx"]
    for first, stored in (("accepted", PATH), ("table", TEXT)):
        with pytest.raises(AssertionError):
            check_order(launch, ptx.replace("bar.sync", "nop"), first, stored)
