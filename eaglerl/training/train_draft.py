"""Training of an EAGLE-3 draft head on what its target wrote."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from eaglerl.training.data import Row, read_rows, split_rows
from eaglerl.training.features import (
    HELD_OUT,
    TRAIN,
    FeatureDataset,
    Shard,
    extract_features,
    read_index,
)
from eaglerl.training.initial_head import make_head
from eaglerl.training.precision import resolve_dtype
from eaglerl.training.run_folder import RunFolder
from eaglerl.training.train_options import RESUMABLE_CHANGES, TrainOptions
from eaglerl.training.training_loop import TrainingLoop
from eaglerl.training.ttt import TrainingTimeTest
from eaglerl.training.validation import DraftMetrics

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a run.

    Attributes:
        head_path: Folder of the trained head.
        steps: Optimizer steps done.
        validation: Metrics on all held-out rows.
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
    """Trains a draft head for a target.

    Features that are missing on disk are computed first. A run whose folder has checkpoints goes
    on with the newest, over the same rows in the same order; rows that were added to the data
    since it began are left to later runs. Ctrl-C saves a checkpoint first.

    Args:
        target: Folder of the target model.
        data: JSONL files that `distill` wrote.
        features: Folder for the target's features; may be shared by runs.
        output: Folder of this run.
        options: How to train.
        progress: Called with a sentence and the fraction done.

    Returns:
        Where the head lies and how good it is.

    Raises:
        ValueError: A file or an option does not fit; the message names it.
        KeyboardInterrupt: The run was interrupted; its state is saved.
    """
    options = options or TrainOptions()
    report = progress or (lambda stage, fraction: None)
    dtype = resolve_dtype(options.dtype)
    rows = read_rows(data)
    train_rows, held_out_rows = split_rows(rows)
    if not train_rows or not held_out_rows:
        raise ValueError(
            "data must hold rows to train on and held-out ones, got "
            f"{len(train_rows)} and {len(held_out_rows)}"
        )
    folder = RunFolder(output)
    if folder.has_settings:
        shards = read_index(features)
    else:
        shards = extract_features(target, rows, features, dtype=dtype, progress=progress)
    settings = {k: v for k, v in asdict(options).items() if k not in RESUMABLE_CHANGES}
    recorded = folder.settle({**settings, "shards": [shard.file for shard in shards]})
    shards = _recorded_shards(shards, recorded["shards"], rows)
    used = {digest for shard in shards for digest in shard.rows}
    report("loading the target", 0.0)
    head, lm_head = make_head(target, [row for row in train_rows if row.digest in used], options)
    datasets = [
        FeatureDataset(features, [shard for shard in shards if shard.split == split])
        for split in (TRAIN, HELD_OUT)
    ]
    ttt = TrainingTimeTest(head, lm_head, steps=options.ttt_steps, dtype=dtype)
    loop = TrainingLoop(head, ttt, *datasets, options, folder, report)
    try:
        metrics = loop.run()
    finally:
        folder.close()
    return TrainResult(folder.head_path, loop.step, metrics)


def _recorded_shards(
    shards: Sequence[Shard], names: Sequence[str], rows: Sequence[Row]
) -> list[Shard]:
    """Returns the shards that a run began with; its draft vocabulary was chosen from their rows."""
    known = {shard.file: shard for shard in shards}
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"features must still hold the shards that the run began with: {missing}")
    digests = {row.digest for row in rows}
    lost = sum(digest not in digests for name in names for digest in known[name].rows)
    if lost:
        raise ValueError(f"data must still hold the rows that the run began with: {lost} lack")
    return [known[name] for name in names]
