"""Comparisons that decode several questions at once, with a tiny model."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.eagle3.policy import TreeParams
from eaglerl.evaluation.modes.mode_names import at_concurrencies, parse_modes
from eaglerl.evaluation.report import Evidence, write_report
from eaglerl.evaluation.results.records import RECORDS_NAME, Comparison, load_comparison
from eaglerl.evaluation.running.comparison import compare
from eaglerl.evaluation.running.comparison_options import CompareOptions, Extras
from eaglerl.evaluation.running.question_groups import in_turn, question_groups, tasks
from eaglerl.evaluation.statistics.many_at_once import serial_part, throughputs

GRID = (TreeParams(4, 1, 2), TreeParams(6, 2, 4))
OPTIONS = CompareOptions(
    max_new_tokens=12, repeats=1, validation_per_file=1, grid=GRID, split="all", group=4
)
MODES = ("auto", "auto-trees", "tuned", "tree:6/2/4", "rule=baseline:lookup-alone", "generate")
TERMINAL = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}


class Setting(SimpleNamespace):
    """A tiny target and its files."""

    def run(
        self,
        folder: Path,
        modes: tuple[str, ...],
        numbers: tuple[int, ...],
        *,
        options: CompareOptions = OPTIONS,
        **more: object,
    ) -> Comparison:
        specs = at_concurrencies(parse_modes(modes), numbers)
        arguments = (self.decoder, self.tiny.target, self.tiny.files, specs, folder, options)
        return compare(*arguments, **more)


@pytest.fixture(scope="module")
def setting(tiny: SimpleNamespace, decoder: SpeculativeDecoder) -> Setting:
    torch.set_num_threads(1)
    return Setting(tiny=tiny, decoder=decoder)


@pytest.fixture(scope="module")
def finished(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("comparison") / "finished"
    return SimpleNamespace(folder=folder, comparison=setting.run(folder, MODES, (2, 4)))


def test_every_mode_gives_plain_decodings_texts(finished: SimpleNamespace) -> None:
    found = finished.comparison
    assert found.missing == 0
    single = ["plain", *(mode.partition("=")[0] for mode in MODES)]
    several = [f"{mode}@{number}" for number in (2, 4) for mode in single if mode != "generate"]
    assert list(found.manifest.modes) == [*single, *several]
    assert {label: mode.concurrency for label, mode in found.manifest.modes.items()} == (
        dict.fromkeys(single, 1) | {label: int(label[-1]) for label in several}
    )
    plain = {r.question: r.output_ids for r in found.records if r.mode == "plain"}
    assert len(plain) == 12
    for record in found.records:
        assert record.output_ids == plain[record.question], record.key
        assert record.concurrency == found.manifest.modes[record.mode].concurrency


def test_times_of_a_group_add_up(finished: SimpleNamespace) -> None:
    for record in finished.comparison.records:
        for turn in record.turns:
            waited = turn.first_token_seconds
            if record.concurrency == 1:
                assert (waited, turn.cycles.gap_seconds) == (None, None)
                continue
            gaps = turn.cycles.gap_seconds
            assert len(gaps) == len(turn.cycles)
            assert waited >= turn.prefill_seconds
            # Others' shares belong to what a client waits for.
            assert waited + sum(gaps) > 0.5 * (turn.prefill_seconds + turn.decode_seconds)
            assert turn.decode_seconds > 0
    for one in throughputs(finished.comparison):
        assert 0.5 < one.in_flight <= one.concurrency * 1.001, one
        assert one.in_flight > 1.2 or one.concurrency == 1
        assert one.groups == 3


def test_figures_and_ratios(finished: SimpleNamespace) -> None:
    found = {(one.mode, one.concurrency): one for one in throughputs(finished.comparison)}
    assert {number for _, number in found} == {1, 2, 4}
    for (mode, number), one in found.items():
        assert (one.identical, one.compared) == (12, 12)
        assert mode != "generate"
        wanted = {"serial"} if number > 1 else set()
        wanted |= {"plain"} if mode != "plain" else set()
        best = max(
            (found[tree, number] for tree in ("tuned", "tree:6/2/4")),
            key=lambda tree: tree.tokens_per_second,
        )
        wanted |= {"best tree"} if best is not one else set()
        assert set(one.ratios) == wanted
        for ratio in one.ratios.values():
            assert ratio.whole.questions == 3
        if number > 1:
            serial = found[mode, 1]
            expected = one.all_in_tokens_per_second / serial.all_in_tokens_per_second
            assert one.ratios["serial"].whole.ratio == pytest.approx(expected)
            assert one.ratios["serial"].reference == mode
        if mode != "plain":
            plain = "plain" if number == 1 else f"plain@{number}"
            assert one.ratios["plain"].reference == plain
        assert one.first_token_p50 <= one.first_token_p99
        assert one.between_tokens_p50 <= one.between_tokens_p99
        assert not any(map(math.isnan, (one.first_token_p50, one.between_tokens_p50)))
    assert [*serial_part(finished.comparison).manifest.modes] == ["plain", *(
        mode.partition("=")[0] for mode in MODES
    )]  # fmt: skip


def test_an_interrupted_comparison_goes_on(setting: Setting, tmp_path: Path) -> None:
    stages: list[str] = []

    def stop(stage: str, fraction: float) -> None:
        stages.append(stage)
        if "group 1, auto@4" in stage:
            raise KeyboardInterrupt

    modes, numbers = ("auto",), (4,)
    with pytest.raises(KeyboardInterrupt):
        setting.run(tmp_path, modes, numbers, progress=stop)
    half = load_comparison(tmp_path)
    assert 0 < half.missing < 48
    counts = {(r.mode, r.group): 0 for r in half.records}
    for record in half.records:
        counts[record.mode, record.group] += 1
    assert all(count == 4 for (mode, _), count in counts.items() if "@" in mode)
    whole = setting.run(tmp_path, modes, numbers)
    assert whole.missing == 0
    assert whole.records[: len(half.records)] == half.records
    assert len({record.key for record in whole.records}) == 48
    # One more concurrency extends it, with the same groups.
    more = setting.run(tmp_path, modes, (2, 4))
    assert more.records[:48] == whole.records
    assert len(more.records) == 72
    group = {record.question: record.group for record in whole.records}
    assert all(record.group == group[record.question] for record in more.records)
    with pytest.raises(ValueError, match="group is 4 there, 6 now"):
        setting.run(
            tmp_path, modes, numbers, options=CompareOptions(**vars(OPTIONS) | {"group": 6})
        )


def test_a_fused_policy_decides_for_all(
    setting: Setting, policies: SimpleNamespace, tmp_path: Path
) -> None:
    modes = (f"ppo=policy:{policies.ppo}", f"bare=uncached:{policies.ppo}", "tree:4/1/2")
    found = setting.run(tmp_path, modes, (3,))
    assert found.missing == 0
    trees = {"ppo@3": set(), "bare@3": set()}
    for record in found.records:
        if record.mode in trees:
            for turn in record.turns:
                trees[record.mode] |= set(turn.cycles.total_tokens[:3])
    assert all(each - {1} for each in trees.values())
    for one in throughputs(found):
        assert (one.identical, one.compared) == (12, 12)


def test_sampling_is_that_of_one_after_another(setting: Setting, tmp_path: Path) -> None:
    options = CompareOptions(**vars(OPTIONS) | {"temperature": 0.8, "repeats": 2})
    found = setting.run(tmp_path, ("tree:4/1/2",), (3,), options=options)
    texts: dict[tuple[str, int], set] = {}
    for record in found.records:
        key = (record.mode.partition("@")[0], record.question, record.repeat)
        texts.setdefault(key, set()).add(record.output_ids)
    assert all(len(each) == 1 for each in texts.values())
    assert all(one.compared == 0 for one in throughputs(found))


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("s=shuffled:PPO", "'s@2' cannot decode several questions at once: its policy, a Shuffled"),
        ("baseline:ucb1", "its policy, a UCB1Policy, decides for one sequence"),
    ],
)
def test_a_policy_of_one_sequence_is_refused(
    setting: Setting, policies: SimpleNamespace, tmp_path: Path, mode: str, message: str
) -> None:
    extras = Extras(cost=policies.cost)
    with pytest.raises(ValueError, match=message):
        setting.run(tmp_path, (mode.replace("PPO", str(policies.ppo)),), (2,), extras=extras)
    assert not (tmp_path / RECORDS_NAME).read_bytes()
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("changes", "numbers", "message"),
    [
        ({"group": None}, (2,), "group must be at least the largest concurrency, 2, got None"),
        ({"group": 4}, (8,), "group must be at least the largest concurrency, 8, got 4"),
        ({"group": 13}, (8,), "need as many questions, got 12"),
    ],
)
def test_groups_that_are_too_small_are_refused(
    setting: Setting, tmp_path: Path, changes: dict, numbers: tuple[int, ...], message: str
) -> None:
    options = CompareOptions(**vars(OPTIONS) | changes)
    with pytest.raises(ValueError, match=message):
        setting.run(tmp_path, (), numbers, options=options)


def test_two_modes_of_one_label_are_refused() -> None:
    modes = parse_modes(["t=tree:4/1/2", "t@8=tree:6/2/4"])
    with pytest.raises(ValueError, match="the label 't@8' is that of 't' 8 at once"):
        at_concurrencies(modes, (8,))


def test_groups_take_questions_of_every_file_and_modes_take_turns() -> None:
    ids = [(file, n) for file in "ab" for n in range(11)]
    questions = [SimpleNamespace(id=f"{f}/{n}", prompt_id=f"{n * 7 % 11}{f}") for f, n in ids]
    groups = question_groups(questions, 5)
    assert [len(group) for group in groups] == [6, 6, 5, 5]
    assert sorted(q.id for group in groups for q in group) == sorted(q.id for q in questions)
    for group in groups:
        assert {q.id[0] for q in group} == {"a", "b"}
        assert [q.prompt_id for q in group] == sorted(q.prompt_id for q in group)
    modes = at_concurrencies(parse_modes(["auto"]), (1, 4))
    order = list(tasks(questions, modes, 1, 5, ()))
    assert [len(task.questions) for task in order if task.mode.label == "auto@4"] == [6, 6, 5, 5]
    assert sum(len(task.questions) for task in order if task.mode.label == "auto") == 22
    first = [next(task for task in order if task.group == index).mode.label for index in range(4)]
    assert len(set(first)) > 1
    assert {task.place for task in order} == {0, 1, 2, 3}
    # Every mode is as often before another as behind it.
    for mode in modes:
        assert sum(in_turn(modes, index, 0, 4).index(mode) for index in range(4)) == 4 * 1.5
    done = {(task.questions[0].id, 0, "auto") for task in order if task.mode.label == "auto"}
    assert not any(task.mode.label == "auto" for task in tasks(questions, modes, 1, 5, done))


def test_the_command_and_the_report(tiny: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    options = ["-n", "8", "--repeats", "1", "--split", "all", "--draft-dtype", "float32"]
    arguments = [
        "compare", folder, tiny.questions, "-M", "auto", "-M", "t=tree:4/1/2", "-c", "1,3",
        "--group", "4", "--threads", "1", *options, *tiny.arguments,
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(one) for one in arguments], env=TERMINAL)
    assert result.exit_code == 0, result.output
    for text in (
        "Questions at once, 3 groups: tokens/s, and with the prompts",
        "tokens/s / the same mode, one question after another",
        "tokens/s / the fastest constant tree at the same concurrency",
        "Milliseconds to the first token, p50 and p99",
        "72 of 72 outputs of all modes identical to plain decoding",
    ):
        assert text in result.stdout
    shown = CliRunner().invoke(app, ["compare", str(folder), "--json"], env=TERMINAL)
    figures = json.loads(shown.stdout)
    assert [mode["mode"] for mode in figures["modes"]] == ["plain", "auto", "t"]
    many = figures["at_once"]
    assert [(one["mode"], one["concurrency"]) for one in many] == [
        (mode, number) for number in (1, 3) for mode in ("plain", "auto", "t")
    ]
    page = tmp_path / "report.html"
    write_report([Evidence.read(folder)], page)
    text = page.read_text()
    assert "Many at once" in text
    assert "over the best tree at once" in text


@pytest.mark.parametrize("text", ["0", "2,x", ""])
def test_numbers_at_once_are_read(tiny: SimpleNamespace, tmp_path: Path, text: str) -> None:
    arguments = ["compare", tmp_path / "new", tiny.questions, "-c", text, *tiny.arguments]
    result = CliRunner().invoke(app, [str(one) for one in arguments], env=TERMINAL)
    assert result.exit_code == 2
    assert "--concurrency" in result.stderr
