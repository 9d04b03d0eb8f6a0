"""vLLM in a process of its own, with and without the plugin."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "benchmarks" / "peers" / "vllm_worker.py"
IMPORTED = (ROOT, ROOT / "plugins" / "vllm", ROOT / "tests")
VARIABLE = "EAGLERL_VLLM_PYTHON"


def variables() -> dict[str, str]:
    """Return the environment of a process with vLLM, the plugin and eaglerl."""
    python = Path(os.environ[VARIABLE])
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, IMPORTED)),
        "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
        # Spinning threads of GNU's OpenMP make drafting many times slower; vLLM warns of it.
        "LD_PRELOAD": str(python.parents[1] / "lib" / "libiomp5.so"),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip


class Engine:
    """An engine that answers tasks."""

    def __init__(self, options: dict[str, Any], log: Path, **environment: str) -> None:
        """Start it; `options` are those of vLLM's `LLM`."""
        given = variables() | environment
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [os.environ[VARIABLE], WORKER, json.dumps(options)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=stderr, env=given, text=True,
            )  # fmt: skip

    def ask(self, prompts: list[list[int]], sampling: Any) -> dict[str, Any]:
        """Decode prompts."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "sampling": sampling}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self.log[-3000:]
        return json.loads(line)

    @property
    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Server:
    """vLLM's OpenAI server, in the processes that it starts by default."""

    def __init__(self, arguments: list[str], log: Path, **environment: str) -> None:
        """Start it and wait until it answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [os.environ[VARIABLE], "-m", "vllm.entrypoints.openai.api_server", *arguments]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=variables() | environment
            )
        deadline = time.monotonic() + 300
        while not self._healthy():
            assert self._process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline
            time.sleep(1)

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """End it as a user would."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
