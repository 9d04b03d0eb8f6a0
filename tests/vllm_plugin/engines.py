"""vLLM in a process of its own, with and without the plugin."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "benchmarks" / "peers" / "vllm_worker.py"
IMPORTED = (ROOT, ROOT / "plugins" / "vllm", ROOT / "tests")
VARIABLE = "EAGLERL_VLLM_PYTHON"


class Engine:
    """An engine that answers tasks."""

    def __init__(self, options: dict[str, Any], log: Path, **environment: str) -> None:
        """Start it; `options` are those of vLLM's `LLM`."""
        python = Path(os.environ[VARIABLE])
        given = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, IMPORTED)),
            "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Spinning threads of GNU's OpenMP make drafting many times slower; vLLM warns of it.
            "LD_PRELOAD": str(python.parents[1] / "lib" / "libiomp5.so"),
        } | environment  # fmt: skip
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [python, WORKER, json.dumps(options)], stdin=subprocess.PIPE,
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
