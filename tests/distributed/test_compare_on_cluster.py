"""A comparison on a cluster decodes what one machine decodes, each question on one worker."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.cli.shared.options import DecoderSettings, load_decoder
from eaglerl.distributed.cluster import Cluster
from eaglerl.distributed.compare import ClusterRun
from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.eagle3.policy import TreeParams
from eaglerl.evaluation.modes.mode_names import parse_modes
from eaglerl.evaluation.results.records import RECORDS_NAME, Comparison, Record
from eaglerl.evaluation.running.comparison import compare
from eaglerl.evaluation.running.comparison_options import CompareOptions

from .conftest import one_killed

GRID = (TreeParams(4, 1, 2), TreeParams(6, 2, 4))
OPTIONS = CompareOptions(
    max_new_tokens=10, repeats=2, validation_per_file=1, grid=GRID, split="all", temperature=0.7
)
# What a constant tree drafts depends on no time.
CONSTANT = ("generate", "plain", "tree:4/1/2")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of questions; two have two turns."""
    rows = [
        {"question_id": i, "turns": [f"Tell me of {i}.", "And then?"][: 1 + (i < 2)]}
        for i in range(5)
    ]
    file = tmp_path_factory.mktemp("questions") / "talk.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def settings(tiny_folders: SimpleNamespace) -> DecoderSettings:
    return DecoderSettings(model=str(tiny_folders.target), draft=tiny_folders.head, threads=1)


@pytest.fixture(scope="module")
def decoder(settings: DecoderSettings) -> SpeculativeDecoder:
    return load_decoder(settings)


@pytest.fixture
def run(
    questions: Path, settings: DecoderSettings, decoder: SpeculativeDecoder
) -> Callable[..., Comparison]:
    def run_modes(folder: Path, *modes: str, **more: Any) -> Comparison:
        target = Path(settings.model)
        return compare(decoder, target, [questions], parse_modes(modes), folder, OPTIONS, **more)

    return run_modes


def without_times(record: Record) -> dict[str, Any]:
    content = record.to_dict()
    for name in ("run", "started", "load", "processor_share"):
        content.pop(name)
    for turn in content["turns"]:
        drafted = turn["cycles"] if record.mode in CONSTANT else {}
        for part in (turn, drafted):
            for name in [name for name in part if name.endswith("_seconds")]:
                part.pop(name)
        turn["cycles"] = drafted
    return content


def test_records_are_equal(
    cluster: Cluster, settings: DecoderSettings, run: Callable[..., Comparison], tmp_path: Path
) -> None:
    modes = ("plain", "tree:4/1/2", "tuned", "auto")
    here = run(tmp_path / "here", *modes)
    there = run(tmp_path / "there", *modes, elsewhere=ClusterRun(cluster, settings))
    assert [*map(without_times, there.records)] == [*map(without_times, here.records)]
    assert len(there.records) == 5 * 2 * len(modes)
    assert there.manifest.questions == here.manifest.questions
    runs = there.manifest.runs
    workers = [index for index, one in enumerate(runs) if "node" in one]
    assert {record.run for record in there.records} <= {*workers}
    for question, repeat in {(record.question, record.repeat) for record in there.records}:
        unit = [one for one in there.records if (one.question, one.repeat) == (question, repeat)]
        assert len({record.run for record in unit}) == 1
    answers = [*tmp_path.glob("*/answers/*/talk.jsonl")]
    assert len(answers) == 2 * len(modes)
    # With one more mode, its speed would be divided by that of another node.
    with pytest.raises(ValueError, match="all modes of a question are measured together"):
        run(tmp_path / "there", *modes, "tree:2/1/1", elsewhere=ClusterRun(cluster, settings))
    with pytest.raises(ValueError, match="ray is True there, None now"):
        run(tmp_path / "there", *modes)


@pytest.mark.slow
def test_killed_workers_and_commands(
    cluster: Cluster,
    settings: DecoderSettings,
    run: Callable[..., Comparison],
    tmp_path: Path,
) -> None:
    decoded = []

    def interfere(stage: str, fraction: float) -> None:
        if stage.startswith("repeat"):
            decoded.append(stage)
            if len(decoded) == 5:
                raise KeyboardInterrupt

    elsewhere = ClusterRun(cluster, settings)
    with one_killed("_measure_unit"), pytest.raises(KeyboardInterrupt):
        run(tmp_path / "there", *CONSTANT, elsewhere=elsewhere, progress=interfere)
    lines = (tmp_path / "there" / RECORDS_NAME).read_text().splitlines()
    assert len(lines) == 5 * len(CONSTANT)
    there = run(tmp_path / "there", *CONSTANT, elsewhere=elsewhere, progress=interfere)
    assert (tmp_path / "there" / RECORDS_NAME).read_text().splitlines()[: len(lines)] == lines
    here = run(tmp_path / "here", *CONSTANT)
    assert [*map(without_times, there.records)] == [*map(without_times, here.records)]
    assert len(decoded) == 10


@pytest.mark.slow
def test_the_command(
    cluster: Cluster, questions: Path, tiny_folders: SimpleNamespace, tmp_path: Path
) -> None:
    options = ["-n", "8", "--repeats", "1", "--per-file", "2", "--split", "all", "--threads", "1"]
    arguments = ["compare", str(tmp_path / "new"), str(questions), "-M", "tree:4/1/2", *options]
    result = CliRunner().invoke(app, [*arguments, "--ray", "auto", *tiny_folders.arguments])
    assert result.exit_code == 0, result.output
    assert "Ray cluster, 1 threads for each worker" in result.stdout


def test_presets_are_refused(questions: Path, tmp_path: Path) -> None:
    arguments = ["compare", str(tmp_path / "new"), str(questions), "--preset", "ours"]
    result = CliRunner().invoke(app, [*arguments, "--ray", "auto"])
    assert result.exit_code == 2
    assert "the policies of --preset learn on this machine" in result.output
