"""Traces that a cluster records are those of one machine, file by file."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.cli.shared.options import DecoderSettings, load_decoder
from eaglerl.distributed.cluster import Cluster
from eaglerl.distributed.record import record_on
from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.traces.recording import Prompt, RecordOptions, RecordProgress, record

from .conftest import one_killed

OPTIONS = RecordOptions(top_ks=(1, 2), max_depth=2, max_new_tokens=40, slots=3)


def prompts() -> list[Prompt]:
    return [
        Prompt(tuple(range(index + 5, index + 8 + index % 4)), f"domain {index % 2}")
        for index in range(20)
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.fixture(scope="module")
def settings(
    tiny_folders: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> DecoderSettings:
    """Of a target whose texts end after different numbers of tokens."""
    target = tmp_path_factory.mktemp("ends") / "target"
    shutil.copytree(tiny_folders.target, target)
    ends = [*range(0, 49152, 20)]
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return DecoderSettings(model=str(target), draft=tiny_folders.head, threads=1)


@pytest.fixture(scope="module")
def decoder(settings: DecoderSettings) -> SpeculativeDecoder:
    return load_decoder(settings)


def test_files_are_equal(
    cluster: Cluster, settings: DecoderSettings, decoder: SpeculativeDecoder, tmp_path: Path
) -> None:
    """Those of one run, and of two runs of which the second continues."""
    elsewhere = record_on(cluster, settings, OPTIONS)
    for counts in ((20,), (7, 20)):
        here, there = (tmp_path / f"{place} {len(counts)}" for place in ("here", "there"))
        for count in counts:
            record(decoder, prompts()[:count], here, options=OPTIONS)
            record(decoder, prompts()[:count], there, options=OPTIONS, run=elsewhere)
        assert contents(here) == contents(there)
    index = json.loads((there / "index.json").read_text())
    # Texts are complete in another order than they began, or the order was not compared.
    assert len({shard["positions"] for shard in index["shards"]}) > 5
    assert [shard["prompt_id"] for shard in index["shards"]] != [one.id for one in prompts()]


def test_a_limit_of_positions_holds_at_the_same_prompt(
    cluster: Cluster, settings: DecoderSettings, decoder: SpeculativeDecoder, tmp_path: Path
) -> None:
    for name, run in (("here", None), ("there", record_on(cluster, settings, OPTIONS))):
        record(decoder, prompts(), tmp_path / name, options=OPTIONS, max_positions=200, run=run)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert len(contents(tmp_path / "here")) < 18


@pytest.mark.slow
def test_the_work_of_a_killed_worker_is_done_again(
    cluster: Cluster, settings: DecoderSettings, decoder: SpeculativeDecoder, tmp_path: Path
) -> None:
    seen = []

    def count(progress: RecordProgress) -> None:
        seen.append(progress.prompts)

    elsewhere = record_on(cluster, settings, OPTIONS)
    record(decoder, prompts(), tmp_path / "here", options=OPTIONS)
    with one_killed("_record_unit"):
        record(
            decoder, prompts(), tmp_path / "there", options=OPTIONS, progress=count, run=elsewhere
        )
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert seen == list(range(1, 21))


@pytest.mark.slow
def test_the_command(cluster: Cluster, tiny_folders: SimpleNamespace, tmp_path: Path) -> None:
    questions = [{"question_id": i, "turns": [f"What is {i}?"]} for i in range(6)]
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(question) + "\n" for question in questions))
    options = ["--top-k", "1,2", "--max-depth", "2", "-n", "5", "--slots", "2"]
    for name, more in (("here", []), ("there", ["--ray", "auto"])):
        arguments = ["record", str(tmp_path / name), str(file), *options, *more]
        result = CliRunner().invoke(app, [*arguments, *tiny_folders.arguments, "--threads", "1"])
        assert result.exit_code == 0, result.output
    assert "a Ray cluster of 2 nodes, with 1 thread for each worker" in result.stderr
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_other_models_on_a_node_are_refused(
    cluster: Cluster, settings: DecoderSettings, decoder: SpeculativeDecoder, tmp_path: Path
) -> None:
    other = SpeculativeDecoder(decoder.target, decoder.draft_head, draft_dtype="float32")
    with pytest.raises(ValueError, match="all nodes must have the same model: draft_dtype"):
        record(
            other, prompts(), tmp_path, options=OPTIONS, run=record_on(cluster, settings, OPTIONS)
        )
