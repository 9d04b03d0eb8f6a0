"""Build, test and time all that needs a CUDA device: one command, without a network.

    make gpu                      # or: python tools/gpu_check.py [--output FOLDER] [--minutes 8]

It takes at most the given minutes. Steps: the versions that are there; the build, without
isolation; `pytest -m gpu`; the smallest of these tests under compute-sanitizer;
`benchmarks/bench_gpu.py`. Each step is passed, failed or skipped, and a step that is skipped says
why. FOLDER gets `result.json`, `result.md` and the output of every step. Without a CUDA device,
what needs one is skipped and everything else is run. The exit status is 1 if a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch", "triton", "transformers", "numpy", "pybind11", "cmake", "ninja", "pytest", "gguf",
    "gymnasium", "stable_baselines3",
)  # fmt: skip
#: Tests whose launches are few and small: the sanitizer makes them a hundred times slower.
SANITIZED = ("tests/gpu/test_selection.py", "tests/gpu/test_acceptance.py::test_in_a_graph")
#: Shares of the time that the steps may take, in their order; what one leaves, the next may use.
SHARES = {"build": 0.45, "tests": 0.3, "sanitizer": 0.1, "timings": 0.4}
_LEAST_SECONDS = 5.0


@dataclass
class Step:
    """A step and what became of it.

    Attributes:
        name: its name.
        status: "passed", "failed" or "skipped".
        seconds: its duration.
        detail: the reason, or the last line that it said.
    """

    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""


@dataclass
class Check:
    """One run.

    Attributes:
        output: folder of the results.
        deadline: `time.monotonic()` at which everything must have ended.
        total: seconds of the whole run.
        steps: what was done.
    """

    output: Path
    total: float
    deadline: float = field(init=False)
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.total

    def skip(self, name: str, reason: str) -> None:
        """Note a step that is not run."""
        self._add(Step(name, "skipped", detail=reason))

    def run(self, name: str, command: Sequence[str | Path], **environment: str) -> bool:
        """Run a step in a process of its own, and return whether it passed."""
        left = self.deadline - time.monotonic()
        limit = min(left, SHARES[name] * self.total)
        if limit < _LEAST_SECONDS:
            self.skip(name, f"no time was left: {left:.0f} s")
            return False
        log, started = self.output / f"{name}.log", time.monotonic()
        with log.open("wb") as file:
            process = subprocess.Popen(
                list(map(str, command)), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(limit)
                detail = last_line(log)
            except subprocess.TimeoutExpired:
                # Its children as well: a compiler that went on would take the next step's time.
                os.killpg(process.pid, signal.SIGKILL)
                code, detail = process.wait(), f"stopped after {limit:.0f} s: {last_line(log)}"
        seconds = time.monotonic() - started
        self._add(Step(name, "failed" if code else "passed", seconds, detail))
        return code == 0

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        sys.stdout.write(f"{step.name}: {step.status}, {step.seconds:.0f} s. {step.detail}\n")
        sys.stdout.flush()

    def write(self, facts: dict[str, str]) -> None:
        """Write the results so far, each file whole or not at all."""
        timings = self.output / "timings.json"
        numbers = json.loads(timings.read_text(encoding="utf-8")) if timings.exists() else None
        steps = [asdict(step) for step in self.steps]
        result = {"facts": facts, "steps": steps, "timings": numbers}
        _write(self.output / "result.json", json.dumps(result, indent=2) + "\n")
        lines = [f"# {facts['device']}", "", ", ".join(f"{k} {v}" for k, v in facts.items()), ""]
        lines += ["| step | | seconds | |", "|---|---|---|---|"]
        lines += [
            f"| {step.name} | {step.status} | {step.seconds:.0f} | {step.detail} |"
            for step in self.steps
        ]
        if numbers is not None:
            lines += ["", (self.output / "timings.log").read_text(encoding="utf-8")]
        _write(self.output / "result.md", "\n".join(lines) + "\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def last_line(log: Path) -> str:
    """Return the last line of a file that says something."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def facts_of() -> dict[str, str]:
    """Return the device and the versions of what is there."""
    facts = {"device": "no CUDA device", "python": platform.python_version()}
    for name in PACKAGES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "missing"
    facts["nvcc"] = "found" if shutil.which("nvcc") else "missing"
    try:
        import torch
    except ImportError:
        return facts
    if torch.cuda.is_available():
        facts["device"] = torch.cuda.get_device_name()
        facts["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        facts["cuda"] = str(torch.version.cuda)
    return facts


def check(arguments: argparse.Namespace) -> int:
    """Run all steps; return the exit status."""
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    for old in ("timings.json", "result.json", "result.md"):
        (output / old).unlink(missing_ok=True)
    run, facts = Check(output, 60.0 * arguments.minutes), facts_of()
    cuda = facts["device"] != "no CUDA device"
    python = sys.executable
    sys.stdout.write(", ".join(f"{name} {value}" for name, value in facts.items()) + "\n")
    if arguments.build:
        build = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index"]
        run.run("build", [*build, "--verbose", "--editable", "."])
    else:
        run.skip("build", "--no-build")
    run.write(facts)
    tests = [python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-m", "gpu"]
    run.run("tests", [*tests, "tests/gpu"])
    run.write(facts)
    sanitizer = shutil.which("compute-sanitizer")
    if not cuda:
        run.skip("sanitizer", "there is no CUDA device")
        run.skip("timings", "there is no CUDA device")
    else:
        if sanitizer is None:
            run.skip("sanitizer", "compute-sanitizer was not found")
        else:
            run.run("sanitizer", [sanitizer, "--error-exitcode", "1", *tests, *SANITIZED])
        run.write(facts)
        minutes = max(run.deadline - time.monotonic() - 20, 30) / 60
        run.run("timings", [
            python, "benchmarks/bench_gpu.py", "--json", output / "timings.json",
            "--minutes", f"{min(minutes, SHARES['timings'] * arguments.minutes - 0.3):.2f}",
        ])  # fmt: skip
    run.write(facts)
    sys.stdout.write(f"{output / 'result.md'}\n")
    return int(any(step.status == "failed" for step in run.steps))


def main() -> Any:
    """Read the options and run the check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--no-build", dest="build", action="store_false")
    return check(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
