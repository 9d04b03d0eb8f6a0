"""Modes by name, and policies that are found in a folder."""

import json
import os
from pathlib import Path

import pytest

from eaglerl.eagle3 import DraftPlan, TreeParams
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP
from eaglerl.server import Mode, Modes, find_policies, standard_modes

from ..resps.small_policies import PPO, make_policy
from .tiny import greedy_text, tiny_decoder


def test_a_constant_tree_has_its_numbers_for_a_name() -> None:
    modes = Modes(standard_modes(TreeParams(4, 1, 4)), "plain")
    assert modes.get("tree-9-2-3").make().params == TreeParams(9, 2, 3)
    assert modes.get("best-constant").make().params == TreeParams(4, 1, 4)
    assert isinstance(modes.get("lookup").make().choose(_NoMatch()), DraftPlan)


class _NoMatch:
    def lookup(self, max_tokens: int):
        return NO_LOOKUP


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fastest", "mode must be tree:T/D/K or one of"),
        ("tree:129/7/10", "total_tokens of a constant tree must be at most 128"),
        ("tree-9-99-3", "depth of a constant tree must be at most 16"),
        ("tree-9-2-999", "top_k of a constant tree must be at most 16"),
        ("tree-9-0-2", "asks for 8 drafted nodes"),
    ],
)
def test_a_name_of_nothing(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Modes(standard_modes(), "plain").get(name)
    with pytest.raises(ValueError, match=reason):
        Modes(standard_modes(), name)


def test_a_default_tree_is_listed_first() -> None:
    names = [mode.name for mode in Modes(standard_modes(), "tree-9-2-3")]
    assert names[0] == "tree:9/2/3"
    assert len(names) == len(standard_modes()) + 1


def test_a_policy_stands_beside_a_constant_tree() -> None:
    standard = standard_modes()
    assert Modes(standard, "best-constant").side_by_side() == ["best-constant", "plain"]
    assert Modes(standard, "plain").side_by_side() == ["plain", "best-constant"]
    assert Modes(standard, "tree:9/2/3").side_by_side() == ["tree:9/2/3", "best-constant"]
    policies = [Mode(name, "Trained.", standard[0].make, trained=True) for name in ("a", "b")]
    for default, beside in (("a", "best-constant"), ("tree:9/2/3", "tree:9/2/3")):
        assert Modes([*standard, *policies], default).side_by_side() == ["a", beside]


def test_two_modes_of_one_name() -> None:
    with pytest.raises(ValueError, match=r"names of modes must be distinct"):
        Modes([*standard_modes(), *standard_modes()], "plain")


def test_a_policy_is_not_shared_while_it_is_in_use() -> None:
    mode = Modes(standard_modes(), "plain").get("lookup")
    first, second = mode.take(), mode.take()
    assert first is not second
    mode.give_back(first)
    assert mode.take() is first


def test_policies_of_the_head_are_found(tmp_path: Path) -> None:
    decoder, other = tiny_decoder(), tiny_decoder(seed=1)
    (tmp_path / "something-else").mkdir()
    for name, owner in (("mine", decoder), ("theirs", other)):
        policy = make_policy(PPO, hidden_size=decoder.target.hidden_size, head=owner.draft_head)
        policy.save(tmp_path / name)
    with pytest.warns(UserWarning, match="theirs is left out"):
        (mode,) = find_policies(tmp_path, decoder)
    assert mode.name == "mine"
    assert mode.trained
    ids = decoder.tokenizer("hello").input_ids
    output = decoder.generate([ids], mode.take(), max_new_tokens=30)
    assert decoder.tokenizer.decode(output.sequences[0, len(ids) :]) == greedy_text("hello", 30)


def test_broken_policies_are_left_out_and_named(tmp_path: Path) -> None:
    decoder = tiny_decoder()
    policy = make_policy(PPO, hidden_size=decoder.target.hidden_size, head=decoder.draft_head)
    damages = {
        "a-type": lambda folder: change(folder, "settings", 3),
        "a-range": lambda folder: change(folder, "version", 1 << 80),
        "deep": lambda folder: (folder / "policy.json").write_text("[" * 100_000),
        "a-list": lambda folder: (folder / "config.json").write_text("[]"),
        "no-card": lambda folder: (folder / "policy.json").write_bytes(b"\xff"),
        "cut": lambda folder: (
            (folder / "policy.json").unlink() or (folder / "model.safetensors").write_bytes(b"abc")
        ),
        "pipe": lambda folder: (
            (folder / "config.json").unlink() or os.mkfifo(folder / "config.json")
        ),
        "a name": lambda folder: None,
    }
    for name in ("fine", *damages):
        policy.save(tmp_path / name)
    for name, damage in damages.items():
        damage(tmp_path / name)
    with pytest.warns(UserWarning, match="is left out") as caught:
        found = find_policies(tmp_path, decoder)
    assert [mode.name for mode in found] == ["fine"]
    told = [str(warning.message) for warning in caught]
    assert len(told) == len(damages)
    for name in damages:
        assert any(str(tmp_path / name) in text for text in told), name


def change(folder: Path, key: str, value: object) -> None:
    card = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(card | {key: value}))


def test_the_old_name_of_trained_warns() -> None:
    with pytest.warns(DeprecationWarning, match="it is called trained"):
        mode = Mode("a", "Trained.", lambda: None, learned=True)
    assert mode.trained
    with pytest.warns(DeprecationWarning, match="it is called trained"):
        assert mode.learned
