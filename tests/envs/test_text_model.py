"""The model that embeds the context's text: found in its package, named by an option, and saved."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.envs.observations import TEXT_MODEL, packaged_text_model, sentence_encoder
from eaglerl.resps.bench_policies import text_model_of
from eaglerl.resps.flags import FlagError, ReSpSFlags
from eaglerl.resps.policies import OptimizedSB3DiscretePPOOnlineTreePolicy, load_resps_policy
from eaglerl.resps.policies.policy_settings import PolicySettings

from ..traces.planted import ACTIONS


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What sentence-transformers is asked for: the model, and whether only files are read."""
    found: list[tuple[str, bool]] = []

    class SentenceTransformer:
        def __init__(self, model: str, *, device: str, local_files_only: bool) -> None:
            found.append((model, local_files_only))
            if "nowhere" in model:
                raise OSError("We couldn't connect to the hub. Check your connection.")

        def encode(self, text: str, *, show_progress_bar: bool) -> np.ndarray:
            return np.full(384, len(text), np.float32)

    stub = SimpleNamespace(SentenceTransformer=SentenceTransformer)
    monkeypatch.setitem(sys.modules, "sentence_transformers", stub)
    return found


def test_the_package_comes_before_the_hub(
    asked: list[tuple[str, bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = packaged_text_model()
    assert folder is not None
    assert (folder / "model.safetensors").is_file()
    assert sentence_encoder()("four").tolist() == [4.0] * 384
    sentence_encoder(str(tmp_path))
    monkeypatch.setattr("eaglerl.envs.observations._TEXT_PACKAGE", "no_such_package")
    sentence_encoder()
    sentence_encoder("another/model")
    assert asked == [
        (str(folder), True), (str(tmp_path), True), (TEXT_MODEL, False), ("another/model", False),
    ]  # fmt: skip


def test_what_cannot_be_had_is_named(asked: list[tuple[str, bool]]) -> None:
    message = r"text_model must be .* got 'nowhere/model': We couldn't connect .*eaglerl\[text\]"
    with pytest.raises(ValueError, match=message):
        sentence_encoder("nowhere/model")


def test_the_model_is_saved_with_the_policy(asked: list[tuple[str, bool]], tmp_path: Path) -> None:
    policy = OptimizedSB3DiscretePPOOnlineTreePolicy(
        hidden_size=8, actions=ACTIONS, use_context_only_state=True, text_model="my/model"
    )
    policy.save(tmp_path)
    assert json.loads((tmp_path / "policy.json").read_text())["settings"]["text_model"] == (
        "my/model"
    )
    loaded = load_resps_policy(tmp_path)
    assert loaded.settings.text_model == "my/model"
    loaded.predict_parameters("some text")
    assert asked == [("my/model", False)]
    # Policies saved before there was a choice have the default, and are written as before.
    assert "text_model" not in PolicySettings(hidden_size=8, actions=ACTIONS).to_dict()
    settings = PolicySettings.from_dict(PolicySettings(hidden_size=8, actions=ACTIONS).to_dict())
    assert settings.text_model == TEXT_MODEL
    with pytest.raises(ValueError, match="text_model must be a name or a folder, got ''"):
        replace(settings, text_model="")


def test_a_folder_is_saved_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert text_model_of("model") == str(tmp_path / "model")
    assert text_model_of("some/model") == "some/model"
    assert text_model_of(None) == TEXT_MODEL


def test_the_flag_needs_a_policy_of_text() -> None:
    given: dict[str, Any] = {"use_optimized_dqn": True, "text_model": "x", "given": {"text_model"}}
    with pytest.raises(FlagError, match="without --use-context-only-state"):
        ReSpSFlags(**given)
    assert ReSpSFlags(**given, use_context_only_state=True).text_model == "x"
    assert ReSpSFlags(**given, use_eagle3_features=False).text_model == "x"


@pytest.mark.slow
def test_the_packaged_model_embeds_as_transformers_does(
    tiny_folders: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = packaged_text_model()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    text = "A cat is sitting on a rug."
    with torch.no_grad():
        hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    # Mean pooling and normalisation, as the model's modules.json says.
    expected = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
    np.testing.assert_allclose(sentence_encoder()(text), expected, atol=1e-5)
    # The command, from its start to a policy that is saved and used again.
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question_id": 1, "turns": ["What is 1 and 1?"]}\n')
    command = ["evaluate", "--bench-name", str(questions), "--max-new-token", "8",
               *tiny_folders.arguments]  # fmt: skip
    new = ["--use-optimized-sb3-discrete-ppo", "--use-context-only-state", "--actions", "cpu",
           "--online-policy-save-path", str(tmp_path / "saved")]  # fmt: skip
    saved = ["--online-policy-path", str(tmp_path / "saved"), "--online-inference-only"]
    for name, flags in (("new", new), ("saved", saved)):
        answers = str(tmp_path / f"{name}.jsonl")
        result = CliRunner().invoke(app, [*command, *flags, "--answer-file", answers])
        assert result.exit_code == 0, result.output
        assert len(Path(answers).read_text().splitlines()) == 1
