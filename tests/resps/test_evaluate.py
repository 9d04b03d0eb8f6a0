"""The command `evaluate`: what each flag of Re-SpS changes, or why it is refused; resuming."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from eaglerl.cli.app import app
from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.eagle3.policy import NO_DRAFT, TreeParams
from eaglerl.evaluation.questions.question_files import chat_ids
from eaglerl.resps.bench import EvaluationSummary, find_bench
from eaglerl.resps.policies import load_resps_policy

TERMINAL = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
PPO = ["--use-optimized-sb3-discrete-ppo", "--actions", "cpu"]
DQN = ["--use-optimized-dqn", "--actions", "cpu"]
OFL = [*PPO, "--optimized-policy-version", "ofl"]
SAVED = ["--online-policy-path", "SAVED", "--online-inference-only"]
#: The flags of the command of Re-SpS.
RESPS_FLAGS = {
    "--use-optimized-sb3-discrete-ppo", "--use-optimized-dqn", "--optimized-policy-version",
    "--action-cache-steps", "--action-cache-enabled", "--no-action-cache-enabled",
    "--use-eagle3-features", "--use-context-only-state", "--hidden-size",
    "--inference-temperature", "--max-entropy-inference", "--no-max-entropy-inference",
    "--ppo-net-arch", "--total-token", "--depth", "--top-k", "--temperature", "--max-new-token",
    "--question-begin", "--question-end", "--bench-name", "--answer-file", "--training-seed",
    "--checkpoint-dir", "--resume-training", "--no-resume", "--wandb-project", "--no-wandb",
}  # fmt: skip


def net(policy: Any) -> tuple[tuple[int, ...], str]:
    weights = policy.weights
    return tuple(len(bias) for bias in weights.hidden_biases), weights.activation


def settings(name: str) -> Callable[[SimpleNamespace], Any]:
    return lambda run: getattr(run.chosen.settings, name)


def source(run: SimpleNamespace) -> str:
    """What a policy observes when it is given features and a text."""
    run.chosen.predict_parameters("some text", torch.ones(1, 32))
    return next(iter(run.chosen.statistics.sources))


# Flag: the rest of the command, the flag with its value, what to look at, without it and with it.
CHANGES: dict[str, tuple[list[str], list[str], Callable[[SimpleNamespace], Any], Any, Any]] = {
    "--use-optimized-sb3-discrete-ppo": (
        [], PPO, lambda run: getattr(run.chosen, "algorithm", None), None, "ppo",
    ),
    "--use-optimized-dqn": (
        [], DQN, lambda run: getattr(run.chosen, "algorithm", None), None, "dqn",
    ),
    "--optimized-policy-version": (
        PPO, ["ofl"], lambda run: net(run.chosen), ((512, 256, 128), "relu"), ((64, 64), "tanh"),
    ),
    "--action-cache-steps": (PPO, ["7"], settings("interval"), 10, 7),
    "--no-action-cache-enabled": (DQN, [], settings("interval"), 10, 1),
    "--action-cache-enabled": ([*SAVED], [], settings("interval"), 1, 4),
    "--no-use-eagle3-features": (PPO, [], source, "features", "projected_context"),
    "--use-eagle3-features": (["--no-use-eagle3-features", *PPO], [], source,
                              "projected_context", "features"),
    "--use-context-only-state": (PPO, [], source, "features", "context"),
    "--hidden-size": (PPO, ["32"], settings("hidden_size"), 32, 32),
    "--inference-temperature": (PPO, ["0.5"], settings("inference_temperature"), 1.5, 0.5),
    "--no-max-entropy-inference": (PPO, [], settings("max_entropy_inference"), True, False),
    "--max-entropy-inference": (SAVED, [], settings("max_entropy_inference"), False, True),
    "--disable-max-entropy": (PPO, [], settings("enable_max_entropy"), True, False),
    "--ppo-net-arch": (OFL, ["8,4;16"], lambda run: net(run.chosen)[0], (64, 64), (8, 4)),
    "--total-token": ([], ["30"], lambda run: run.chosen, TreeParams(60, 5, 10),
                      TreeParams(30, 5, 10)),
    "--depth": ([], ["6"], lambda run: run.chosen, TreeParams(60, 5, 10), TreeParams(60, 6, 10)),
    "--top-k": ([], ["8"], lambda run: run.chosen, TreeParams(60, 5, 10), TreeParams(60, 5, 8)),
    "--temperature": ([], ["0.7"], lambda run: run.options.decoding.temperature, 0.0, 0.7),
    "--max-new-token": ([], ["9"], lambda run: run.options.decoding.max_new_tokens, 1024, 9),
    "--question-begin": ([], ["2"], lambda run: run.options.questions()[0].id, "sums/s0",
                         "sums/s2"),
    "--question-end": ([], ["2"], lambda run: len(run.options.questions()), 6, 2),
    "--training-seed": (PPO, ["7"], settings("seed"), 42, 7),
    "--checkpoint-dir": (PPO, ["ELSEWHERE"], lambda run: run.chosen._checkpoints.path.name,
                         "answers-checkpoints", "elsewhere"),
    "--no-resume": ([], [], lambda run: run.options.resume, True, False),
    "--wandb-project": (PPO, ["tree"], lambda run: run.logs, None, "tree"),
}  # fmt: skip
#: Flags that confirm a default.
SAME = {
    "--resume-training": ([], lambda run: run.options.resume, True),
    "--no-wandb": (PPO, lambda run: run.logs, None),
}
REFUSED = [
    (["--action-cache-steps", "5"], "no effect without a policy"),
    (["--use-eagle3-features"], "--use-eagle3-features: it has no effect without a policy"),
    (["--training-seed", "1"], "no effect without a policy"),
    (["--checkpoint-dir", "x"], "no effect without a policy"),
    (["--no-wandb"], "--no-wandb: it has no effect without a policy"),
    (["--online-policy-save-path", "x"], "no effect without a policy"),
    (["--online-inference-only"], "it needs a trained policy"),
    ([*PPO, "--use-optimized-dqn"], "contradicts --use-optimized-sb3-discrete-ppo"),
    ([*PPO, "--total-token", "8"], "--total-token: it has no effect with a policy"),
    ([*SAVED, "--top-k", "8"], "which chooses the tree itself"),
    ([*DQN, "--optimized-policy-version", "ofl"], "it has no effect on DQN"),
    ([*DQN, "--ppo-net-arch", "8,8"], "it has no effect on DQN"),
    ([*PPO, "--no-action-cache-enabled", "--action-cache-steps", "3"], "--no-action-cache-enabled"),
    ([*PPO, "--use-context-only-state", "--use-eagle3-features"], "--use-context-only-state"),
    ([*PPO, "--use-context-only-state", "--hidden-size", "32"], "a text's embedding"),
    ([*PPO, "--no-max-entropy-inference", "--inference-temperature", "1"], "best action is taken"),
    ([*PPO, "--disable-max-entropy", "--inference-temperature", "1"], "best action is taken"),
    ([*PPO, "--wandb-project", "x", "--no-wandb"], "it contradicts --no-wandb"),
    ([*SAVED, "--training-seed", "1"], "nothing is learned"),
    ([*SAVED, "--checkpoint-dir", "x"], "nothing is learned"),
    ([*SAVED, "--wandb-project", "x"], "nothing is learned"),
    ([*SAVED, "--use-context-only-state"], "no effect on a saved policy"),
    ([*SAVED, "--ppo-net-arch", "8"], "no effect on a saved policy"),
    ([*SAVED, "--use-optimized-dqn"], "is of the algorithm 'ppo', wanted 'dqn'"),
    ([*SAVED, "--inference-temperature", "1"], "the saved policy takes the best action"),
    ([*SAVED, "--hidden-size", "64"], "hidden_size of the policy is 32, wanted 64"),
    ([*PPO, "--hidden-size", "64"], "features of width 64, the draft head has 32"),
    ([*PPO, "--optimized-policy-version", "new"], "must be one of ('standard', 'ofl')"),
    ([*PPO, "--ppo-net-arch", "8;8"], "with the version ofl"),
    ([*PPO, "--ppo-net-arch", "wide"], "ppo_net_arch must be whole numbers"),
    (["--total-token", "600", "--depth", "1", "--top-k", "2"], "give a pool of only"),
    (["--question-begin", "6"], "question_begin and question_end must choose some of the 6"),
    (["--bench-name", "nowhere"], "bench_name must name a file of questions"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def evaluate(
    tiny: SimpleNamespace,
    policies: SimpleNamespace,
    decoder: SpeculativeDecoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Result]:
    """Runs the command on the tiny target."""
    monkeypatch.setattr(
        "eaglerl.resps.commands.evaluate_command.load_decoder", lambda *_, **__: decoder
    )
    monkeypatch.setattr(
        "eaglerl.envs.observations.sentence_encoder",
        lambda *_: lambda text: np.full(384, len(text), np.float32),
    )
    names = {"SAVED": str(policies.ppo), "ELSEWHERE": str(tmp_path / "elsewhere")}

    def run(*arguments: str) -> Result:
        given = [names.get(argument, argument) for argument in arguments]
        if "--bench-name" not in given:
            given += ["--bench-name", str(tiny.questions / "sums.jsonl")]
        if "--answer-file" not in given:
            given += ["--answer-file", str(tmp_path / "answers.jsonl")]
        return CliRunner().invoke(app, ["evaluate", *given], env=TERMINAL)

    return run


@pytest.fixture
def captured(
    evaluate: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SimpleNamespace]:
    """What the command would decode with; nothing is decoded."""
    runs: list[SimpleNamespace] = []
    logs: list[str | None] = []

    def stand_in(_: Any, chosen: Any, options: Any, **__: Any) -> EvaluationSummary:
        runs.append(SimpleNamespace(chosen=chosen, options=options, logs=(logs or [None])[-1]))
        return EvaluationSummary(0, 0, 0.0, 0.0, 0.0, {})

    class Log:
        def __init__(self, *_: Any, wandb_project: str | None = None, **__: Any) -> None:
            logs.append(wandb_project)
            self.logger = self

        def close(self) -> None: ...

    monkeypatch.setattr("eaglerl.resps.bench.evaluate", stand_in)
    monkeypatch.setattr("eaglerl.resps.policies.policy_outputs.RunLog", Log)

    def run(*arguments: str) -> SimpleNamespace:
        result = evaluate(*arguments)
        assert result.exit_code == 0, result.output
        return runs[-1]

    return run


def test_no_flag_is_forgotten() -> None:
    always = {"--bench-name", "--answer-file"}
    assert RESPS_FLAGS - always <= CHANGES.keys() | SAME.keys()


@pytest.mark.parametrize("flag", CHANGES)
def test_what_a_flag_changes(captured: Callable[..., SimpleNamespace], flag: str) -> None:
    rest, given, look, before, after = CHANGES[flag]
    flags = given if given and given[0] == flag else [flag, *given]
    without = ["--no-action-cache-enabled"] if flag == "--action-cache-enabled" else []
    if flag == "--use-eagle3-features":
        assert look(captured(*rest)) == before
        assert look(captured(*rest[1:], *flags)) == after
        return
    assert look(captured(*rest, *without)) == before
    assert look(captured(*rest, *flags)) == after


@pytest.mark.parametrize("flag", SAME)
def test_what_a_flag_confirms(captured: Callable[..., SimpleNamespace], flag: str) -> None:
    rest, look, value = SAME[flag]
    assert look(captured(*rest)) == value
    assert look(captured(*rest, flag)) == value


@pytest.mark.parametrize(("arguments", "reason"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_flag_without_effect_is_refused(
    evaluate: Callable[..., Result], tmp_path: Path, arguments: list[str], reason: str
) -> None:
    result = evaluate(*arguments)
    text = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code != 0
    assert reason in text, text
    assert not list(tmp_path.iterdir())


def test_where_a_bench_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("eagle/data/mt_bench", "data/mt_bench", "mt_bench"):
        place = Path(folder)
        place.mkdir(parents=True)
        (place / "question.jsonl").touch()
        assert find_bench("mt_bench") == place / "question.jsonl"
    assert find_bench("mt_bench/question.jsonl") == Path("mt_bench/question.jsonl")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# An incomplete line of a killed process causes a warning, no failure.
@pytest.mark.filterwarnings("default:the last line of")
def test_answers_and_resuming(
    evaluate: Callable[..., Result],
    tiny: SimpleNamespace,
    decoder: SpeculativeDecoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = tmp_path / "deep" / "answers.jsonl"
    base = [
        "--bench-name", str(tiny.questions / "chat.jsonl"), "--answer-file", str(answers),
        "--max-new-token", "8", "--total-token", "6", "--depth", "2", "--top-k", "2",
    ]  # fmt: skip
    result = evaluate(*base, "--question-end", "1")
    assert result.exit_code == 0, result.output
    assert "1 questions, 16 new tokens" in result.stdout
    (row,) = lines(answers)
    assert list(row) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
    assert (row["question_id"], row["model_id"]) == (80, "tree-6-2-2-temperature-0.0")
    (choice,) = row["choices"]
    assert list(choice) == ["index", "turns", "idxs", "new_tokens", "wall_time"]
    assert choice["new_tokens"] == [8, 8]
    prompt = chat_ids(decoder.tokenizer, ["Tell me of 0."], ())
    plain = decoder.generate(prompt, NO_DRAFT, max_new_tokens=8).sequences[0, len(prompt) :]
    assert choice["turns"][0] == decoder.tokenizer.decode(plain, skip_special_tokens=True)
    # A killed process may have left an incomplete line.
    answers.write_text(answers.read_text() + '{"question_id": 81, "answ')
    result = evaluate(*base, "--question-end", "2")
    assert result.exit_code == 0, result.output
    assert "was cut short" in result.stderr
    assert lines(answers)[0] == row
    assert [one["question_id"] for one in lines(answers)] == [80, 81]
    whole = answers.read_bytes()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("eaglerl.resps.bench.answer", never)
    assert "2 questions" in evaluate(*base, "--question-end", "2").stdout
    for changed, reason in (
        (["--top-k", "3"], "line 1 of"),
        (["--temperature", "0.5"], "is of another run"),
        (["--no-resume"], "must be new without resuming"),
    ):
        refused = evaluate(*base, "--question-end", "2", *changed)
        assert (refused.exit_code, reason in refused.stderr) == (1, True), refused.output
    assert answers.read_bytes() == whole


@pytest.mark.parametrize("kind", [OFL, DQN])
def test_a_policy_learns_while_it_decodes_and_goes_on(
    evaluate: Callable[..., Result],
    decoder: SpeculativeDecoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: list[str],
) -> None:
    from eaglerl.resps import bench

    own, calls = bench.answer, []

    def third_is_interrupted(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments[1].id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return own(*arguments, **more)

    monkeypatch.setattr(bench, "answer", third_is_interrupted)
    answers, saved = tmp_path / "answers.jsonl", tmp_path / "policy"
    command = [*kind, "--max-new-token", "16", "--action-cache-steps", "2", "--question-end", "4",
               "--online-policy-save-path", str(saved)]  # fmt: skip
    assert evaluate(*command).exit_code == 130
    assert len(lines(answers)) == 2
    fresh = evaluate(*command, "--no-resume")
    assert (fresh.exit_code, "must be new" in fresh.stderr) == (1, True)
    lost = evaluate(*command, "--checkpoint-dir", str(tmp_path / "lost"))
    assert (lost.exit_code, "2 questions that are answered" in lost.stderr) == (1, True)
    result = evaluate(*command)
    assert result.exit_code == 0, result.output
    assert [row["question_id"] for row in lines(answers)] == ["s0", "s1", "s2", "s3"]
    # Every question once, except the interrupted one; in another order than the file's.
    assert sorted({*calls}) == [f"sums/s{index}" for index in range(4)]
    assert len(calls) == 5
    assert "windows: " in result.stdout
    policy = load_resps_policy(saved, head=decoder.draft_head)
    assert policy.settings.action_cache_steps == 2
    # The saved policy decides like one that no longer learns.
    result = evaluate(
        "--online-policy-path", str(saved), "--online-inference-only", "--max-new-token", "16",
        "--question-end", "1", "--answer-file", str(tmp_path / "inference.jsonl"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "hit rate: " in result.stdout
    learned, inferred = lines(answers)[0], lines(tmp_path / "inference.jsonl")[0]
    # Whatever is drafted, greedy decoding gives the same.
    assert learned["choices"][0]["turns"] == inferred["choices"][0]["turns"]
