"""`eaglerl export-head` on small heads and targets."""

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
AUX_CONVENTIONS = {"vllm": "input", "sglang": "output"}


@pytest.fixture
def head(tmp_path: Path) -> Path:
    config = Eagle3Config(**SIZES, draft_vocab_size=60, feature_layers=(1, 3, 5))
    Eagle3DraftHead(config).save_pretrained(tmp_path / "head")
    return tmp_path / "head"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=8)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export-head", *map(str, arguments)])
    return result.exit_code, result.output


def ids_of(folder: Path) -> list[int]:
    data = json.loads((folder / "config.json").read_text())
    return data["eagle_config"]["eagle_aux_hidden_state_layer_ids"]


def test_layers_are_placed(head: Path, target: Path, tmp_path: Path) -> None:
    code, output = run(head, "--for", "sglang", "-o", tmp_path / "out")
    assert code == 0
    assert "written:" in output
    assert ids_of(tmp_path / "out") == [0, 2, 4]
    code, _ = run(head, "--for", "sglang", "-o", tmp_path / "out", "--taps", "2,3,6")
    assert code == 0
    assert ids_of(tmp_path / "out") == [1, 2, 5]
    # The default layers of 8 are 2, 4 and 5.
    code, _ = run(head, "--for", "sglang", "-o", tmp_path / "out", "-m", target, "--taps", "2,4,5")
    assert code == 0
    assert "eagle_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_check_compares_with_the_neighbours(head: Path, target: Path, tmp_path: Path) -> None:
    code, output = run(head, "--for", "vllm", "-o", tmp_path / "out", "-m", target, "--check")
    assert code == 0
    assert "inputs of [1, 3, 5]" in output
    assert "inputs of [0, 2, 4]" in output
    assert "inputs of [2, 4, 6]" in output


def test_what_is_lost_is_measured(target: Path, tmp_path: Path) -> None:
    config = Eagle3Config(**SIZES, draft_vocab_size=60, feature_layers=(1, 3, 5), fc_norm=True)
    Eagle3DraftHead(config).save_pretrained(tmp_path / "normed")
    for engine in ("openvino", "llama.cpp"):
        out = tmp_path / engine
        arguments = [tmp_path / "normed", "--for", engine, "-o", out]
        code, output = run(*arguments)
        assert code == 1
        assert "does not run the three norms before fc" in output
        assert "--model" in output
        code, output = run(*arguments, "-m", target)
        assert code == 1
        assert "stands in for them" in output
        assert re.search(
            r"[1-4]\.\d\d tokens per pass of the target instead of [1-4]\.\d\d", output
        )
        assert not out.exists()
        code, output = run(*arguments, "-m", target, "--lossy")
        assert code == 0
        assert "measured: " in output
        assert "lost: " in output
        again = Eagle3DraftHead.from_pretrained(out, aux_layer_convention="input")
        assert again.config.norm_before_fc == (engine == "llama.cpp")
        assert not again.config.fc_norm
    for engine in ("vllm", "sglang"):
        assert run(tmp_path / "normed", "--for", engine, "-o", tmp_path / engine)[0] == 0
        assert (
            Eagle3DraftHead.from_pretrained(
                tmp_path / engine, aux_layer_convention=AUX_CONVENTIONS[engine]
            ).config
            == config
        )
    # The head without its norms, whatever that costs.
    code, _ = run(tmp_path / "normed", "--for", "openvino", "-o", tmp_path / "bare", "--lossy")
    assert code == 0
    assert not Eagle3DraftHead.from_pretrained(tmp_path / "bare").config.norm_before_fc


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--for", "trt"], "engine must be one of"),
        (["--for", "trt"], "--for"),
        (["--for", "vllm", "--check"], "give --model"),
        (["--for", "vllm", "--taps", "1,1,2"], "--feature-layers"),
    ],
)
def test_wrong_arguments(head: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, output = run(head, "-o", tmp_path / "out", *arguments)
    assert code != 0
    assert message in output
    assert not (tmp_path / "out").exists()


def test_nothing_else_is_overwritten(head: Path, target: Path, tmp_path: Path) -> None:
    """A head would lose what the engine does not run; another model would be gone."""
    (tmp_path / "link").symlink_to(head)
    for folder in (head, tmp_path / "link", target):
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        code, output = run(head, "--for", "openvino", "-o", folder)
        assert code == 2
        assert "another" in output
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    for _ in range(2):
        assert run(head, "--for", "vllm", "-o", tmp_path / "out")[0] == 0
