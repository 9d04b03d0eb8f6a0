"""The engines of the comparison: what each needs, and how it is asked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from llama_cpp import LlamaServer, build
from peer_environments import OPENVINO, environment, export_openvino
from peer_models import end_token, head_for_llama_cpp, retyped
from peer_process import Worker
from peer_runners import LLAMA_DRAFTS, Runner

from eaglerl.prepare import default_draft_path

_HERE = Path(__file__).resolve().parent


class Engine(Protocol):
    """An engine with all runners of it that are measured."""

    runners: list[Runner]

    def renew(self) -> None:
        """Forget earlier answers: called before every repeat of all questions."""

    def decode(self, runner: Runner, prompt: list[int], count: int) -> dict[str, Any]:
        """Decode greedily."""

    def close(self) -> None:
        """End its processes."""


class Eaglerl:
    """eaglerl, in one process that keeps all precisions."""

    def __init__(self, folder: Path, runners: Sequence[Runner], threads: int) -> None:
        """Start it and load the precisions; `refused` has the reasons of those that it lacks."""
        self.worker = Worker(
            "eaglerl",
            [sys.executable, _HERE / "eaglerl_worker.py", str(threads)],
            folder / "logs" / "eaglerl.log",
        )
        self.refused: dict[str, str] = {}
        for precision in dict.fromkeys(runner.weights for runner in runners):
            answer = self.worker.ask(do="load", precision=precision)
            if "refused" in answer:
                self.refused[precision] = answer["refused"]
        self.runners = [runner for runner in runners if runner.weights not in self.refused]

    def renew(self) -> None:
        """Do nothing: a policy is reset at the beginning of a text."""

    def decode(self, runner: Runner, prompt: list[int], count: int) -> dict[str, Any]:
        """Decode greedily."""
        return self.worker.ask(
            do="decode",
            precision=runner.weights,
            drafts=runner.drafts,
            prompt=prompt,
            count=count,
        )

    def time_passes(self, precision: str, rows: int, repeats: int) -> list[float]:
        """Return seconds of whole passes."""
        task = {"precision": precision, "rows": rows, "repeats": repeats}
        return self.worker.ask(do="time_passes", **task)["seconds"]

    def bandwidth(self) -> float:
        """Return the bytes per second that all threads together read from memory."""
        return self.worker.ask(do="bandwidth")["bytes_per_second"]

    def close(self) -> None:
        """End the process."""
        self.worker.close()


class OpenVINO:
    """OpenVINO GenAI, in one process that keeps all pipelines."""

    def __init__(self, folder: Path, model: Path, runners: Sequence[Runner], threads: int) -> None:
        """Install it and convert the model if need be, and start it."""
        self.runners = list(runners)
        weights = dict.fromkeys(
            "f32" if runner.weights == "default" else runner.weights for runner in runners
        )
        export_openvino(folder, list(weights))
        python = environment(folder / "openvino", OPENVINO) / "python"
        self._worker = Worker(
            "OpenVINO",
            [python, _HERE / "openvino_worker.py", folder, str(threads), str(end_token(model))],
            folder / "logs" / "openvino.log",
        )

    def renew(self) -> None:
        """Do nothing: its cache of prefixes is off."""

    def decode(self, runner: Runner, prompt: list[int], count: int) -> dict[str, Any]:
        """Decode greedily."""
        return self._worker.ask(
            weights=runner.weights, drafts=runner.drafts, prompt=prompt, count=count
        )

    def close(self) -> None:
        """End the process."""
        self._worker.close()


class LlamaCpp:
    """llama.cpp: a llama-server for every runner."""

    def __init__(self, folder: Path, model: Path, runners: Sequence[Runner], threads: int) -> None:
        """Build it and make the files if need be; `renew` starts the servers."""
        self.runners = list(runners)
        program = build(folder) / "llama-server"
        self._servers: dict[Runner, LlamaServer] = {}
        for runner in runners:
            options = list(LLAMA_DRAFTS[runner.drafts])
            if runner.drafts.startswith("eagle3"):
                head = head_for_llama_cpp(default_draft_path(), model, folder)
                options += ["--spec-draft-model", str(head)]
                options += ["--spec-draft-threads", str(threads)]
            name = runner.name.replace(" ", "-").replace("/", "-")
            self._servers[runner] = LlamaServer(
                runner.name,
                program,
                retyped(model / "model.gguf", runner.weights, folder),
                options,
                threads,
                folder / "logs" / f"{name}.log",
            )

    def renew(self) -> None:
        """Start the servers, or start them again."""
        for server in self._servers.values():
            server.renew()

    def decode(self, runner: Runner, prompt: list[int], count: int) -> dict[str, Any]:
        """Decode greedily."""
        return self._servers[runner].decode(prompt, count)

    def close(self) -> None:
        """End the servers."""
        for server in self._servers.values():
            server.close()


def start_engines(
    folder: Path, model: Path, runners: Sequence[Runner], threads: int
) -> list[Engine]:
    """Start the engines of the runners."""
    by_engine: dict[str, list[Runner]] = {}
    for runner in runners:
        by_engine.setdefault(runner.engine, []).append(runner)
    engines: list[Engine] = []
    try:
        for name, own in by_engine.items():
            if name == "eaglerl":
                engines.append(Eaglerl(folder, own, threads))
            else:
                kind = {"llama.cpp": LlamaCpp, "OpenVINO": OpenVINO}[name]
                engines.append(kind(folder, model, own, threads))
    except BaseException:
        for engine in engines:
            engine.close()
        raise
    return engines
