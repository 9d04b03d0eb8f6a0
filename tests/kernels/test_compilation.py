"""The compiled kernels, for devices that this machine need not have.

Fails if a kernel spills registers, loads its weights in less than 16 bytes at a time, or takes its
ticket before all of its stores are done, none of which the interpreter can show. ``pytest -s``
prints a table.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: nothing is compiled", allow_module_level=True)

from eaglerl.kernels._launch import Launch  # noqa: E402
from eaglerl.kernels._settings import forget_plans  # noqa: E402
from eaglerl.kernels.action_cache_step_kernel import prepare_action_cache_step  # noqa: E402
from eaglerl.kernels.fused_encode_kernel import prepare_fused_encode  # noqa: E402
from eaglerl.kernels.policy_mlp_kernel import prepare_policy_mlp  # noqa: E402
from eaglerl.ops.action_cache import RING_WORDS, CacheView  # noqa: E402
from eaglerl.ops.policy_weights import PolicyWeights  # noqa: E402

from .aot import TARGETS, compile_launch, disassembly, resource_usage  # noqa: E402

HIDDEN, ACTIONS, SLOTS = (128, 128), 203, 8
GREEDY = 0.0, 0, 0
# Shared memory that one program may have.
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}


def on_meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def make_weights(k: int, dtype: torch.dtype, form: str, columns: int) -> PolicyWeights:
    """Return the FC of an EAGLE-3.1 head, with norms, and a policy of two hidden layers."""
    widths = (3 * k if form == "folded" else k, *HIDDEN)
    fused = form.startswith("fused")
    return PolicyWeights.unchecked(
        hidden_weights=tuple(
            on_meta(rows, columns, dtype=dtype)
            for rows, columns in zip(HIDDEN, widths[:-1], strict=True)
        ),
        hidden_biases=tuple(on_meta(rows) for rows in HIDDEN),
        output_weight=on_meta(ACTIONS, HIDDEN[-1], dtype=dtype),
        output_bias=on_meta(ACTIONS),
        actions=on_meta(ACTIONS, columns, dtype=torch.int32),
        fc_weight=on_meta(k, 3 * k, dtype=dtype) if fused else None,
        norm_weight=on_meta(3 * k) if fused else None,
        norm_chunks=0 if form == "features" else 3,
        mlp_input="taps" if form == "folded" else "features",
    )


def make_cache(mode: str, size: int) -> CacheView:
    number = ("fixed", "adaptive", "scheduled").index(mode)
    return CacheView(
        number,
        on_meta(SLOTS, 16, dtype=torch.int32),
        on_meta(SLOTS, size) if mode == "adaptive" else None,
        on_meta(SLOTS, 1, RING_WORDS, dtype=torch.int32) if mode == "scheduled" else None,
    )


@dataclass(frozen=True)
class Case:
    """A launch to compile.

    Attributes:
        form: "fused", "fused, no features", "folded", "features" or "step".
        k: Width of a tapped layer.
        dtype: Of inputs and weights.
        rows: N, the rows that the draft wants.
        sequences: S.
        mode: The action cache's.
    """

    form: str
    k: int
    dtype: torch.dtype
    rows: int = 1
    sequences: int = 1
    mode: str = "fixed"

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.form}-k{self.k}-{name}-N{self.rows}-S{self.sequences}-{self.mode}"

    def launch(self) -> Launch:
        compares_g = self.form in ("fused", "features")
        cache = make_cache(self.mode, self.k if compares_g else 64)
        last = on_meta(self.sequences, dtype=torch.int64)
        columns = 3 if self.mode == "fixed" else 4
        if self.form == "step":
            logits = on_meta(self.sequences, ACTIONS)
            trees = on_meta(ACTIONS, columns, dtype=torch.int32)
            features = on_meta(self.sequences, 64) if self.mode == "adaptive" else None
            return prepare_action_cache_step(logits, trees, features, cache, last, GREEDY, 0)[0]
        weights = make_weights(self.k, self.dtype, self.form, columns)
        parts = 1 if self.form == "features" else 3
        inputs = tuple(on_meta(64, self.k, dtype=self.dtype) for _ in range(parts))
        rows = on_meta(self.rows, dtype=torch.int64)
        if weights.fc_weight is None:
            return prepare_policy_mlp(weights, inputs, rows, last, cache, None, GREEDY)[0]
        return prepare_fused_encode(
            weights, inputs, rows, last, cache, None, GREEDY, return_features=compares_g
        )[0]


WIDTHS, DTYPES = (576, 2048, 4096), (torch.bfloat16, torch.float32)
FEW = [
    # The other pairs are among MANY: here each width and each type is there once.
    Case("fused", 576, torch.bfloat16),
    Case("fused", 4096, torch.float32),
    Case("fused", 576, torch.bfloat16, rows=8, mode="adaptive"),
    Case("fused, no features", 2048, torch.bfloat16, mode="adaptive"),
    Case("folded", 576, torch.float32),
    Case("folded", 4096, torch.bfloat16),
    Case("features", 2048, torch.bfloat16),
    Case("step", 1, torch.float32, mode="scheduled"),
]
MANY = [
    Case(form, k, dtype, rows, sequences, mode)
    for form in ("fused", "fused, no features", "folded", "features")
    for k in WIDTHS
    for dtype in DTYPES
    for rows, sequences in ((1, 1), (4, 1), (8, 8), (60, 1))
    for mode in ("fixed", "adaptive")
    if form == "fused" or rows != 60
]


@pytest.fixture(scope="module", autouse=True)
def _folder(shared_folder: Path) -> Iterator[None]:
    """Compiled kernels are kept for this run's tests alone, so that nothing old is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.knobs.cache, "dir", str(shared_folder / "triton"))
        yield


@pytest.mark.parametrize("case", FEW, ids=str)
def test_sm_90(case: Case, tmp_path: Path) -> None:
    check_nvidia(case, "sm_90", tmp_path)


# The other pairs are among MANY.
@pytest.mark.parametrize(
    ("target", "dtype"), [("sm_80", torch.bfloat16), ("sm_100", torch.float32)]
)
def test_other_nvidia_devices(target: str, dtype: torch.dtype, tmp_path: Path) -> None:
    check_nvidia(Case("fused", 4096, dtype), target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("case", MANY, ids=str)
def test_every_nvidia_device(case: Case, target: str, tmp_path: Path) -> None:
    check_nvidia(case, target, tmp_path)


@pytest.mark.parametrize("case", [FEW[1], FEW[5]], ids=str)
def test_gfx942(case: Case) -> None:
    check_amd(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", MANY, ids=str)
def test_every_launch_on_gfx942(case: Case) -> None:
    check_amd(case)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        ("bar.sync", "nop"),
        (".acq_rel.", ".relaxed."),
        (".cg.", "."),
        (".v4.b32", ".v2.b32"),
        ("ld.volatile.global", "nop"),
    ],
)
def test_the_checks_can_fail(pattern: str, replacement: str) -> None:
    launch = Case("features", 2048, torch.bfloat16).launch()
    ptx = compile_launch(launch, TARGETS["sm_90"]).asm["ptx"]
    assert pattern in ptx
    changed = ptx.replace(pattern, replacement)
    with pytest.raises(AssertionError):  # noqa: PT012
        check_weights(launch, changed)
        check_ticket(changed)
        check_prefetch(launch, changed)


def check_nvidia(case: Case, target: str, folder: Path) -> None:
    launch = case.launch()
    compiled = compile_launch(launch, TARGETS[target])
    ptx, cubin = compiled.asm["ptx"], compiled.asm["cubin"]
    usage, code = resource_usage(cubin, folder), disassembly(cubin, folder)
    wide = len(re.findall(r"LDG\.E\S*\.128", code)) + len(re.findall(r"LDGSTS\S*\.128", code))
    spills = len(re.findall(r"\b(?:STL|LDL)\b", code))
    report(case, target, launch, usage["REG"], spills, compiled.metadata.shared, wide)
    assert usage["STACK"] == usage["LOCAL"] == spills == 0
    assert usage["REG"] <= launch.plan.tiles.max_registers
    assert usage["REG"] * 32 * launch.plan.tiles.num_warps <= 65536
    assert compiled.metadata.shared <= SHARED[target]
    assert len(re.findall(r"^\s*\.(?:visible )?\.?entry", ptx, re.MULTILINE)) == 1
    if case.form != "step":
        check_weights(launch, ptx)
        check_ticket(ptx, 2 if launch.plan.gathered else 1)
        check_prefetch(launch, ptx)


def check_weights(launch: Launch, ptx: str) -> None:
    """Check that the weights of the divided product are loaded 16 bytes at a time."""
    names = [parameter.name for parameter in launch.kernel.params]
    weight = "fc_weight_ptr" if "fc_weight_ptr" in names else "weights"
    loads = loads_from(ptx, parameter_number(launch, weight))
    assert loads, "no load of the weights was found"
    assert set(loads) <= {"16"}, f"loads of the weights in bytes: {sorted(set(loads))}"


def parameter_number(launch: Launch, name: str) -> int:
    """Return the place in the compiled kernel of the first pointer of an argument."""
    place = 0
    for parameter in launch.kernel.params:
        if parameter.name == name:
            return place
        value = launch.arguments.get(parameter.name)
        place += count_leaves(value) if not parameter.is_constexpr else 0
    raise AssertionError(name)


def count_leaves(value: Any) -> int:
    if isinstance(value, tuple):
        return sum(count_leaves(part) for part in value)
    return value is not None


def loads_from(ptx: str, parameter: int) -> list[str]:
    """Return the widths of the global loads and copies whose address comes from a parameter.

    Addresses are sums that start with the parameter: registers that hold it or such a sum are
    followed through moves, additions and multiply-adds.
    """
    derived: set[str] = set()
    sizes: list[str] = []
    for line in ptx.splitlines():
        if match := re.search(rf"ld\.param\.b64\s+(%rd\d+), \[\w+_param_{parameter}\]", line):
            derived.add(match[1])
        elif match := re.search(
            r"(?:add|mov|cvta\S*|sub|mad\S*|selp)\.\S+\s+(%rd\d+), (.*);", line
        ):
            if derived & set(re.findall(r"%rd\d+", match[2])):
                derived.add(match[1])
        elif match := re.search(r"ld\.global\S*?(?:\.v(\d))?\.b(\d+)\s.*\[\s*(%rd\d+)", line):
            if match[3] in derived:
                sizes.append(str(int(match[1] or 1) * int(match[2]) // 8))
        elif (
            match := re.search(
                r"cp\.async\.c[ag]\.shared\.global\S*.*\[\s*(%rd\d+).*?(0x\w+|\d+)", line
            )
        ) and match[1] in derived:
            sizes.append(re.search(r"\],\s*(0x\w+|\d+)", line)[1].replace("0x10", "16"))
    return sizes


def check_ticket(ptx: str, tickets: int = 1) -> None:
    """Check the order: stores, barrier, ticket with acquire and release, loads past L1.

    Where partial sums are gathered first, their ticket has the same order as the last one's.
    """
    lines = [line.strip() for line in ptx.splitlines()]
    places = [i for i, line in enumerate(lines) if re.search(r"atom\.global\S*add\.u32", line)]
    assert len(places) == tickets
    stores = [i for i, line in enumerate(lines) if re.search(r"st\.global", line)]
    barriers = [i for i, line in enumerate(lines) if "bar.sync" in line]
    for place, end in itertools.pairwise([*places, len(lines)]):
        assert ".gpu.acq_rel." in lines[place]
        before = max(i for i in stores if i < place)
        assert any(before < i < place for i in barriers), "no barrier before the ticket"
        after = [line for line in lines[place:end] if re.search(r"ld\.global\S*\.cg\S*", line)]
        assert after, "nothing is read past L1 after the ticket"


def check_prefetch(launch: Launch, ptx: str) -> None:
    """Check that the later layers' weights are read in advance, and not left out as unused.

    The compiler may place these loads anywhere. They are volatile, and others are not.
    """
    lines = [line for line in ptx.splitlines() if not re.search(r"\bld\.global", line)]
    advance = "\n".join(lines).replace("ld.volatile.", "ld.")
    first = parameter_number(launch, "weights")
    for layer in range(1, len(launch.plan.policy.widths)):
        assert loads_from(advance, first + layer), f"layer {layer} is not read in advance"


def check_amd(case: Case) -> None:
    # As where torch is built for AMD: its matrix products take another precision.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.4")
        forget_plans()
        launch = case.launch()
    forget_plans()
    compiled = compile_launch(launch, TARGETS["gfx942"])
    code = compiled.asm["amdgcn"]
    registers, spills = (
        int(re.search(rf"\.{name}:\s*(\d+)", code)[1])
        for name in ("vgpr_count", "vgpr_spill_count")
    )
    wide = len(re.findall(r"(?:global|buffer)_load_dwordx4", code))
    report(case, "gfx942", launch, registers, spills, compiled.metadata.shared, wide)
    assert spills == 0
    assert registers <= 512
    assert compiled.metadata.shared <= SHARED["gfx942"]
    assert wide > 0


def report(case: Case, target: str, launch: Launch, *figures: int) -> None:
    """Return one line of the table."""
    names = ("registers", "spills", "shared", "16-byte loads")
    text = ", ".join(f"{name} {figure:6d}" for name, figure in zip(names, figures, strict=True))
    print(f"\n{case!s:58} {target:7} grid {launch.grid!s:12} {text}", end="")  # noqa: T201
