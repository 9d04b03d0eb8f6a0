"""eaglerl beside llama.cpp: the same weights, prompts and threads, all runners in turn.

    python benchmarks/peers/compare_peers.py FOLDER [--per-file 2] [--repeats 3]

FOLDER gets an environment with llama-cpp-python, which builds llama.cpp for this processor in 20
minutes or more, GGUF files of the packaged model in other types, and the results. Each runner is a
process that keeps its model; one works at a time. The order rotates from prompt to prompt. Times
are those of the prompt and of decoding, apart.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import gguf
import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoTokenizer, GenerationConfig

from eaglerl.evaluation.running.processor import describe_machine
from eaglerl.files import atomic_path
from eaglerl.gguf_convert.gguf_file import GGUFFile, read_gguf
from eaglerl.prepare import prepare_model

HERE = Path(__file__).resolve().parent
LLAMA = "llama-cpp-python==0.3.36"
#: Runners of eaglerl: precision and tree.
OURS = [
    (precision, tree)
    for precision, trees in (
        ("native", ("plain", "5/3/2", "6/2/4", "8/3/3", "policy")),
        ("int8", ("plain", "5/3/2", "6/2/4", "8/3/3", "policy")),
        ("float32", ("plain", "6/2/4", "policy")),
    )
    for tree in trees
]
TYPES = ("Q4_1", "Q8_0", "F32")


class Worker:
    """A process that answers tasks, one JSON object a line."""

    def __init__(self, python: str, script: str) -> None:
        self._process = subprocess.Popen(
            [python, str(HERE / script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **task: Any) -> dict[str, Any]:
        """Send a task and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(task), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with {self._process.wait()}")
        return json.loads(line)


@dataclass
class Runner:
    """A way to decode, and the measurements of every prompt and repeat."""

    name: str
    worker: Worker
    task: dict[str, Any]
    answers: list[dict[str, Any]] = field(default_factory=list)

    def rates(self, repeats: int) -> tuple[float, float]:
        """Return tokens per second of decoding alone and prompt included, medians of repeats."""
        each = len(self.answers) // repeats
        parts = [self.answers[i * each : (i + 1) * each] for i in range(repeats)]
        decode = [
            sum(len(a["tokens"]) - 1 for a in part) / sum(a["decode_seconds"] for a in part)
            for part in parts
        ]
        whole = [
            sum(len(a["tokens"]) for a in part)
            / sum(a["decode_seconds"] + a["prompt_seconds"] for a in part)
            for part in parts
        ]
        return statistics.median(decode), statistics.median(whole)


def environment(folder: Path) -> str:
    """Return the Python of an environment with llama-cpp-python; make it first if need be."""
    python = folder / "llama" / "bin" / "python"
    if not (folder / "llama" / "complete").exists():
        venv.create(folder / "llama", with_pip=True, clear=True)
        flags = {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "FORCE_CMAKE": "1"}
        command = [python, "-m", "pip", "install", "--quiet", "--no-binary", "llama-cpp-python"]
        subprocess.run([*map(str, command), LLAMA], check=True, env={**os.environ, **flags})
        (folder / "llama" / "complete").touch()
    return str(python)


def retyped(source: Path, kind: str, folder: Path) -> Path:
    """Return the packaged file with its matrices in another type, of the same expanded weights."""
    target = folder / f"model-{kind}.gguf"
    if kind == "Q4_1":
        return source
    if not target.exists():
        with atomic_path(target) as temporary:
            _write_retyped(read_gguf(source), gguf.GGMLQuantizationType[kind], temporary)
    return target


def _write_retyped(file: GGUFFile, kind: gguf.GGMLQuantizationType, path: Path) -> None:
    reader = gguf.GGUFReader(file.path)
    writer = gguf.GGUFWriter(path, file.text("general.architecture"))
    for name, value in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        content = value.contents()
        if value.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, content)
        else:
            writer.add_key_value(name, content, value.types[0])
    for name, tensor in file.tensors.items():
        values = file.expand(name)
        if len(tensor.shape) == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_prompts(questions: Path, per_file: int, model: Path) -> list[list[int]]:
    """Return the first questions of every file as chat prompts."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = []
    for file in sorted(questions.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines()[:per_file]:
            chat = [{"role": "user", "content": json.loads(line)["turns"][0]}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            prompts.append(tokenizer(text, add_special_tokens=False).input_ids)
    return prompts


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for the peers and the results.")],
    questions: Path = HERE.parents[1] / "questions",
    per_file: int = 2,
    max_new_tokens: int = 128,
    repeats: int = 3,
    threads: int = 2,
) -> None:
    """Measure all runners and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    model = prepare_model()
    prompts = read_prompts(questions, per_file, model)
    theirs, ours = (
        Worker(environment(folder), "llama_worker.py"),
        Worker(sys.executable, "eaglerl_worker.py"),
    )
    eos = GenerationConfig.from_pretrained(model).eos_token_id
    common = {
        "count": max_new_tokens,
        "threads": threads,
        "stop": eos if isinstance(eos, list) else [eos],
    }
    runners = [
        Runner(f"eaglerl {precision}, {tree}", ours, {"model": precision, "tree": tree, **common})
        for precision, tree in OURS
    ]
    for kind in TYPES:
        file = retyped(model / "model.gguf", kind, folder)
        runners.append(Runner(f"llama.cpp {kind}", theirs, {"model": str(file), **common}))
    for runner in runners:
        runner.worker.ask(**{**runner.task, "prompt": prompts[0][-16:], "count": 8})
    schedule = [prompt for _ in range(repeats) for prompt in prompts]
    for index, prompt in enumerate(track(schedule, description="decoding")):
        shift = index % len(runners)
        for runner in runners[shift:] + runners[:shift]:
            runner.answers.append(runner.worker.ask(**runner.task, prompt=prompt))
    report(runners, len(prompts), repeats, folder / "peers.json")


def report(runners: list[Runner], prompts: int, repeats: int, path: Path) -> None:
    """Print the table and write every answer."""
    reference = next(r for r in runners if r.name == "eaglerl float32, plain")
    table = Table(title=f"{prompts} prompts, greedy, {repeats} repeats ({describe_machine()})")
    for title in ("runner", "decode, tokens/s", "prompt included", "texts of float32"):
        table.add_column(title, justify="left" if title == "runner" else "right")
    for runner in runners:
        decode, whole = runner.rates(repeats)
        pairs = list(zip(runner.answers[:prompts], reference.answers[:prompts], strict=True))
        same = sum(one["tokens"] == other["tokens"] for one, other in pairs)
        table.add_row(runner.name, f"{decode:.1f}", f"{whole:.1f}", f"{same} of {prompts}")
    Console(width=100).print(table)
    with atomic_path(path) as temporary:
        record = {"machine": describe_machine(), "answers": {r.name: r.answers for r in runners}}
        temporary.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
