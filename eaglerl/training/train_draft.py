"""Training of an EAGLE-3 draft head on what its target wrote."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.files import exclusive_folder
from eaglerl.runs.extras import check_train_extra
from eaglerl.runs.head_run import HeadRun
from eaglerl.training.batches import draft_row_count
from eaglerl.training.data import Row, read_rows, split_rows
from eaglerl.training.features import FeatureDataset, extract_features
from eaglerl.training.initial_head import choose_feature_layers, make_head, read_initial_head
from eaglerl.training.precision import resolve_dtype
from eaglerl.training.train_options import RESUMABLE_CHANGES, TrainOptions
from eaglerl.training.training_loop import TrainingLoop
from eaglerl.training.ttt import TrainingTimeTest
from eaglerl.training.validation import DraftMetrics

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a run.

    Attributes:
        head_path: folder of the trained head.
        steps: optimizer steps done.
        validation: metrics on all held-out rows.
    """

    head_path: Path
    steps: int
    validation: DraftMetrics


def train_draft(
    target: str | Path,
    data: Sequence[str | Path],
    features: str | Path,
    output: str | Path,
    options: TrainOptions | None = None,
    *,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a draft head for a target.

    Features that are missing on disk are computed first. If the run's folder has checkpoints,
    training continues from the newest, over the same rows in the same order; rows added to the
    data since then are left to later runs. Ctrl-C saves a checkpoint before it ends the run.

    Args:
        target: folder of the target model.
        data: JSONL files that `distill` wrote.
        features: folder for the target's features; may be shared by runs.
        output: folder of this run.
        options: how to train.
        progress: called with a sentence and the fraction done.

    Returns:
        The head's folder and its metrics.

    Raises:
        ValueError: a file or an option does not fit; the message names it.
        AlreadyLockedError: another process is at work in a folder.
        KeyboardInterrupt: the run was interrupted; its state is saved.
    """
    check_train_extra()
    options = options or TrainOptions()
    report = progress or (lambda stage, fraction: None)
    dtype = resolve_dtype(options.dtype)
    rows = read_rows(data)
    initial = read_initial_head(target, options)
    layers = choose_feature_layers(target, options, initial)
    _check_amount(rows)
    with exclusive_folder(output):
        return _train(
            target, rows, features, HeadRun(output), options, layers, initial, dtype, report
        )


def _train(
    target: str | Path,
    rows: Sequence[Row],
    features: str | Path,
    folder: HeadRun,
    options: TrainOptions,
    layers: tuple[int, int, int],
    initial: Eagle3DraftHead | None,
    dtype: torch.dtype,
    report: Progress,
) -> TrainResult:
    settings = {k: v for k, v in asdict(options).items() if k not in RESUMABLE_CHANGES}
    recorded = folder.check_settings({**settings, "rows": [row.digest for row in rows]})
    rows = _recorded_rows(rows, recorded["rows"])
    splits = split_rows(rows)
    shards = extract_features(
        target, rows, features, feature_layers=layers, dtype=dtype, progress=report
    )
    report("loading the target", 0.0)
    head, lm_head = make_head(target, splits[0], options, initial)
    train, held_out = (FeatureDataset(features, shards, split) for split in splits)
    ttt = TrainingTimeTest(head, lm_head, steps=options.ttt_steps, dtype=dtype)
    loop = TrainingLoop(head, ttt, train, held_out, options, folder, report)
    try:
        metrics = loop.run()
    finally:
        folder.close()
    return TrainResult(folder.head_path, loop.step, metrics)


def _check_amount(rows: Sequence[Row]) -> None:
    """Check that there are rows to train on and rows to validate on.

    Raises:
        ValueError: there are not; the message says what to do.
    """
    counts = [
        sum(draft_row_count(len(row.prompt), len(row.token_ids)) > 0 for row in split)
        for split in split_rows(rows)
    ]
    if all(counts):
        return
    raise ValueError(
        f"data must hold rows to train on and held-out ones, got {counts} of two tokens or more "
        f"among {len(rows)}: a tenth of the prompts is held out, by their hash. Extend the "
        "file: run `eaglerl distill` again with a larger --response-tokens"
    )


def _recorded_rows(rows: Sequence[Row], digests: Sequence[str]) -> list[Row]:
    """Return the rows that a run began with, in their original order."""
    known = {row.digest: row for row in rows}
    lost = sum(digest not in known for digest in digests)
    if lost:
        raise ValueError(
            f"data must still hold the rows that the run began with: {lost} are missing"
        )
    return [known[digest] for digest in digests]
