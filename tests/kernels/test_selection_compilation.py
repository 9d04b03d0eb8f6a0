"""The choice of nodes, compiled for devices that this machine need not have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: nothing is compiled", allow_module_level=True)

from eaglerl.kernels._launch import Launch  # noqa: E402
from eaglerl.kernels.select_draft_nodes_kernel import prepare_select_draft_nodes  # noqa: E402
from eaglerl.ops.node_selection import (  # noqa: E402
    SelectionSizes,
    rule_layout,
    scratch_words,
    tensor_layout,
)

from .aot import TARGETS, compile_launch, disassembly, resource_usage  # noqa: E402
from .test_compilation import parameter_number  # noqa: E402

# The draft of the automatic policy, and EAGLE's own.
SIZES = (SelectionSizes(4, 5, 32, 12), SelectionSizes(10, 7, 60, 12), SelectionSizes(1, 7, 9, 8))


def launch_of(sizes: SelectionSizes, limited: bool = False) -> Launch:
    def on_meta(shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    layout = tensor_layout(8, sizes).values()
    tensors = [on_meta(shape, dtype) for dtype, shape in layout]
    tables = [on_meta((entries,), torch.int32) for entries in (513, 1025)]
    rule = on_meta((8, rule_layout(sizes)["words"]), torch.int32)
    children = (8, sizes.top_k, sizes.top_k)
    drafted = [
        on_meta((8,)), on_meta(children), on_meta(children, torch.float32), on_meta((8,)),
        on_meta((8,)), on_meta((8, sizes.lookup_tokens)),
    ]  # fmt: skip
    limits = on_meta((8, 4), torch.int32) if limited else None
    return prepare_select_draft_nodes(tensors, tables, rule, sizes, 1, drafted, limits)


@pytest.fixture(scope="module", autouse=True)
def _folder(shared_folder: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.knobs.cache, "dir", str(shared_folder / "triton-selection"))
        yield


@pytest.mark.parametrize(
    ("sizes", "target", "limited"),
    [(SIZES[0], "sm_90", False), (SIZES[2], "sm_80", True)],
    ids=str,
)
def test_no_spills_and_order(
    sizes: SelectionSizes, target: str, limited: bool, tmp_path: Path
) -> None:
    check(launch_of(sizes, limited), target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_device(sizes: SelectionSizes, target: str, limited: bool, tmp_path: Path) -> None:
    check(launch_of(sizes, limited), target, tmp_path)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_scratch_memory_is_as_large_as_the_launch_needs(sizes: SelectionSizes) -> None:
    assert scratch_words(sizes) == launch_of(sizes).plan.scratch.words


def test_gfx942() -> None:
    code = compile_launch(launch_of(SIZES[0]), TARGETS["gfx942"]).asm["amdgcn"]
    assert int(re.search(r"\.vgpr_spill_count:\s*(\d+)", code)[1]) == 0


def test_the_check_of_the_order_can_fail() -> None:
    launch = launch_of(SIZES[0])
    ptx = compile_launch(launch, TARGETS["sm_90"]).asm["ptx"]
    check_order(launch, ptx)
    with pytest.raises(AssertionError):
        check_order(launch, ptx.replace("bar.sync", "nop"))


#: Tensors that one call writes and reads again, by their place; and how many tensors there are.
STORED = {"row_parents": 8}
TENSORS = 14


def check(
    launch: Launch, target: str, folder: Path, first: str = "state", stored: dict = STORED
) -> None:
    compiled = compile_launch(launch, TARGETS[target])
    ptx, cubin = compiled.asm["ptx"], compiled.asm["cubin"]
    usage = resource_usage(cubin, folder)
    spills = len(re.findall(r"\b(?:STL|LDL)\b", disassembly(cubin, folder)))
    print(f"\n{launch.plan.rows} rows, {target}: {usage['REG']} registers", end="")  # noqa: T201
    assert usage["STACK"] == usage["LOCAL"] == spills == 0
    assert compiled.metadata.shared <= 48 * 1024
    check_order(launch, ptx, first, stored)


def check_order(
    launch: Launch, ptx: str, first: str = "state", stored: dict[str, int] = STORED
) -> None:
    """Check that what other threads have stored is read behind a barrier."""
    begin = parameter_number(launch, first)
    for name, place in stored.items():
        found = accesses(ptx, begin + place)
        assert "store" in found, name
        assert "load" in found[found.index("store") :], name
    for place in range(TENSORS) if first == "state" else stored.values():
        unsafe = False
        for event in accesses(ptx, begin + place):
            unsafe = event == "store" or (unsafe and event != "barrier")
            assert not (unsafe and event == "load"), place


def accesses(ptx: str, parameter: int) -> list[str]:
    """Return the barriers of a kernel, and its accesses to a parameter's memory, in their order."""
    derived: set[str] = set()
    events = []
    for line in ptx.splitlines():
        if match := re.search(rf"ld\.param\.b64\s+(%rd\d+), \[\w+_param_{parameter}\]", line):
            derived.add(match[1])
        elif match := re.search(r"(?:add|mov|cvta|sub|mad|selp)\S*\s+(%rd\d+), (.*);", line):
            if derived & set(re.findall(r"%rd\d+", match[2])):
                derived.add(match[1])
        elif "bar.sync" in line:
            events.append("barrier")
        elif (match := re.search(r"(ld|st)\.global\S*.*\[\s*(%rd\d+)", line)) and match[
            2
        ] in derived:
            events.append("load" if match[1] == "ld" else "store")
    return events
