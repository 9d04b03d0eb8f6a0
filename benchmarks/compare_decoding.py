"""Real questions, decoded greedily by every runner in turn: transformers, plain, constant trees.

The target runs in its file's own precision; plain decoding and one tree run in the others, too.

    python benchmarks/compare_decoding.py QUESTIONS_FOLDER [--per-file 8] [--max-new-tokens 128]

QUESTIONS_FOLDER holds `question.jsonl`-like files (`turns`: list of user turns; the first is used).
All runners decode a prompt one after another, in an order that rotates from prompt to prompt, in
one process. Times include the prefill. Prints the table and writes every measurement as JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoTokenizer

from eaglerl.eagle3 import NO_DRAFT, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.target.target_files import load_transformers_model
from eaglerl.evaluation.running.processor import describe_machine
from eaglerl.files import atomic_path
from eaglerl.prepare import default_draft_path, prepare_model

GRID = ((4, 1, 4), (6, 2, 4), (8, 2, 4), (8, 4, 2))
EAGLE_DEFAULT = (60, 7, 10)
#: The tree on which the other precisions of the target are compared, besides plain decoding.
PRECISION_TREE = (6, 2, 4)
PRECISIONS = ("int8", "float32")


@dataclass
class Runner:
    """A way to decode with its measurements so far, one entry per prompt."""

    name: str
    decode: Callable[[torch.Tensor], tuple[list[int], int]]
    per_prompt: list[dict[str, float]] = field(default_factory=list)

    def run(self, input_ids: torch.Tensor) -> list[int]:
        """Decode one prompt and record tokens, cycles and time."""
        started = time.perf_counter()
        output, cycles = self.decode(input_ids)
        seconds = time.perf_counter() - started
        self.per_prompt.append({"new_tokens": len(output), "seconds": seconds, "cycles": cycles})
        return output

    def total(self, name: str) -> float:
        """Return the sum of one measurement over all prompts."""
        return sum(entry[name] for entry in self.per_prompt)

    @property
    def tokens_per_second(self) -> float:
        """All tokens over all seconds."""
        return self.total("new_tokens") / self.total("seconds")


def read_prompts(folder: Path, per_file: int, tokenizer) -> list[torch.Tensor]:
    """Return the first questions of every file as chat prompts, (1, n) each."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise typer.BadParameter(f"{folder} holds no .jsonl file")
    prompts = []
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines()[:per_file]:
            chat = [{"role": "user", "content": json.loads(line)["turns"][0]}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            prompts.append(ids.input_ids)
    return prompts


def make_runners(
    model,
    decoder: SpeculativeDecoder,
    others: dict[str, SpeculativeDecoder],
    max_new_tokens: int,
) -> list[Runner]:
    """Return the runners: transformers first, plain decoding second, then trees and precisions."""

    def reference(input_ids: torch.Tensor) -> tuple[list[int], int]:
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        new = output[0, input_ids.shape[1] :].tolist()
        return new, len(new)

    def speculative(
        params: TreeParams, decoder: SpeculativeDecoder = decoder
    ) -> Callable[[torch.Tensor], tuple[list[int], int]]:
        def decode(input_ids: torch.Tensor) -> tuple[list[int], int]:
            output = decoder.generate(input_ids, params, max_new_tokens=max_new_tokens)
            # The first token comes from the prefill; a cycle yields the others.
            cycles = output.statistics.num_cycles
            return output.sequences[0, input_ids.shape[1] :].tolist(), cycles

        return decode

    trees = [TreeParams(*values) for values in (*GRID, EAGLE_DEFAULT)]
    return [
        Runner("transformers generate", reference),
        Runner("eaglerl plain (1/0/1)", speculative(NO_DRAFT)),
        *(Runner(f"tree {tree}", speculative(tree)) for tree in trees),
        *(
            Runner(f"{name}, {precision} target", speculative(params, other))
            for precision, other in others.items()
            for name, params in (
                ("plain", NO_DRAFT),
                (f"tree {'/'.join(map(str, PRECISION_TREE))}", TreeParams(*PRECISION_TREE)),
            )
        ),
    ]


def print_table(runners: list[Runner], prompts: int) -> None:
    """Print tokens per second, mean acceptance length and ratios of every runner."""
    reference, plain = runners[0], runners[1]
    table = Table(title=f"{prompts} prompts, greedy ({describe_machine()})")
    for title in (
        "runner",
        "tokens/s",
        "mean acceptance length",
        "/ generate",
        "/ plain",
        "identical",
    ):
        table.add_column(title, justify="left" if title == "runner" else "right")
    for one in runners:
        speed = one.tokens_per_second
        table.add_row(
            one.name,
            f"{speed:.1f}",
            ""
            if one is reference
            else f"{(one.total('new_tokens') - prompts) / one.total('cycles'):.2f}",
            f"{speed / reference.tokens_per_second:.2f}",
            f"{speed / plain.tokens_per_second:.2f}",
            f"{one.total('identical')} of {prompts}",
        )
    Console().print(table)


def main(
    questions: Annotated[Path, typer.Argument(help="Folder of question files.", exists=True)],
    per_file: int = 8,
    max_new_tokens: int = 128,
    draft_dtype: str = "auto",
    draft: Annotated[Path | None, typer.Option(help="Folder of the draft head.")] = None,
    output: Annotated[
        Path, typer.Option(help="JSON file of all measurements; an interrupted run is continued.")
    ] = Path("comparison.json"),
) -> None:
    """Measure all runners and print the table."""
    target = prepare_model()
    decoder = SpeculativeDecoder.from_pretrained(
        target, draft or default_draft_path(), draft_dtype=draft_dtype
    )
    others = {
        precision: SpeculativeDecoder.from_pretrained(
            target, draft or default_draft_path(), draft_dtype=draft_dtype, precision=precision
        )
        for precision in PRECISIONS
    }
    model = load_transformers_model(target, torch.float32)
    prompts = read_prompts(questions, per_file, AutoTokenizer.from_pretrained(target))
    runners = make_runners(model, decoder, others, max_new_tokens)
    settings = {
        "machine": describe_machine(),
        "questions": [file.name for file in sorted(questions.glob("*.jsonl"))],
        "per_file": per_file,
        "max_new_tokens": max_new_tokens,
        "draft_dtype": draft_dtype,
    }
    done = load(output, settings, runners)
    for runner in runners:
        runner.decode(prompts[0][:, -16:])
    for index in track(range(done, len(prompts)), description="decoding"):
        shift = index % len(runners)
        outputs = {one.name: one.run(prompts[index]) for one in runners[shift:] + runners[:shift]}
        for one in runners:
            one.per_prompt[-1]["identical"] = outputs[one.name] == outputs[runners[0].name]
        record = {**settings, "runners": {one.name: one.per_prompt for one in runners}}
        with atomic_path(output) as temporary:
            temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    print_table(runners, len(prompts))


def load(output: Path, settings: dict[str, object], runners: list[Runner]) -> int:
    """Load the measurements of an interrupted run; return the number of prompts that it decoded."""
    if not output.is_file():
        return 0
    record = json.loads(output.read_text(encoding="utf-8"))
    measured = record.pop("runners")
    if record != settings or set(measured) != {one.name for one in runners}:
        raise typer.BadParameter(f"{output} holds another comparison; name another --output")
    for one in runners:
        one.per_prompt = measured[one.name]
    return len(runners[0].per_prompt)


if __name__ == "__main__":
    typer.run(main)
