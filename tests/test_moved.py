"""Import paths of the release before: they give the same objects, and warn."""

import importlib
import runpy
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from eaglerl._moved import MOVED_MODULES, MOVED_NAMES
from eaglerl._renamed import RenamedAttribute, renamed_arguments
from eaglerl.eagle3 import DecodingSession, SpeculativeDecoder, TargetModel, TreeParams
from eaglerl.eagle3.policy import Selection
from eaglerl.eagle3.sampling import GreedyVerifier
from eaglerl.eagle3.target.block_target import BlockTarget
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.eagle3.target.transformers_target import TransformersTarget
from eaglerl.ops import ActionCache, DraftTreeBuilder, PolicyWeights, action_cache_step
from eaglerl.policies.policy_folder import PolicyFiles
from eaglerl.traces.trace_set import TraceSet

from .eagle3.tiny import tiny_head, tiny_model

#: Needs a library that the tests do without.
OPTIONAL = {"eaglerl.rl.wandb_output"}
BECAME_PACKAGES = {
    "eaglerl.eagle3.target": ("eaglerl.eagle3.target.target_model", "TargetModel"),
    "eaglerl.eagle3.tree": ("eaglerl.eagle3.tree.tree_drafter", "TreeDrafter"),
    "eaglerl.evaluation.modes": ("eaglerl.evaluation.modes.mode_names", "ModeSpec"),
    "eaglerl.evaluation.questions": ("eaglerl.evaluation.questions.question_files", "Question"),
    "eaglerl.evaluation.statistics": ("eaglerl.evaluation.statistics.summary", "summarise"),
}


@pytest.mark.parametrize("old", sorted(MOVED_MODULES.keys() - OPTIONAL))
def test_an_old_module_is_the_new_one(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    new = MOVED_MODULES[old]
    with pytest.warns(DeprecationWarning, match=f"{old} is deprecated .*import {new}$"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(new)


@pytest.mark.parametrize("name", sorted(MOVED_NAMES))
def test_an_old_name_is_the_new_one(name: str) -> None:
    module, _, attribute = MOVED_NAMES[name].partition(":")
    with pytest.warns(DeprecationWarning, match=f"eaglerl.rl.{name} is deprecated"):
        old = getattr(importlib.import_module("eaglerl.rl"), name)
    assert old is getattr(importlib.import_module(module), attribute or name)


def test_old_arguments_and_fields_work() -> None:
    with pytest.warns(DeprecationWarning, match="argument chain_tokens .*use lookup_tokens$"):
        selection = Selection(np.arange(3), chain_tokens=2)
    with pytest.warns(DeprecationWarning, match=r"use Selection\.lookup_tokens$"):
        assert selection.chain_tokens == selection.lookup_tokens == 2
    with pytest.warns(DeprecationWarning, match="argument chain_tokens"):
        assert replace(selection, chain_tokens=5).lookup_tokens == 5

    class Home:
        old = RenamedAttribute("new")

        @classmethod
        def new(cls, first: int, second: int) -> tuple[int, int]:
            return first, second

    with pytest.warns(DeprecationWarning, match=r"Home.old is deprecated .*use Home.new$"):
        assert Home.old(1, 2) == (1, 2)
    with pytest.warns(DeprecationWarning, match="The argument last"):
        assert renamed_arguments(last="second")(Home.new)(1, last=2) == (1, 2)


def test_old_names_of_the_ops_work() -> None:
    mlp = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    with pytest.warns(DeprecationWarning, match="argument bins .*use actions$"):
        weights = PolicyWeights.from_modules(mlp, bins=[[8, 2, 4]], mlp_input="taps")
    with pytest.warns(
        DeprecationWarning, match=r"PolicyWeights\.bins .*use PolicyWeights\.actions$"
    ):
        assert weights.bins is weights.actions
    with pytest.warns(DeprecationWarning, match=r"use PolicyWeights\.joined_size$"):
        assert weights.taps_size == 6
    with pytest.warns(DeprecationWarning, match="argument bins"):
        assert replace(weights, bins=weights.actions + 1).actions.tolist() == [[9, 3, 5]]
    with pytest.warns(DeprecationWarning, match="argument bins"):
        action, _ = action_cache_step(torch.ones(1, 1), bins=weights.actions, cache=ActionCache())
    assert action.tolist() == [0]
    builder = DraftTreeBuilder()
    builder.begin(1, 2)
    builder.first(torch.tensor([0.0, 2.0, 1.0]))
    with pytest.warns(DeprecationWarning, match=r"use DraftTreeBuilder\.lookup_nodes$"):
        assert builder.chain_nodes([2], 1).tolist() == [1]
    with pytest.warns(DeprecationWarning, match="argument chain .*use lookup_tokens$"):
        assert len(builder.finish_selected([0], chain=[2, 0]).token_ids) == 4


def test_old_attributes_work(tmp_path) -> None:
    traces = object.__new__(TraceSet)
    traces.header = {"draft_dtype": "int8"}
    with pytest.warns(DeprecationWarning, match=r"use TraceSet\.header$"):
        assert traces.index == {"draft_dtype": "int8"}
    (tmp_path / "policy.safetensors").write_bytes(b"weights")
    files = PolicyFiles(tmp_path)
    with pytest.warns(DeprecationWarning, match=r"use PolicyFiles\.fingerprint$"):
        assert files.identity == files.fingerprint
    builder = DraftTreeBuilder()
    builder.begin(0, 2)
    builder.first(torch.zeros(4))
    with pytest.warns(DeprecationWarning, match=r"use DraftTreeBuilder\.lookup_nodes$"):
        assert builder.chain_nodes([1], 1).tolist() == builder.lookup_nodes([1], 1).tolist()


def test_a_decoder_has_its_old_names() -> None:
    target = make_target(tiny_model())
    with pytest.warns(DeprecationWarning, match=r"argument draft .*use draft_head$"):
        decoder = SpeculativeDecoder(target, draft=tiny_head(target))
    with pytest.warns(DeprecationWarning, match=r"use SpeculativeDecoder\.draft_head$"):
        assert decoder.head is decoder.draft_head
    with pytest.warns(DeprecationWarning, match=r"use SpeculativeDecoder\.draft_runner$"):
        assert decoder.draft is decoder.draft_runner
    assert decoder.draft_head is not None
    with pytest.warns(DeprecationWarning, match=r"argument policy .*use bound_policy$"):
        DecodingSession(target, None, GreedyVerifier(), target.new_cache(8), policy=None)


@pytest.mark.parametrize("old", sorted(BECAME_PACKAGES))
def test_a_module_that_became_a_package_offers_what_it_had(old: str) -> None:
    new, name = BECAME_PACKAGES[old]
    with pytest.warns(DeprecationWarning, match=f"{name} from {new}"):
        value = getattr(importlib.import_module(old), name)
    assert value is getattr(importlib.import_module(new), name)


def test_what_never_was_is_missing() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("eaglerl.rl.nothing")
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = importlib.import_module("eaglerl.rl").Nothing
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = importlib.import_module("eaglerl.eagle3.target").Nothing


def test_a_target_is_still_made_by_its_old_methods(tmp_path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    with pytest.warns(DeprecationWarning, match=r"TargetModel\.from_model .* call make_target"):
        assert isinstance(TargetModel.from_model(model, backend="packed"), BlockTarget)
    with pytest.warns(
        DeprecationWarning, match=r"TargetModel\.from_pretrained .* call load_target"
    ):
        target = TargetModel.from_pretrained(tmp_path, backend="transformers")
    assert isinstance(target, TransformersTarget)


def test_the_warning_points_at_the_import(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "old.py"
    script.write_text("from eaglerl.eagle3.params import TreeParams\n")
    monkeypatch.delitem(sys.modules, "eaglerl.eagle3.params", raising=False)
    with pytest.warns(DeprecationWarning, match=r"eaglerl\.eagle3\.params is deprecated") as told:
        assert runpy.run_path(str(script))["TreeParams"] is TreeParams
    assert [(warning.filename, warning.lineno) for warning in told] == [(str(script), 1)]


def test_the_package_offers_its_names_without_importing_torch() -> None:
    script = "import sys, eaglerl; print('torch' in sys.modules, 'load_policy' in dir(eaglerl))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False True\n"
    from eaglerl import SpeculativeDecoder as Decoder
    from eaglerl import TreeParams as Tree
    from eaglerl import load_policy

    assert (Decoder, Tree) == (SpeculativeDecoder, TreeParams)
    assert load_policy.__module__ == "eaglerl.policies.policy_folder"
