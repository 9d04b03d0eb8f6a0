"""What each precision and each format of weights costs in quality, against float32.

    python benchmarks/measure_quality.py QUESTIONS... [--tokens 16384] [--answers 8]
        [--output quality.json]

Two measures. On the text of the questions, cut into windows: perplexity, KL divergence from
float32's distribution, and how often both have the same most probable token. On greedy answers
that float32 wrote: how often a variant, given the answer so far, chooses the answer's next token,
and how many tokens pass until it first chooses another. All passes have at most 64 rows, so that
a row gets the bits that decoding gives it.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import torch
import typer

from eaglerl.eagle3 import NO_DRAFT, SpeculativeDecoder, load_target
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.make_target import TargetPrecision
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.target.weight_files import WeightFormat
from eaglerl.evaluation.questions.question_files import (
    Question,
    chat_ids,
    files_digest,
    question_files,
    read_questions,
)
from eaglerl.evaluation.running.processor import describe_machine
from eaglerl.files import atomic_path
from eaglerl.prepare import prepare_model

ROWS = 64
WINDOW = 512
SEED = 0
FORMATS = ["stored", "q8_0", "q4_1", "q4_0"]


@dataclass
class Quality:
    """Sums over all tokens of one variant.

    Attributes:
        tokens: scored tokens of the text.
        loss: their negative log-likelihood, in nats.
        divergence: KL(float32 || variant) summed over them, in nats.
        same_choice: of them, those whose most probable token is float32's.
        answer_tokens: tokens of float32's answers.
        agreed: of them, those that the variant chooses as well.
        until_difference: tokens of each answer before the first that differs; all if none does.
        unchanged: answers without a difference.
    """

    tokens: int = 0
    loss: float = 0.0
    divergence: float = 0.0
    same_choice: int = 0
    answer_tokens: int = 0
    agreed: int = 0
    until_difference: list[int] = field(default_factory=list)
    unchanged: int = 0

    def summary(self) -> dict[str, float]:
        """Return the figures of the table."""
        answers = max(1, len(self.until_difference))
        return {
            "perplexity": math.exp(self.loss / max(1, self.tokens)),
            "kl_divergence": self.divergence / max(1, self.tokens),
            "same_choice": self.same_choice / max(1, self.tokens),
            "agreement": self.agreed / max(1, self.answer_tokens),
            "tokens_until_difference": sum(self.until_difference) / answers,
            "answers_unchanged": self.unchanged / answers,
        }


def logits_of(target: TargetModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits (n, vocab_size) of a text in passes of at most `ROWS` rows."""
    cache, found = target.new_cache(len(tokens)), []
    for begin in range(0, len(tokens), ROWS):
        part = tokens[begin : begin + ROWS]
        logits = target.forward(RowBatch.causal(part, begin), cache).logits
        assert logits is not None, "all rows were asked for"
        found.append(logits.float())
        cache.advance(len(part))
    return torch.cat(found)


def score_text(
    targets: dict[str, TargetModel], reference: TargetModel, windows: Sequence[torch.Tensor]
) -> dict[str, Quality]:
    """Score every window of a text with all targets, each token behind those of its window."""
    results = {name: Quality() for name in targets}
    for window in windows:
        expected = logits_of(reference, window)[:-1].log_softmax(-1)
        chosen, likely = expected.argmax(-1), expected.exp()
        for name, target in targets.items():
            found = logits_of(target, window)[:-1].log_softmax(-1)
            result = results[name]
            result.tokens += len(found)
            result.loss -= float(found.gather(1, window[1:, None]).double().sum())
            result.divergence += float((likely * (expected - found)).double().sum())
            result.same_choice += int((found.argmax(-1) == chosen).sum())
    return results


def score_answers(
    targets: dict[str, TargetModel],
    conversations: Sequence[tuple[torch.Tensor, torch.Tensor]],
    results: dict[str, Quality],
) -> None:
    """Add to `results` how far the targets agree with answers.

    Args:
        targets: by name.
        conversations: prompt and answer, both (n,) token ids.
        results: by name, as `score_text` returns them.
    """
    for prompt, answer in conversations:
        text = torch.cat((prompt, answer))
        for name, target in targets.items():
            same = logits_of(target, text)[len(prompt) - 1 : -1].argmax(-1) == answer
            result = results[name]
            result.answer_tokens += len(answer)
            result.agreed += int(same.sum())
            before = int(same.long().cumprod(0).sum())
            result.until_difference.append(before)
            result.unchanged += before == len(answer)


def text_windows(
    questions: Sequence[Question], tokenizer: Any, tokens: int
) -> Iterator[torch.Tensor]:
    """Cut the text of the questions, in a random but fixed order, into windows of token ids."""
    order = list(questions)
    random.Random(SEED).shuffle(order)
    text = "\n\n".join("\n\n".join(question.turns) for question in order)
    ids = torch.tensor(tokenizer(text).input_ids[:tokens])
    for begin in range(0, len(ids) - WINDOW + 1, WINDOW):
        yield ids[begin : begin + WINDOW]


def write_answers(
    decoder: SpeculativeDecoder, questions: Sequence[Question], new_tokens: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the first turn of every question as a prompt, and the target's greedy answer."""
    written = []
    for question in questions:
        prompt = torch.tensor(chat_ids(decoder.tokenizer, question.turns[:1], ()))
        output = decoder.generate(prompt, NO_DRAFT, max_new_tokens=new_tokens)
        written.append((prompt, output.sequences[0, len(prompt) :].cpu()))
    return written


def load_variants(path: Path, formats: Sequence[str]) -> dict[str, TargetModel]:
    """Load the model with weights in these formats, each in every precision that reads them."""
    variants: dict[str, TargetModel] = {}
    for weights in formats:
        for precision in get_args(TargetPrecision):
            if precision not in ("auto", "float32"):
                variants[f"{weights}, {precision}"] = load_target(
                    path,
                    feature_layers=(),
                    weights=cast("WeightFormat", weights),
                    precision=cast("TargetPrecision", precision),
                )
    return variants


def report(results: dict[str, Quality]) -> str:
    """Return the table, in Markdown."""
    lines = [
        "| weights, precision | perplexity | KL from float32 | same most probable token | greedy "
        "tokens that agree | tokens until the first difference | answers unchanged |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        one = result.summary()
        lines.append(
            f"| {name} | {one['perplexity']:.3f} | {one['kl_divergence']:.5f} | "
            f"{one['same_choice']:.2%} | {one['agreement']:.2%} | "
            f"{one['tokens_until_difference']:.1f} | {one['answers_unchanged']:.0%} |"
        )
    return "\n".join(lines)


def main(
    questions: Annotated[list[Path], typer.Argument(help="Question files, or folders of them.")],
    tokens: Annotated[int, typer.Option(min=WINDOW, help="Tokens of the text.")] = 16384,
    answers: Annotated[int, typer.Option(min=1, help="Questions answered of each file.")] = 8,
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    formats: Annotated[
        list[str], typer.Option("--weights", help="Formats of the weights, see `load_target`.")
    ] = FORMATS,
    model: Annotated[Path | None, typer.Option(help="Folder of the target.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Print the table, and write the figures behind it."""
    path, files = model or prepare_model(), question_files(questions)
    known = read_questions(files)
    asked = [
        question
        for file in files
        for question in [one for one in known if one.domain == file.stem][:answers]
    ]
    with torch.inference_mode():
        decoder = SpeculativeDecoder.from_pretrained(path, None, precision="float32")
        targets = {"expanded, float32": decoder.target} | load_variants(path, formats)
        windows = list(text_windows(known, decoder.tokenizer, tokens))
        results = score_text(targets, decoder.target, windows)
        score_answers(targets, write_answers(decoder, asked, new_tokens), results)
    typer.echo(report(results))
    if output is not None:
        data = {
            "machine": describe_machine(),
            "questions": files_digest(files),
            "window": WINDOW,
            "answers": len(asked),
            "new_tokens": new_tokens,
            "results": {name: asdict(one) | one.summary() for name, one in results.items()},
        }
        with atomic_path(output) as temporary:
            temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
