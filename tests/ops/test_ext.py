"""What the extension reports about itself, and that each instruction set's code really runs."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eaglerl._ext import C, build_info
from eaglerl.ops import rms_norm


def test_the_widest_instruction_set_is_used() -> None:
    info = build_info()
    assert info["isa"] == C.available_isas()[0]
    assert C.available_isas()[-1] in ("baseline", "neon")
    assert info["cuda"] is C.has_cuda


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux's list of features")
def test_available_sets_agree_with_the_processor() -> None:
    words = set(Path("/proc/cpuinfo").read_text().split())
    assert ("avx2" in C.available_isas()) == {"avx2", "fma"}.issubset(words)
    wide = {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"}
    assert ("avx512" in C.available_isas()) == wide.issubset(words)
    with_vnni = {*wide, "avx512_vnni"}
    assert ("avx512vnni" in C.available_isas()) == with_vnni.issubset(words)
    with_avx_vnni = {"avx2", "fma", "avx_vnni"}
    assert ("avx2vnni" in C.available_isas()) == with_avx_vnni.issubset(words)
    # The kernel may refuse tiles to a process, so not the other way round.
    if "avx512amx" in C.available_isas():
        assert {*with_vnni, "amx_tile", "amx_bf16"}.issubset(words)


@pytest.mark.skipif(len(C.available_isas()) == 1, reason="only one instruction set here")
def test_instruction_sets_are_different_code() -> None:
    # Sums in vectors of other widths round differently: equal results would mean one code.
    x, weight = torch.randn(500, 576), torch.ones(576)
    results = []
    # VNNI and AMX are for products of targets; the other kernels are those of avx2 and avx512.
    for name in (name for name in C.available_isas() if not name.endswith(("vnni", "amx"))):
        C.set_isa(name)
        results.append(rms_norm(x, weight, 1e-5))
    C.set_isa(C.available_isas()[0])
    for first, second in itertools.pairwise(results):
        assert not torch.equal(first, second)


def test_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"isa must be one of .*(baseline|neon), not 'sse9'"):
        C.set_isa("sse9")


@pytest.mark.skipif(sys.platform != "linux", reason="torch uses another OpenMP elsewhere")
def test_ops_share_torch_threads() -> None:
    assert C.threading_backend() == "gomp"
    libraries = {
        Path(line.split()[-1]).resolve()
        for line in Path("/proc/self/maps").read_text().splitlines()
        if re.match(r"lib[gi]?omp\b", Path(line.split()[-1]).name)
    }
    assert len(libraries) == 1, f"more than one OpenMP runtime: {libraries}"


def test_importing_the_package_is_quick() -> None:
    script = "import sys, eaglerl; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "False"
