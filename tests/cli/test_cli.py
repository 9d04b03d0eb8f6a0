"""The command line: what it prints where, its exit codes, and how it answers Ctrl-C."""

import dataclasses
import functools
import inspect
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from eaglerl.cli.app import app

# A test must not depend on the terminal that it is run in.
PLAIN_TERMINAL = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
# A hang ends a test after this many seconds; nothing is expected to take as long.
PATIENCE = 180.0
EAGLERL = [sys.executable, "-c", "from eaglerl.cli import main; main()"]
PROMPT = "one two three"


@pytest.fixture
def tiny(tiny_folders: SimpleNamespace) -> SimpleNamespace:
    return tiny_folders


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, env=PLAIN_TERMINAL)


def one_line(text: str) -> str:
    """Undo the wrapping and the frames of what rich has printed."""
    return " ".join(text.replace("│", " ").split())


@functools.cache
def greedy_text(target: Path, text: str, new_tokens: int) -> str:
    """What transformers' greedy search generates."""
    tokenizer = AutoTokenizer.from_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(target)
    ids = tokenizer(text, return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


class TestHelp:
    @pytest.mark.parametrize(
        "command", ["", "prepare", "generate", "demo", "distill", "train-draft"]
    )
    def test_every_command_explains_itself(self, command: str) -> None:
        result = run(*command.split(), "--help")
        assert result.exit_code == 0
        assert "Usage: " in result.stdout
        if command:
            assert f"eaglerl {command}" in result.stdout.split("Examples")[1]
        else:
            assert "train-draft" in result.stdout

    def test_a_command_imports_what_it_needs(self) -> None:
        steps = [
            ("eaglerl.cli.app", {"torch", "transformers", "numpy", "pydantic"}),
            # All that `generate` and `demo` open a policy with.
            ("eaglerl.policies.policy_folder", {"matplotlib", "tensorboard", "stable_baselines3"}),
            # What trains: these two come with an extra.
            ("eaglerl.training.train_draft", {"matplotlib", "tensorboard"}),
            ("eaglerl.runs.policy_run", {"matplotlib", "tensorboard"}),
        ]
        # In one process, of which torch and transformers take eight seconds.
        program = "import sys\n" + "".join(
            f"import {module}; print('{module}', {slow} & {{*sys.modules}})\n"
            for module, slow in steps
        )
        shown = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert shown.stdout.splitlines() == [f"{module} set()" for module, _ in steps]

    def test_version(self) -> None:
        from eaglerl import __version__

        assert run("--version").stdout == f"eaglerl {__version__}\n"

    def test_as_a_module(self) -> None:
        from eaglerl import __version__

        command = [sys.executable, "-m", "eaglerl", "--version"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        assert shown.stdout == f"eaglerl {__version__}\n"

    def test_completion_of_the_shell(self) -> None:
        environment = {"_EAGLERL_COMPLETE": "complete_bash", "COMP_WORDS": "eaglerl gen"}
        shown = CliRunner().invoke(
            app, [], prog_name="eaglerl", env=environment | {"COMP_CWORD": "1"}
        )
        assert shown.stdout.split() == ["generate"]

    def test_no_color(self) -> None:
        for environment in ({"FORCE_COLOR": "1"}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}):
            command = [sys.executable, "-m", "eaglerl", "prepare", "gpt-5"]
            shown = subprocess.run(command, capture_output=True, env=os.environ | environment)
            # The error is bold and red; what is bold stays so.
            assert (b"\x1b[1;31m" in shown.stderr) == ("NO_COLOR" not in environment)
            assert shown.returncode == 1


class TestErrors:
    @pytest.mark.parametrize("tree", ["8", "8,2", "8,2-4", "8,2,4,1", "0,1,1", "1,-1,1", "50,0,2"])
    def test_bad_tree_is_wrong_usage(self, tree: str) -> None:
        result = run("generate", PROMPT, "--tree", tree)
        assert result.exit_code == 2
        assert "--tree" in result.stderr
        assert result.stdout == ""

    @pytest.mark.parametrize(
        "arguments",
        [
            ["generate", PROMPT, "--plain", "--tree", "8,2,4"],
            ["generate", PROMPT, "--max-new-tokens", "0"],
            ["generate", PROMPT, "--temperature", "-1"],
            ["generate", PROMPT, "--no-such-option"],
            ["distill"],
            ["train-policy", "-a", "acceptance", "--prompts", "p.jsonl", "-o", "x"],
            ["no-such-command"],
        ],
    )
    def test_wrong_usage(self, arguments: list[str]) -> None:
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Error" in result.stderr

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["prepare", "gpt-5"], "name must be one of"),
            (["generate", PROMPT, "--model", "/nowhere"], "--model must be one of"),
            (["generate", PROMPT, "--draft", "/nowhere"], "--draft must be a folder"),
            (["generate", "  "], "the prompt is empty"),
            # Neither loads a model first: there is none.
            (["record", "x", "no.jsonl", "--model", "/nowhere"], "prompts must name existing"),
            (["export-head", "no-head", "--for", "vllm", "-o", "x"], "HEAD must be a folder"),
        ],
    )
    def test_a_failure_is_one_sentence(self, arguments: list[str], sentence: str) -> None:
        result = run(*arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert sentence in result.stderr
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.stderr

    def test_a_model_without_a_shipped_head_needs_one(self, tiny: SimpleNamespace) -> None:
        result = run("generate", PROMPT, "--model", str(tiny.target))
        assert result.exit_code == 1
        assert "--draft must be given" in result.stderr

    def test_the_systems_errors_are_sentences(self, tmp_path: Path) -> None:
        nowhere = tmp_path / "nowhere" / "cost.json"
        result = run("train-policy", "--traces", str(tmp_path), "--cost", str(nowhere), "-o", "x")
        assert result.exit_code == 1
        assert str(nowhere) in result.stderr
        assert "Errno" not in result.stderr

    def test_debug_shows_the_traceback(self) -> None:
        result = run("prepare", "gpt-5", "--debug")
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert one_line(result.stderr).endswith("got 'gpt-5'")

    def test_an_unforeseen_error_tells_its_type(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("eaglerl.prepare.prepare_model", lambda *_, **__: {}["key"])
        result = run("prepare")
        assert result.exit_code == 1
        assert result.stderr == "error: KeyError: 'key' (--debug shows where)\n"

    def test_an_interrupt_has_its_own_exit_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("eaglerl.prepare.prepare_model", interrupt)
        result = run("prepare")
        assert result.exit_code == 130
        assert result.stderr.strip() == "interrupted"


class TestPrepare:
    def test_names_the_folder(self, smollm2_path: Path) -> None:
        result = run("prepare")
        assert result.exit_code == 0
        assert result.stderr.startswith("ready: ")
        shown = Path(result.stderr.removeprefix("ready: ").strip())
        assert shown.resolve() == smollm2_path.resolve()


class TestGenerate:
    NEW_TOKENS = 12

    def expected(self, tiny: SimpleNamespace, text: str) -> str:
        return greedy_text(tiny.target, text, self.NEW_TOKENS) + "\n"

    @pytest.mark.parametrize("options", [["--plain"], [], ["--tree", "6,1,3"]])
    def test_text_is_the_targets_own(self, tiny: SimpleNamespace, options: list[str]) -> None:
        result = run(
            *["generate", PROMPT, "--raw", "-n", str(self.NEW_TOKENS)], *options, *tiny.arguments
        )
        assert result.exit_code == 0, result.stderr
        assert result.stdout == self.expected(tiny, PROMPT)

    def test_prompt_from_stdin(self, tiny: SimpleNamespace) -> None:
        result = run(
            *["generate", "--raw", "-n", str(self.NEW_TOKENS), *tiny.arguments], stdin=PROMPT
        )
        assert result.stdout == self.expected(tiny, PROMPT)

    def test_chat_template_is_the_default(self, tiny: SimpleNamespace) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny.target)
        turns = [{"role": "user", "content": PROMPT}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        result = run("generate", PROMPT, "-n", str(self.NEW_TOKENS), *tiny.arguments)
        assert result.stdout == self.expected(tiny, text)

    def test_statistics_stay_off_stdout(self, tiny: SimpleNamespace) -> None:
        options = ["--raw", "-n", str(self.NEW_TOKENS), "--stats", *tiny.arguments]
        result = run("generate", PROMPT, *options)
        assert result.stdout == self.expected(tiny, PROMPT)
        rows = dict(
            line.strip("│┃ ").split("│") for line in result.stderr.splitlines() if "│" in line
        )
        table = {name.strip(): value.strip() for name, value in rows.items()}
        assert table["new tokens"] == str(self.NEW_TOKENS)
        assert float(table["tokens/s"]) > 0
        assert 1 <= float(table["mean acceptance length"]) <= 4

    @pytest.mark.parametrize("tree", ["6/1/3", "6-1-3", "6,1,3"])
    def test_json_holds_text_and_figures(self, tiny: SimpleNamespace, tree: str) -> None:
        options = ["--raw", "-n", str(self.NEW_TOKENS), "--tree", tree, "--json", *tiny.arguments]
        answer = json.loads(run("generate", PROMPT, *options).stdout)
        assert answer["text"] + "\n" == self.expected(tiny, PROMPT)
        assert (answer["new_tokens"], answer["finish_reason"]) == (self.NEW_TOKENS, "length")
        assert len(answer["token_ids"]) == self.NEW_TOKENS
        assert answer["tokens_per_second"] > 0

    def test_a_policy_chooses_the_trees(self) -> None:
        options = ["generate", "Name a planet.", "-n", "8", "--json"]
        plain, learned = (
            json.loads(run(*options, *more).stdout)
            for more in (["--plain"], ["--policy", "policy-ppo-smollm2-135m-instruct"])
        )
        assert learned["text"] == plain["text"]
        assert learned["num_cycles"] < plain["num_cycles"] == 7

    @pytest.mark.parametrize(
        ("options", "code", "sentence"),
        [
            (
                ["--policy", "nowhere"],
                1,
                "--policy must be a folder, or one of ['auto', 'none', 'policy-",
            ),
            (["--policy", "nowhere", "--plain"], 2, "give it, or --tree or --plain"),
        ],
    )
    def test_a_policy_is_looked_for_before_the_model_is_loaded(
        self, options: list[str], code: int, sentence: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr("eaglerl.cli.generate_command.load_decoder")
        result = run("generate", PROMPT, *options)
        assert (result.exit_code, result.stdout) == (code, "")
        assert sentence in one_line(result.stderr)

    def test_sampling_repeats_with_its_seed(self, tiny: SimpleNamespace) -> None:
        options = ["--raw", "-n", "8", "--temperature", "1", *tiny.arguments]
        texts = [run("generate", PROMPT, "--seed", seed, *options).stdout for seed in "112"]
        assert texts[0] == texts[1] != texts[2]

    def test_a_reader_that_goes_away_is_no_error(self, tiny: SimpleNamespace) -> None:
        command = [*EAGLERL, "generate", PROMPT, "--raw", "-n", "8000", *tiny.arguments]
        # The pipe holds a part of the text only: the rest is still to come when the reader goes.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pipesize=4096
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(PATIENCE) == 1
        process.stderr.close()


class TestDemo:
    def test_all_runs_and_the_comparison(self, tiny: SimpleNamespace) -> None:
        result = run("demo", PROMPT, "Why?", "-n", "16", "--rounds", "2", *tiny.arguments)
        assert result.exit_code == 0, result.stderr
        order = [PROMPT, "Why?", "every cycle", "tokens/s", "identical", "plain decoding", "tree "]
        positions = [result.stdout.index(part) for part in [*order, "policy /"]]
        assert positions == sorted(positions)
        rows = [line.split("│") for line in result.stdout.splitlines() if "│" in line]
        # Plain decoding, four constant trees and the policy; two answers of 16 tokens, twice.
        assert len(rows) == 6
        assert {row[-2].strip() for row in rows} == {"yes"}
        assert {row[-3].strip() for row in rows} == {"64"}
        assert "over 4 answers" in result.stdout

    def test_a_difference_is_a_failure(
        self, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from eaglerl.eagle3 import SpeculativeDecoder, TreeParams

        generate = SpeculativeDecoder.generate

        def wrong(self: SpeculativeDecoder, prompt: dict, policy: object, **options: object):
            shorter = {name: tensor[:, :-1] for name, tensor in prompt.items()}
            right = isinstance(policy, TreeParams)
            return generate(self, prompt if right else shorter, policy, **options)

        monkeypatch.setattr(SpeculativeDecoder, "generate", wrong)
        result = run("demo", PROMPT, "-n", "4", "--tree", "4/1/2", *tiny.arguments)
        assert result.exit_code == 1
        rows = [line.split("│") for line in result.stdout.splitlines() if "│" in line]
        assert [row[-2].strip() for row in rows] == ["yes", "yes", "no"]

    def test_what_the_policy_learned_is_kept(self, tiny: SimpleNamespace, cache: Path) -> None:
        for _ in range(2):
            result = run("generate", PROMPT, "-n", "16", *tiny.arguments)
            assert result.exit_code == 0, result.stderr
        from eaglerl.cost import OnlineCost

        (kept,) = (cache / "costs").glob("learned-*.json")
        first = OnlineCost.from_json(kept).cycles
        assert run("generate", PROMPT, "-n", "16", *tiny.arguments).exit_code == 0
        assert OnlineCost.from_json(kept).cycles > first
        # A constant tree learns nothing.
        before = kept.read_bytes()
        assert run("generate", PROMPT, "--policy", "none", *tiny.arguments).exit_code == 0
        assert kept.read_bytes() == before

    @pytest.mark.filterwarnings("default:the learned costs")
    def test_broken_learned_costs_are_reported_and_ignored(
        self, tiny: SimpleNamespace, cache: Path
    ) -> None:
        assert run("generate", PROMPT, "-n", "8", *tiny.arguments).exit_code == 0
        (kept,) = (cache / "costs").glob("learned-*.json")
        kept.write_text("{}")
        result = run("generate", PROMPT, "-n", "8", *tiny.arguments)
        assert result.exit_code == 0, result.stderr
        assert "it is ignored" in one_line(result.stderr)


class TestDistill:
    def test_writes_and_goes_on(self, tiny: SimpleNamespace, tmp_path: Path) -> None:
        output = tmp_path / "data.jsonl"
        options = ["-n", "8", "--slots", "4", "--model", str(tiny.target)]
        first = run("distill", str(output), "--response-tokens", "30", *options)
        assert first.exit_code == 0, first.stderr
        rows = output.read_text().splitlines()
        assert one_line(first.stderr).split(" holds ")[1].startswith(f"{len(rows)} answers")
        second = run("distill", str(output), "--response-tokens", "60", *options)
        assert second.exit_code == 0, second.stderr
        assert output.read_text().splitlines()[: len(rows)] == rows
        assert len(output.read_text().splitlines()) > len(rows)


class TestTrainDraft:
    def test_defaults_are_those_of_the_library(self) -> None:
        from eaglerl.cli.train_draft_command import train_draft
        from eaglerl.training.train_options import TrainOptions

        library = dataclasses.asdict(TrainOptions())
        offered = inspect.signature(train_draft).parameters
        shared = library.keys() & offered.keys()
        assert {name: offered[name].default for name in shared} == {
            name: library[name] for name in shared
        }
        assert len(shared) == 10

    def test_trains_a_head_that_generates(self, tiny: SimpleNamespace, tmp_path: Path) -> None:
        data, output = tmp_path / "data.jsonl", tmp_path / "run"
        generator = torch.Generator().manual_seed(0)
        with data.open("w") as file:
            for _ in range(40):
                ids = torch.randint(100, 400, (24,), generator=generator).tolist()
                file.write(json.dumps({"p": ids[:8], "r": ids[8:]}) + "\n")
        result = run(
            *["train-draft", str(data), "--output", str(output), "--model", str(tiny.target)],
            *["--epochs", "1", "--batch-tokens", "128", "--draft-vocab-size", "300"],
        )
        assert result.exit_code == 0, result.stderr
        assert f"head: {output / 'head'}" in result.stderr
        arguments = ["--model", str(tiny.target), "--draft", str(output / "head"), "-n", "6"]
        drafted, plain = (
            run("generate", PROMPT, *arguments, *options)
            for options in (["--tree", "4,1,2"], ["--plain"])
        )
        assert drafted.exit_code == 0, drafted.stderr
        assert drafted.stdout == plain.stdout

    def test_a_head_that_does_not_fit(self, tiny: SimpleNamespace, tmp_path: Path) -> None:
        data, output = tmp_path / "data.jsonl", tmp_path / "run"
        rows = [{"p": [100 + i], "r": [7, 8, 9]} for i in range(40)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = run(
            *["train-draft", str(data), "--output", str(output), "--model", str(tiny.target)],
            *["--initial-head", str(tiny.head), "--draft-vocab-size", "7"],
        )
        assert result.exit_code == 1
        assert "initial_head must have draft_vocab_size 7" in one_line(result.stderr)
        assert not output.exists()

    def test_data_that_is_not_there(self, tiny: SimpleNamespace, tmp_path: Path) -> None:
        missing, output = str(tmp_path / "none.jsonl"), tmp_path / "run"
        result = run("train-draft", missing, "--output", str(output), "--model", str(tiny.target))
        assert result.exit_code == 1
        assert "none.jsonl" in result.stderr
        assert not output.exists()


class Terminal:
    """A program on a pseudo-terminal of its own, started with the usual meaning of Ctrl-C."""

    def __init__(self, command: list[str]) -> None:
        pid, descriptor = pty.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(command[0], command, {**os.environ, "TERM": "xterm-256color"})
        self.pid = pid
        self.descriptor = descriptor
        self.shown = b""

    def read_until(self, part: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while part not in self.shown:
            assert time.monotonic() < deadline, self.shown[-2000:]
            self._read(0.1)

    def read_more(self, count: int) -> None:
        wanted = len(self.shown) + count
        deadline = time.monotonic() + PATIENCE
        while len(self.shown) < wanted:
            assert time.monotonic() < deadline, self.shown[-2000:]
            self._read(0.1)

    def press_ctrl_c(self) -> None:
        os.write(self.descriptor, b"\x03")

    def wait(self) -> int:
        """Return the exit code, or minus the signal that ended the program."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self._read(0.1)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                while self._read(0.1):
                    pass
                os.close(self.descriptor)
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, self.shown[-2000:]

    def _read(self, seconds: float) -> bool:
        """Take what the program has shown, if that is anything within some seconds."""
        if not select.select([self.descriptor], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.descriptor, 65536)
        except OSError:  # Linux's way to say that the program has closed the terminal
            return False
        self.shown += data
        return bool(data)


def assert_clean(shown: bytes) -> None:
    """The cursor is visible, the style reset, the last line complete, and no traceback shown."""
    hidden, visible = shown.rfind(b"\x1b[?25l"), shown.rfind(b"\x1b[?25h")
    assert visible >= hidden
    styles = [part.split(b"m")[0] for part in shown.split(b"\x1b[")[1:] if b"m" in part[:12]]
    assert not styles or styles[-1] == b"0"
    assert b"interrupted" in shown.splitlines()[-1]
    assert shown.endswith(b"\n")
    assert b"Traceback" not in shown


class TestCtrlC:
    def test_while_the_model_is_loading(self, tiny: SimpleNamespace) -> None:
        terminal = Terminal([*EAGLERL, "generate", PROMPT, *tiny.arguments])
        terminal.read_until(b"loading the model")
        terminal.press_ctrl_c()
        assert terminal.wait() == 130
        assert_clean(terminal.shown)

    def test_while_text_is_streaming(self, tiny: SimpleNamespace) -> None:
        terminal = Terminal([*EAGLERL, "demo", PROMPT, "-n", "8000", *tiny.arguments])
        terminal.read_until(PROMPT.encode())
        terminal.read_more(300)
        terminal.press_ctrl_c()
        assert terminal.wait() == 130
        assert_clean(terminal.shown)
