"""Comparisons that are really run, with a tiny model: what is kept, resumed, extended, refused."""

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.eagle3.policy import TreeParams
from eaglerl.evaluation.modes.baseline_modes import BASELINES
from eaglerl.evaluation.modes.mode_names import parse_modes
from eaglerl.evaluation.questions.question_files import (
    choose_split,
    prepare_questions,
    read_questions,
)
from eaglerl.evaluation.results.records import RECORDS_NAME, Comparison, load_comparison
from eaglerl.evaluation.running.comparison import compare
from eaglerl.evaluation.running.comparison_options import CompareOptions, Extras
from eaglerl.evaluation.statistics.summary import summarise
from eaglerl.fingerprints import prompt_id

MODES = ("tuned", "tree:4/1/2")
GRID = (TreeParams(4, 1, 2), TreeParams(6, 2, 4))
OPTIONS = CompareOptions(
    max_new_tokens=12, repeats=2, per_file=2, validation_per_file=1, grid=GRID, split="all"
)


class Setting(SimpleNamespace):
    """A tiny target, its files, and how often something was decoded."""

    def run(
        self, folder: Path, *modes: str, options: CompareOptions = OPTIONS, **more
    ) -> Comparison:
        return compare(
            self.decoder,
            self.tiny.target,
            self.tiny.files,
            parse_modes(modes),
            folder,
            options,
            **more,
        )


@pytest.fixture(scope="module")
def setting(tiny: SimpleNamespace, decoder: SpeculativeDecoder) -> Setting:
    torch.set_num_threads(1)
    return Setting(tiny=tiny, decoder=decoder)


@pytest.fixture(scope="module")
def finished(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A comparison of three modes; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("comparison") / "finished"
    return SimpleNamespace(folder=folder, comparison=setting.run(folder, *MODES))


@pytest.fixture
def copied(finished: SimpleNamespace, tmp_path: Path) -> Path:
    return shutil.copytree(finished.folder, tmp_path / "copy")


def keys(comparison: Comparison) -> set[tuple[str, int, str]]:
    return {record.key for record in comparison.records}


def wanted(comparison: Comparison, *labels: str) -> set[tuple[str, int, str]]:
    ids = [question["id"] for question in comparison.manifest.questions]
    repeats = range(comparison.manifest.configuration["repeats"])
    return {(name, repeat, label) for name in ids for repeat in repeats for label in labels}


def test_every_mode_decodes_the_same(
    setting: Setting, policies: SimpleNamespace, tmp_path: Path
) -> None:
    extras = Extras(cost=policies.cost, traces=[policies.traces])
    modes = [
        "generate", "auto", "auto-trees", "tree:8/2/4", "tuned", "hindsight",
        f"ppo=policy:{policies.ppo}",
        f"n=uncached:{policies.ppo}", f"s=shuffled:{policies.ppo}", "baseline:all",
    ]  # fmt: skip
    options = CompareOptions(
        max_new_tokens=16, repeats=1, per_file=1, validation_per_file=1, grid=GRID, split="all"
    )
    found = setting.run(tmp_path, *modes, options=options, extras=extras)
    summary = summarise(found)
    by_label = {mode.mode: mode for mode in summary.modes}
    assert len(by_label) == 10 + len(BASELINES)
    assert found.missing == 0
    for mode in summary.modes:
        assert (mode.mode, mode.identical) == (mode.mode, 2)
    # Conversations: the second turn's prompt holds the first one's answer.
    for record in found.records:
        assert len(record.turns) == (2 if record.domain == "chat" else 1)
        assert record.new_tokens == 16 * len(record.turns)
        cycles = record.turns[0].cycles
        # The last cycle may emit more than is kept.
        assert sum(cycles.tokens) >= 15
        assert sum(cycles.tokens[:-1]) < 15
        assert record.decode_seconds > 0
        assert record.prefill_seconds > 0
    assert by_label["plain"].acceptance_length == 1.0
    assert by_label["generate"].acceptance_length == 1.0
    assert 0 < by_label["plain"].policy_share < 1
    assert by_label["tree:8/2/4"].distinct_actions == 1
    assert by_label["ppo"].hit_rate == pytest.approx(0.75, abs=0.1)
    assert by_label["n"].hit_rate == 0
    assert by_label["s"].hit_rate == pytest.approx(0.75, abs=0.1)
    assert 0 < by_label["auto"].policy_share < 1
    assert by_label["baseline:random"].distinct_actions > 1
    lookups = [
        sum(turn.cycles.lookup_tokens)
        for record in found.records
        for turn in record.turns
        if record.mode == "auto-trees"
    ]
    assert sum(lookups) == 0
    for label in ("tuned", "hindsight"):
        trees = found.manifest.modes[label].trees
        assert {TreeParams(*tree) for tree in trees.values()} <= set(GRID)
        used = {
            turn.cycles.total_tokens[0]
            for record in found.records
            if record.mode == label
            for turn in record.turns
        }
        assert used == {tree[0] for tree in trees.values()}


def test_answers_are_in_the_layout_of_eagle(setting: Setting, finished: SimpleNamespace) -> None:
    found, answers = finished.comparison, finished.folder / "answers"
    files = sorted(str(path.relative_to(answers)) for path in answers.rglob("chat.jsonl"))
    assert files == ["plain/chat.jsonl", "tree_4_1_2/chat.jsonl", "tuned/chat.jsonl"]
    lines = (answers / files[1]).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 2
    for row in rows:
        assert list(row) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
        assert isinstance(row["question_id"], int)
        assert [choice["index"] for choice in row["choices"]] == [0, 1]
        for repeat, choice in enumerate(row["choices"]):
            key = (f"chat/{row['question_id']}", repeat, "tree:4/1/2")
            record = next(record for record in found.records if record.key == key)
            assert choice["new_tokens"] == [12, 12]
            assert choice["idxs"] == [len(turn.cycles) - 1 for turn in record.turns]
            assert sum(choice["wall_time"]) == pytest.approx(record.seconds)
            decoded = [setting.decoder.tokenizer.decode(ids) for ids in record.output_ids]
            assert choice["turns"] == decoded


def test_order_alternates(finished: SimpleNamespace) -> None:
    found = finished.comparison
    orders = {}
    for record in found.records:
        orders.setdefault((record.question, record.repeat), []).append(record.mode)
    first = {order[0] for (_, repeat), order in orders.items() if repeat == 0}
    assert first == {"plain", *MODES}
    question = found.records[0].question
    assert orders[question, 1] != orders[question, 0]
    assert [record.place for record in found.records[:4]] == [0, 1, 2, 0]


def test_a_mode_with_itself_gives_one(setting: Setting, tmp_path: Path) -> None:
    options = CompareOptions(max_new_tokens=12, repeats=2, split="all", per_file=4, grid=GRID)
    # A 95 % interval misses once in twenty: three misses on end would be one in 8,000.
    for attempt in range(3):
        found = setting.run(
            tmp_path / str(attempt), "one=tree:6/2/4", "two=tree:6/2/4", options=options
        )
        ratio = next(mode for mode in summarise(found).modes if mode.mode == "one").ratios["plain"]
        assert ratio.questions == 8
        itself = summarise(found, ["two"]).modes[1].ratios["two"]
        assert itself.low < itself.high
        if itself.low <= 1 <= itself.high:
            return
    pytest.fail(f"the interval of a mode with itself is [{itself.low}, {itself.high}]")


def test_interrupted_comparison_goes_on(setting: Setting, tmp_path: Path) -> None:
    stages = []

    def stop(stage: str, fraction: float) -> None:
        stages.append(stage)
        if stage.startswith("repeat 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        setting.run(tmp_path, "tree:4/1/2", progress=stop)
    half = load_comparison(tmp_path)
    assert half.missing == len(half.records) == 8
    assert (tmp_path / "answers" / "plain" / "sums.jsonl").exists()
    stages.clear()
    whole = setting.run(tmp_path, "tree:4/1/2", progress=lambda stage, _: stages.append(stage))
    assert len([stage for stage in stages if stage.startswith("repeat")]) == 8
    assert whole.records[:8] == half.records
    assert keys(whole) == wanted(whole, "plain", "tree:4/1/2")
    assert [record.run for record in whole.records] == [0] * 8 + [1] * 8
    assert summarise(whole).modes[1].identical == 8


def test_finished_comparison_is_extended_by_a_mode(
    setting: Setting, finished: SimpleNamespace, copied: Path
) -> None:
    first, stages = finished.comparison, []
    # Naming the new mode alone does not take the others away.
    second = setting.run(copied, "tree:6/2/4", progress=lambda stage, _: stages.append(stage))
    assert second.records[: len(first.records)] == first.records
    assert {s.split(", ")[-1] for s in stages if s.startswith("repeat")} == {"tree:6/2/4"}
    assert keys(second) == wanted(second, "plain", *MODES, "tree:6/2/4")
    assert second.manifest.modes["tuned"] == first.manifest.modes["tuned"]
    assert {record.run for record in second.records} == {0, 1}
    stages.clear()
    third = setting.run(copied, *MODES, progress=lambda stage, _: stages.append(stage))
    assert (third.records, stages) == (second.records, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 13}, "max_new_tokens is 12 there, 13 now"),
        ({"temperature": 0.5}, r"temperature is 0.0 there, 0.5 now"),
        ({"repeats": 3}, "repeats is 2 there, 3 now"),
        ({"split": "train"}, "split is all there, train now; questions are 4 there"),
        ({"grid": (TreeParams(3, 1, 2),)}, "the mode 'tuned' is made from other files or options"),
    ],
)
def test_another_comparison_is_refused(
    setting: Setting, finished: SimpleNamespace, changes: dict, message: str
) -> None:
    folder = finished.folder
    before = {path: path.read_bytes() for path in folder.rglob("*.json*")}
    with pytest.raises(ValueError, match=message):
        setting.run(folder, *MODES, options=CompareOptions(**vars(OPTIONS) | changes))
    with pytest.raises(ValueError, match="the mode 'tuned' is tuned there, tree:6/2/4 now"):
        setting.run(folder, "tuned=tree:6/2/4")
    assert before == {path: path.read_bytes() for path in folder.rglob("*.json*")}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("precision", "int8", "precision is float32 there, int8 now"),
        (
            "kv_cache_dtype",
            torch.bfloat16,
            r"kv_cache_dtype is torch.float32 there, torch.bfloat16",
        ),
    ],
)
def test_a_comparison_in_another_precision_is_refused(
    setting: Setting,
    finished: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: object,
    message: str,
) -> None:
    monkeypatch.setattr(setting.decoder.target, name, value)
    with pytest.raises(ValueError, match=message):
        setting.run(finished.folder, *MODES)


def test_broken_line_is_dropped_and_told(
    setting: Setting, finished: SimpleNamespace, copied: Path
) -> None:
    whole, path = finished.comparison, copied / RECORDS_NAME
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.warns(UserWarning, match="the last line of .* was cut short after"):
        assert len(load_comparison(copied).records) == len(whole.records) - 1
    with pytest.warns(UserWarning, match="was cut short after"):
        again = setting.run(copied, *MODES)
    assert again.records[:-1] == whole.records[:-1]
    assert keys(again) == keys(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_comparison(copied)
    path.write_bytes(b"{\n" + path.read_bytes())
    with pytest.raises(ValueError, match=r"line 1 of the records .* is not valid JSON"):
        load_comparison(copied)


def test_sampled_outputs_are_not_compared(setting: Setting, tmp_path: Path) -> None:
    options = CompareOptions(
        max_new_tokens=12, repeats=2, per_file=1, split="all", temperature=0.7, grid=GRID
    )
    found = setting.run(tmp_path, "generate", "tree:4/1/2", options=options)
    for mode in summarise(found).modes:
        assert mode.compared == 0
        assert not mode.failed
    plain = [record.output_ids for record in found.records if record.mode == "plain"]
    assert len(set(plain)) == len(plain)


def test_questions_are_halved_by_the_hash_of_their_prompt(setting: Setting) -> None:
    tokenizer = setting.decoder.tokenizer
    every = prepare_questions(
        read_questions(setting.tiny.files), tokenizer, max_new_tokens=8, max_positions=2048
    )
    parts = {name: choose_split(every, name) for name in ("test", "train", "all")}
    assert len(parts["test"]) + len(parts["train"]) == len(parts["all"]) == 12
    for question in every:
        chat = [{"role": "user", "content": question.turns[0]}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert question.prompt_id == prompt_id(ids)
        assert question in parts["test" if question.prompt_id[-1] in "13579bdf" else "train"]
    with pytest.raises(ValueError, match="conversation of chat/80 may take"):
        prepare_questions(every, tokenizer, max_new_tokens=1000, max_positions=2048)


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        (["fast"], "the kind of a mode must be one of"),
        (["tree"], "T/D/K must follow 'tree'"),
        (["plain:1"], "nothing must follow 'plain'"),
        (["tree:8/2"], "three whole numbers T/D/K"),
        (["tree:50/0/2"], "pool of only"),
        (["policy:/nowhere"], "must be a folder with policy.json"),
        (["baseline:best"], "a baseline must be one of"),
        (["a=tree:4/1/2", "a=tree:6/2/4"], "labels of modes must be distinct"),
        (["plain=tree:4/1/2"], "the label 'plain' belongs to plain decoding"),
        (["a b=plain"], "the label of a mode must have no space"),
    ],
)
def test_wrong_modes_are_refused(modes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_modes(modes)
