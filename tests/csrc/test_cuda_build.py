"""What the CUDA compiler makes of the kernels, and how the extension behaves without a device."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eaglerl._ext import C
from eaglerl.ops import _decision_cuda
from eaglerl.ops._decision_cuda import decide_cuda, step_cuda
from eaglerl.ops.action_cache import ActionCache

from .test_folded_decision import GREEDY, make_weights

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("action_cache_cuda", "folded_decision_cuda")
# A block may have so much shared memory on every device without asking for more; the plan of a
# folded decision takes up to 40 KiB of it when it is launched.
SHARED_BYTES = 48 * 1024
PLANNED_BYTES = {"folded_decision_cuda": 40 * 1024}
BLOCK_THREADS = 256
REGISTERS = 65_536  # of a multiprocessor


def find_tool(name: str) -> str | None:
    """Return the path of a CUDA tool: on PATH, in the toolkit's usual place, or in Triton."""
    folders = [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    triton = Path(torch.__file__).parents[1] / "triton" / "backends" / "nvidia" / "bin"
    return shutil.which(name, path=os.pathsep.join([*folders, str(triton)]))


NVCC = find_tool("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs the CUDA compiler, nvcc")


@dataclass(frozen=True)
class Kernel:
    """What the compiler reports about one kernel."""

    source: str
    name: str
    registers: int
    shared: int
    spilled: int


@dataclass(frozen=True)
class Compiled:
    """The kernels of all sources for one architecture."""

    kernels: tuple[Kernel, ...]
    ptx: dict[str, str]  # by source
    cubins: dict[str, Path]


def compile_sources(folder: Path, architecture: str) -> Compiled:
    """Compile all CUDA sources as the build does, warnings as errors."""
    kernels, ptx, cubins = [], {}, {}
    for source in SOURCES:
        kept = folder / source
        kept.mkdir()
        cubins[source] = kept / "out.cubin"
        result = subprocess.run(
            [NVCC, "-O3", "-std=c++17", "-Werror", "all-warnings", f"-arch=sm_{architecture}",
             "-Xptxas", "-v", "--keep", "--keep-dir", str(kept), "-cubin",
             f"-I{ROOT / 'csrc'}", str(ROOT / "csrc" / "cuda" / f"{source}.cu"),
             "-o", str(cubins[source])],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        kernels += parse_report(source, result.stderr + result.stdout)
        ptx[source] = (kept / f"{source}.ptx").read_text()
    return Compiled(tuple(kernels), ptx, cubins)


def parse_report(source: str, report: str) -> list[Kernel]:
    pattern = re.compile(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers(?:.*?(\d+) bytes smem)?[^\n]*\n",
        re.DOTALL,
    )
    kernels = []
    for name, stack, stores, loads, registers, shared in pattern.findall(report):
        spilled = int(stack) + int(stores) + int(loads)
        kernels.append(Kernel(source, readable(name), int(registers), int(shared or 0), spilled))
    return kernels


def readable(mangled: str) -> str:
    """Return a kernel's name with template arguments, from the linker's name."""
    plain = re.search(r"\d+((?:accept|tree|action|folded)\w+?_kernel)", mangled).group(1)
    arguments = re.search(r"_kernelI(?:NS_\d+Device(\w+?)E|f)Li(\d+)E", mangled)
    if arguments is None:
        return plain
    return f"{plain}<{arguments.group(1) or 'float'}, {arguments.group(2)}>"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_sources(tmp_path_factory.mktemp("sm_90"), "90")


def check_resources(compiled: Compiled, architecture: str) -> None:
    names = [kernel.name for kernel in compiled.kernels]
    # Three types of weights, one sequence or eight; the cache's step.
    assert len(names) == len(set(names)) == 6 + 1
    for kernel in compiled.kernels:
        print(  # noqa: T201
            f"sm_{architecture} {kernel.name:40} {kernel.registers:4} registers "
            f"{kernel.shared:6} bytes shared {kernel.spilled} spilled"
        )
        assert kernel.spilled == 0, kernel
        assert kernel.registers * BLOCK_THREADS <= REGISTERS, kernel
        assert kernel.shared + PLANNED_BYTES.get(kernel.source, 0) <= SHARED_BYTES, kernel


def machine_code(cubin: Path) -> dict[str, str] | None:
    """Return the machine code of every kernel, or None where nothing can show it."""
    cuobjdump = find_tool("cuobjdump")
    if cuobjdump is None:
        return None
    path = os.pathsep.join([str(Path(cuobjdump).parent), os.environ.get("PATH", "")])
    result = subprocess.run(
        [cuobjdump, "-sass", str(cubin)],
        env=os.environ | {"PATH": path},
        check=True,
        capture_output=True,
        text=True,
    )
    _, *functions = re.split(r"Function : (?=\w)", result.stdout)
    return {function.split(maxsplit=1)[0]: function for function in functions}


def check_vector_loads(compiled: Compiled) -> None:
    # In each kernel, four rows of weights at a time where rows are aligned, twice as many where
    # they are not, in the tiles of the first layer and in the other layers.
    expected = 2 * (4 + 8)
    source = "folded_decision_cuda"
    functions = entries(compiled.ptx[source])
    assert len(functions) == 6
    for name, code in functions.items():
        assert len(re.findall(r"ld\.global\.nc\.v4\.[bu]32", code)) >= expected, name
    shown = machine_code(compiled.cubins[source])
    if shown is None:
        pytest.skip("needs cuobjdump to look at the machine code; the PTX has the vector loads")
    assert len(shown) == 6
    for name, code in shown.items():
        assert len(re.findall(r"LDG\.E\.128\.CONSTANT", code)) >= expected, name
        assert not re.search(r"\b(STL|LDL)\b", code), f"{name} keeps values in local memory"


def entries(ptx: str) -> dict[str, str]:
    """Return the PTX of every kernel."""
    _, *parts = re.split(r"\.entry ", ptx)
    return {re.match(r"\w+", part).group(): part for part in parts}


@needs_nvcc
def test_resources(compiled: Compiled) -> None:
    check_resources(compiled, "90")


@needs_nvcc
def test_weights_are_read_in_vectors(compiled: Compiled) -> None:
    check_vector_loads(compiled)


@needs_nvcc
def test_sums_of_other_blocks_are_read_after_their_writes(compiled: Compiled) -> None:
    # No run on a host can show these: every thread's writes are flushed before its block takes the
    # ticket, the last block flushes again before it reads, and it reads past the first-level cache,
    # which no write of another block reaches.
    order = re.compile(
        r"(membar\.gl|fence\.\w+\.gpu).*?bar\.sync.*?atom\.global\S*\.add.*?bar\.sync.*?"
        r"(membar\.gl|fence\.\w+\.gpu).*?ld\.global\.cg\.f32",
        re.DOTALL,
    )
    for name, code in entries(compiled.ptx["folded_decision_cuda"]).items():
        assert len(re.findall(r"atom\.", code)) == 1, name
        assert order.search(code), name
        before, _ = code.split("atom.", 1)
        assert "ld.global.cg" not in before, name


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "100"])
def test_other_architectures(tmp_path: Path, architecture: str) -> None:
    compiled = compile_sources(tmp_path, architecture)
    check_resources(compiled, architecture)
    check_vector_loads(compiled)


@pytest.mark.skipif(not C.has_cuda, reason="the extension was built without CUDA")
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_launch_without_a_device_is_an_error() -> None:
    weights = make_weights(15, (4,), 6)
    taps = [torch.randn(2, 5) for _ in range(3)]
    with pytest.raises(RuntimeError, match=r"CUDA launch failed: .*CUDA"):
        decide_cuda(weights, *taps, None, None, None, None, *GREEDY)
    cache = ActionCache(2)
    before = cache.state.clone()
    with pytest.raises(RuntimeError, match=r"CUDA launch failed: .*CUDA"):
        step_cuda(torch.randn(2, 6), weights.actions, None, cache.state, *[None] * 3, 0, *GREEDY, 0)
    assert torch.equal(cache.state, before)


def test_extension_without_cuda_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_decision_cuda, "C", SimpleNamespace())
    weights = make_weights(15, (4,), 6)
    with pytest.raises(RuntimeError, match=r"built without CUDA kernels: .*EAGLERL_WITH_CUDA=1"):
        decide_cuda(weights, *[torch.randn(2, 5)] * 3, None, None, None, None, *GREEDY)
    state = ActionCache(2).state
    with pytest.raises(RuntimeError, match=r"built without CUDA kernels: .*EAGLERL_WITH_CUDA=1"):
        step_cuda(torch.randn(2, 6), weights.actions, None, state, *[None] * 3, 0, *GREEDY, 0)


def test_kernels_need_no_triton() -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import eaglerl.ops._decision_cuda as module; print(module.has_cuda_kernels())"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == str(C.has_cuda), result.stderr
