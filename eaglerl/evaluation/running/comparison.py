"""Decode the same questions with several modes, side by side in one process."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.evaluation.modes.baseline_modes import BaselineInputs
from eaglerl.evaluation.modes.mode_names import ModeSpec
from eaglerl.evaluation.modes.mode_setup import Resources, mode_fingerprint
from eaglerl.evaluation.modes.runners import Decoding
from eaglerl.evaluation.questions.answer_files import write_answers
from eaglerl.evaluation.questions.question_files import (
    Question,
    choose_split,
    files_digest,
    most_tokens,
    prepare_questions,
    read_questions,
)
from eaglerl.evaluation.results.json_lines import LineWriter
from eaglerl.evaluation.results.records import (
    MANIFEST_NAME,
    RECORDS_NAME,
    Comparison,
    Manifest,
    Mode,
    load_comparison,
    read_records,
)
from eaglerl.evaluation.running.agreement import check_agreement
from eaglerl.evaluation.running.comparison_options import CompareOptions, Extras
from eaglerl.evaluation.running.comparison_process import Elsewhere, Progress, Run
from eaglerl.evaluation.running.processor import describe_machine
from eaglerl.evaluation.running.question_groups import check_groups
from eaglerl.files import exclusive_folder
from eaglerl.fingerprints import head_id, target_id


def compare(
    decoder: SpeculativeDecoder,
    target: str | Path,
    files: Sequence[Path],
    modes: Sequence[ModeSpec],
    output: str | Path,
    options: CompareOptions,
    extras: Extras | None = None,
    *,
    progress: Progress | None = None,
    elsewhere: Elsewhere | None = None,
) -> Comparison:
    """Decode questions with several modes and write every measurement to a folder.

    In each repeat, all modes decode a question before the next question begins. Their order rotates
    from question to question and is reversed in every other repeat. With ``options.group`` they
    take turns with groups of questions, see `question_groups`. Records that are already in the
    folder are not decoded again: the same call continues an interrupted comparison, and a call with
    one more mode extends a finished one. A policy that learns keeps its state between questions but
    not between processes, and modes share no state.

    Args:
        decoder: target, head and tokenizer.
        target: folder of the target, for transformers' own ``generate``.
        files: question files.
        modes: modes from `parse_modes`.
        output: folder of the comparison.
        options: settings of the comparison.
        extras: further inputs of some modes.
        progress: called with the current stage and the fraction done.
        elsewhere: other machines that decode in place of this process.

    Returns:
        All records in the folder, earlier ones included.

    Raises:
        ValueError: the folder holds another comparison, a mode lacks an input, or a file is
            malformed. Nothing has been decoded then.
        AlreadyLockedError: another process is writing to the folder.
    """
    progress = progress or (lambda stage, fraction: None)
    output = Path(output)
    run = _prepare(
        decoder, Path(target), files, modes, output, options, extras or Extras(), elsewhere
    )
    with exclusive_folder(output), LineWriter(output / RECORDS_NAME) as writer:
        done = {record.key for record in read_records(output / RECORDS_NAME)}
        decode = _decode_here if elsewhere is None else elsewhere.decode
        try:
            decode(run, output, writer, done, progress)
        finally:
            if (output / MANIFEST_NAME).exists():
                write_answers(output, load_comparison(output), decoder.tokenizer)
    return load_comparison(output)


def _decode_here(
    run: Run,
    output: Path,
    writer: LineWriter,
    done: set[tuple[str, int, str]],
    progress: Progress,
) -> None:
    labels = {task.mode.label for task in run.missing(done)}
    runners = run.runners(labels, run.manifest, selected=False)
    manifest = run.begin(output)
    if labels:
        manifest = run.select(manifest, output, progress)
        runners |= run.runners(labels, manifest, selected=True)
        run.decode(manifest, runners, writer, done, progress)


def _prepare(
    decoder: SpeculativeDecoder,
    target: Path,
    files: Sequence[Path],
    modes: Sequence[ModeSpec],
    output: Path,
    options: CompareOptions,
    extras: Extras,
    elsewhere: Elsewhere | None,
) -> Run:
    every = prepare_questions(
        read_questions(files),
        decoder.tokenizer,
        max_new_tokens=options.max_new_tokens,
        max_positions=decoder.target.max_positions,
    )
    scored = choose_split(every, options.split, options.per_file)
    validation: Mapping[str, Sequence[Question]] = {}
    if any(mode.kind == "tuned" for mode in modes):
        validation = {
            split: choose_split(every, other, options.validation_per_file)
            for split, other in (("test", "train"), ("train", "test"))
            if any(question.split == split for question in scored)
        }
    resources = _resources(decoder, target, options, extras, scored, validation)
    for mode in modes:
        for need in mode.needs:
            if not getattr(resources.inputs, need):
                raise ValueError(
                    f"the mode {mode.label!r} needs {need}: none was given, or every trace is of a "
                    "question that is decoded"
                )
    check_groups(len(scored), options.group, [mode.concurrency for mode in modes])
    manifest = Manifest(
        configuration=_configuration(files, options, decoder.target)
        | ({} if elsewhere is None else dict(elsewhere.configuration)),
        questions=tuple(question.to_dict() for question in scored),
        target_id=resources.target_id,
        head_id=resources.head_id,
        machine=describe_machine() if elsewhere is None else elsewhere.machine,
        versions=_versions(),
        modes={
            mode.label: Mode(
                mode.spec,
                mode.description,
                mode_fingerprint(mode, resources),
                concurrency=mode.concurrency,
            )
            for mode in modes
        },
    )
    if (output / MANIFEST_NAME).exists():
        check_agreement(Manifest.from_json(output), manifest, output)
    return Run(resources, tuple(scored), validation, tuple(modes), options, manifest)


def _resources(
    decoder: SpeculativeDecoder,
    target: Path,
    options: CompareOptions,
    extras: Extras,
    scored: Sequence[Question],
    validation: Mapping[str, Sequence[Question]],
) -> Resources:
    head = "" if decoder.draft_head is None else head_id(decoder.draft_head)
    ids = {"target_id": target_id(decoder.target), "head_id": head}
    for traces in extras.traces:
        traces.check_ids(**ids)
    known = {question.prompt_id for question in scored}
    inputs = BaselineInputs(
        actions=extras.actions,
        grid=options.grid,
        cost=extras.cost,
        traces=[t for traces in extras.traces for t in traces if t.prompt_id not in known],
        seed=options.seed,
    )
    selection_ids = {
        "tuned": [question.id for asked in validation.values() for question in asked],
        "hindsight": [question.id for question in scored],
    }
    decoding = Decoding(options.max_new_tokens, options.temperature, options.top_p)
    longest = max(
        most_tokens(question, decoder.tokenizer, options.max_new_tokens) for question in scored
    )
    return Resources(
        decoder, target, decoding, inputs, **ids, selection_ids=selection_ids, longest=longest
    )


def _configuration(
    files: Sequence[Path], options: CompareOptions, target: TargetModel
) -> dict[str, object]:
    own = asdict(options)
    # Only the modes whose tree is chosen depend on these: they count in those modes' fingerprints.
    for name in ("grid", "validation_per_file"):
        del own[name]
    if options.group is None:
        del own["group"]
    # Models of the same weights: `target_id` does not tell them apart.
    own |= {"precision": target.precision, "kv_cache_dtype": str(target.kv_cache_dtype)}
    return own | {"threads": torch.get_num_threads(), "files": files_digest(files)}


def _versions() -> dict[str, str]:
    packages = ("eaglerl", "torch", "transformers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
