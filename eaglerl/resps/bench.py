"""Answers to one bench by a constant tree, a policy that learns meanwhile, or a saved policy.

Answers are written to the answer file line by line, and what a policy has learned to its
checkpoints question by question: the same call continues an interrupted run.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.policy import TreeParams
from eaglerl.envs.observations import draft_head_of
from eaglerl.evaluation.modes.runners import DecoderRunner, Decoding, answer
from eaglerl.evaluation.questions.answer_files import answer_choice
from eaglerl.evaluation.questions.answer_schema import AnswerSchema, MeasuredAnswerSchema
from eaglerl.evaluation.questions.question_files import (
    Question,
    files_digest,
    prepare_questions,
    read_questions,
)
from eaglerl.evaluation.results.json_lines import LineWriter, read_whole_lines
from eaglerl.files import atomic_path, exclusive_file
from eaglerl.fingerprints import head_id, target_id
from eaglerl.json_file import parse_json, read_lines
from eaglerl.prepare import sample_questions_path
from eaglerl.resps.policies.resps_policy import ReSpSPolicy

#: Where a bench's name is looked for, below the current folder.
BENCH_FOLDERS = ("data", "eagle/data")
_QUESTION_FILE = "question.jsonl"


@dataclass(frozen=True)
class EvaluationOptions:
    """What is decoded, and where the answers go.

    Attributes:
        bench: file of questions.
        answer_file: JSON lines, one per question, in the layout of EAGLE's.
        decoding: how the answers are decoded.
        question_begin: first question, from 0; None for the first one.
        question_end: question after the last one; None for all.
        resume: continue what the answer file and the checkpoints hold; otherwise both must be
            new, since nothing is overwritten.
    """

    bench: Path
    answer_file: Path
    decoding: Decoding
    question_begin: int | None = None
    question_end: int | None = None
    resume: bool = True

    def questions(self) -> list[Question]:
        """Return the chosen questions of the bench; no model is needed.

        Raises:
            ValueError: a line is not a question, or the range holds none.
        """
        every = read_questions([self.bench])
        begin, end = self.question_begin or 0, self.question_end
        if begin < 0 or (end is not None and end < 0) or not every[begin:end]:
            raise ValueError(
                f"question_begin and question_end must choose some of the {len(every)} questions "
                f"of {str(self.bench)!r}, got {self.question_begin} and {self.question_end}"
            )
        return every[begin:end]


@dataclass(frozen=True)
class EvaluationSummary:
    """The figures of an answer file, and the statistics of a policy in this process.

    Attributes:
        questions: number of answered questions.
        new_tokens: tokens of all answers.
        seconds: prefills included.
        tokens_per_second: ratio of the sums.
        acceptance_length: mean acceptance length: tokens per cycle, without those of prefills.
        policy: statistics of the policy; empty without one.
    """

    questions: int
    new_tokens: int
    seconds: float
    tokens_per_second: float
    acceptance_length: float
    policy: Mapping[str, Any]


def find_bench(name: str) -> Path:
    """Return the question file of a bench.

    Args:
        name: a file; a folder that holds ``question.jsonl``; the name of such a folder below
            ``data`` or ``eagle/data``; or the name of shipped sample questions.

    Raises:
        ValueError: there is none; the message lists the places searched.
    """
    folders = [Path(name), *(Path(folder) / name for folder in BENCH_FOLDERS)]
    places = [Path(name), *(folder / _QUESTION_FILE for folder in folders)]
    samples = sample_questions_path()
    if Path(name).name == name:
        places.append(samples / f"{name}.jsonl")
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place) for place in places)
    shipped = ", ".join(sorted(file.stem for file in samples.glob("*.jsonl")))
    raise ValueError(
        f"bench_name must name a file of questions, got {name!r}; none of {looked} exists. Shipped "
        f"are the samples {shipped}"
    )


def evaluate(
    decoder: SpeculativeDecoder,
    chosen: TreeParams | ReSpSPolicy,
    options: EvaluationOptions,
    *,
    model_id: str,
    progress: Callable[[str, float], None] | None = None,
) -> EvaluationSummary:
    """Answer the questions of a bench that are not answered yet.

    A policy in training mode learns from every cycle, and its seed decides the order of the
    questions. It is saved after each question, before the answer is written: a run that is killed
    in between learns from that question twice.

    Args:
        decoder: the decoder.
        chosen: a constant tree or a policy.
        options: see `EvaluationOptions`.
        model_id: name of the model in the answers.
        progress: called with a stage and the fraction done.

    Raises:
        ValueError: the answer file or the checkpoints are of another run; nothing has been decoded.
        AlreadyLockedError: another process is writing the answer file or the checkpoints.
    """
    questions = prepare_questions(
        options.questions(),
        decoder.tokenizer,
        max_new_tokens=options.decoding.max_new_tokens,
        max_positions=decoder.target.max_positions,
    )
    run = _run_digest(decoder, chosen, options, model_id)
    with exclusive_file(options.answer_file):
        return _evaluate(decoder, chosen, options, questions, run, model_id, progress)


def _evaluate(
    decoder: SpeculativeDecoder,
    chosen: TreeParams | ReSpSPolicy,
    options: EvaluationOptions,
    questions: Sequence[Question],
    run: str,
    model_id: str,
    progress: Callable[[str, float], None] | None,
) -> EvaluationSummary:
    policy = None if isinstance(chosen, TreeParams) else chosen
    path = options.answer_file
    done = _answered(options, run)
    left = [question for question in questions if question.id not in done]
    learner = policy if policy is not None and policy.training_mode else None
    if learner is not None:
        _resume(learner, len(done), resume=options.resume)
        order = np.random.default_rng(learner.settings.seed).permutation(len(left))
        left = [left[index] for index in order]
    runner = _runner(decoder, chosen)
    with LineWriter(path) as writer:
        for count, question in enumerate(left):
            if progress is not None:
                progress(question.id, count / len(left))
            turns = answer(runner, question, decoder.tokenizer, options.decoding, seed=0)
            if learner is not None:
                learner.end_sequence()
                learner.save_checkpoint()
            choice = answer_choice(0, turns, decoder.tokenizer)
            writer.append(_line(question, _answer_id(run, question.id), model_id, choice))
    _put_in_order(path, options.bench)
    return summarise_answers(path, _policy_statistics(policy, runner))


def summarise_answers(path: Path, policy: Mapping[str, Any] | None = None) -> EvaluationSummary:
    """Return the figures of an answer file.

    Args:
        path: the file.
        policy: statistics of the policy.
    """
    tokens = cycles = of_cycles = questions = 0
    seconds = 0.0
    for _, line in read_whole_lines(path, MeasuredAnswerSchema, "answers"):
        questions += 1
        for choice in line.choices:
            for new, last, took in zip(
                choice.new_tokens, choice.idxs, choice.wall_time, strict=True
            ):
                tokens += new
                seconds += took
                # The first token is the prefill's.
                of_cycles += new - 1
                cycles += last + 1 if new > 1 else 0
    return EvaluationSummary(
        questions, tokens, seconds, tokens / seconds if seconds else 0.0,
        of_cycles / cycles if cycles else 0.0, dict(policy or {}),
    )  # fmt: skip


def _run_digest(
    decoder: SpeculativeDecoder,
    chosen: TreeParams | ReSpSPolicy,
    options: EvaluationOptions,
    model_id: str,
) -> str:
    """Return a digest of everything that an answer depends on, except the range of questions."""
    mode: dict[str, Any]
    if isinstance(chosen, TreeParams):
        mode = {"tree": [chosen.total_tokens, chosen.depth, chosen.top_k]}
    else:
        mode = {"policy": chosen.configuration, "learns": chosen.training_mode}
        if not chosen.training_mode:
            weights = chosen.weights.tensors()
            parts = (weights[name].numpy().tobytes() for name in sorted(weights))
            mode["weights"] = hashlib.sha256(b"".join(parts)).hexdigest()
    content = {
        **mode,
        "model_id": model_id,
        "decoding": asdict(options.decoding),
        "bench": files_digest([options.bench]),
        "target_id": target_id(decoder.target),
        "head_id": head_id(draft_head_of(decoder)),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _answered(options: EvaluationOptions, run: str) -> set[str]:
    """Return the ids of the questions that the answer file holds.

    Raises:
        ValueError: the file is of another run, or it must be new.
    """
    path = options.answer_file
    known = {
        _answer_id(run, question.id): question.id for question in read_questions([options.bench])
    }
    found: set[str] = set()
    for number, line in read_whole_lines(path, MeasuredAnswerSchema, "answers"):
        if not options.resume:
            raise ValueError(
                f"answer_file must be new without resuming, got {str(path)!r}: remove it, or name "
                "another"
            )
        if line.answer_id not in known:
            raise ValueError(
                f"line {number} of {str(path)!r} is of another run: another model, other questions "
                "or other flags. Use the same, or name another answer_file"
            )
        found.add(known[line.answer_id])
    return found


def _resume(policy: ReSpSPolicy, answered: int, *, resume: bool) -> None:
    """Resume a policy from its checkpoints.

    Raises:
        ValueError: there are none although questions are answered, or there must be none.
    """
    policy.hold_checkpoints()
    newest = policy.get_resume_info()["checkpoint"]
    if not resume:
        if newest is not None:
            raise ValueError(
                f"checkpoint_dir must hold no checkpoint without resuming, got {newest!r}: remove "
                "it, or name another folder"
            )
    elif not policy.resume() and answered:
        raise ValueError(
            f"checkpoint_dir must hold what was learned from the {answered} questions that are "
            "answered, got none: name its folder, or another answer_file"
        )


def _runner(decoder: SpeculativeDecoder, chosen: TreeParams | ReSpSPolicy) -> DecoderRunner:
    if isinstance(chosen, TreeParams):
        return DecoderRunner(decoder, chosen)
    settings = chosen.settings
    alone = settings.reference or settings.reads_text or settings.spec.extras
    live = chosen if chosen.training_mode or alone else chosen.fused()
    return DecoderRunner(decoder, live, live)


def _policy_statistics(policy: ReSpSPolicy | None, runner: DecoderRunner) -> dict[str, Any]:
    if policy is None:
        return {}
    found = policy.get_performance_stats()
    hits, misses = runner.cache_counts() or (0, 0)
    if not policy.training_mode and not found["decisions"]:
        # A `FusedPolicy` decided, which counts no more than this.
        total = hits + misses
        return {"decisions": misses, "cache_hits": hits, "hit_rate": hits / total if total else 0.0}
    return found


def _line(
    question: Question, answer_id: str, model_id: str, choice: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "question_id": _question_id(question),
        "answer_id": answer_id,
        "model_id": model_id,
        "choices": [choice],
        "tstamp": time.time(),
    }


def _put_in_order(path: Path, bench: Path) -> None:
    """Sort the answers by their questions: a policy that learns answers in another order."""
    questions = read_questions([bench])
    places: dict[str | int | float, int] = {_question_id(q): i for i, q in enumerate(questions)}
    lines = []
    for line in read_lines(path, "answers"):
        given = parse_json(line.data, AnswerSchema, line.where).question_id
        if given not in places:
            raise ValueError(
                f"question_id of {line.where} must occur in {str(bench)!r}, got {given!r}"
            )
        lines.append((places[given], line.data))
    ordered = sorted(lines, key=lambda line: line[0])
    if ordered != lines:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"".join(data + b"\n" for _, data in ordered))


def _question_id(question: Question) -> int | str:
    name = question.id.removeprefix(f"{question.domain}/")
    return int(name) if name.isdecimal() else name


def _answer_id(run: str, question: str) -> str:
    return hashlib.sha256(f"{run} {question}".encode()).hexdigest()[:22]
