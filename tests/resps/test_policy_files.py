"""Policies on disk: round trips, what is refused, checkpoints, and logs."""

import io
import itertools
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eaglerl.eagle3.policy import TreeParams
from eaglerl.envs.observations import ObservationSpec
from eaglerl.fingerprints import head_id
from eaglerl.resps.policies import load_resps_policy
from eaglerl.runs.checkpoints import CheckpointFolder, read_checkpoint
from eaglerl.traces.simulation import simulate

from ..traces.planted import ACTIONS, COST, WIDTH, planted_traces
from ..traces.test_oracle import ACTIONS as TREES
from ..traces.tiny import tiny_decoder
from .small_policies import BOTH, DQN, PPO, features, make_policy


def decide(policy, count: int = 12) -> list[tuple[int, int, int]]:
    return [policy.predict_parameters(hidden_states=features(i)) for i in range(count)]


def learn(policy, traces: int = 2, seed: int = 0) -> None:
    policy.training_mode = True
    simulate(policy, planted_traces(traces, seed=seed, positions=40), COST)
    policy.training_mode = False


@BOTH
def test_what_is_saved_decides_the_same(policy_class: type, tmp_path: Path) -> None:
    policy = make_policy(policy_class, inference_temperature=0.7, seed=5)
    learn(policy)
    policy.reset()
    policy.save(tmp_path)
    loaded = load_resps_policy(tmp_path, hidden_size=WIDTH, actions=ACTIONS)
    assert type(loaded) is policy_class
    assert loaded.settings.to_dict() == policy.settings.to_dict()
    assert loaded.configuration == policy.configuration
    assert loaded.settings.spec == ObservationSpec("features", WIDTH)
    policy._draws = itertools.count(1)
    assert decide(loaded) == decide(policy)
    # It can also continue to learn, from the same actor.
    rows = torch.randn(20, WIDTH)
    with torch.no_grad():
        if policy_class is DQN:
            expected, actual = (p.learner.model.q_net(rows) for p in (policy, loaded))
        else:
            distributions = (
                p.learner.model.policy.get_distribution(rows) for p in (policy, loaded)
            )
            expected, actual = (d.distribution.logits for d in distributions)
    assert torch.equal(expected, actual)
    learn(loaded)


def test_inference_opens_no_pickle_and_needs_no_stable_baselines3(tmp_path: Path) -> None:
    make_policy(PPO).save(tmp_path / "policy")
    code = """
import pickle, sys, zipfile
sys.modules["stable_baselines3"] = sys.modules["gymnasium"] = None
import torch
from eaglerl.resps.policies import load_resps_policy
def forbidden(*args, **kwargs):
    raise AssertionError("a pickle or an archive was opened")
pickle.load = pickle.loads = pickle.Unpickler = torch.load = zipfile.ZipFile = forbidden
policy = load_resps_policy(sys.argv[1])
print(policy.predict_parameters(hidden_states=torch.ones(12)))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "policy")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert TreeParams(*eval(result.stdout)) in ACTIONS


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was opened')",))


def test_pickles_and_archives_are_refused(tmp_path: Path) -> None:
    make_policy(PPO).learner.model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"got the file .*model\.zip.*never opened"):
        load_resps_policy(tmp_path / "model.zip")
    folder = tmp_path / "policy"
    make_policy(PPO).save(folder)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data", pickle.dumps(Trap()))
    for content in (pickle.dumps(Trap()), archive.getvalue()):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors' cannot be read"):
            load_resps_policy(folder)


def test_another_width_actions_head_or_algorithm_is_refused(tmp_path: Path) -> None:
    make_policy(PPO).save(tmp_path)
    with pytest.raises(ValueError, match="hidden_size of the policy is 12, wanted 576"):
        PPO.load(tmp_path, hidden_size=576)
    with pytest.raises(ValueError, match=r"actions of the policy .*6 actions.*wanted .*5 actions"):
        PPO.load(tmp_path, actions=TREES)
    with pytest.raises(ValueError, match="of the algorithm 'ppo', wanted 'dqn'"):
        DQN.load(tmp_path)
    decoder, other = tiny_decoder(), tiny_decoder(seed=1)
    width = decoder.draft_head.config.hidden_size
    with pytest.raises(ValueError, match=f"features of width 12, the draft head has {width}"):
        PPO.load(tmp_path, head=decoder.draft_head)
    make_policy(PPO, hidden_size=width, head=decoder.draft_head).save(tmp_path)
    ids = head_id(decoder.draft_head), head_id(other.draft_head)
    with pytest.raises(ValueError, match=f"head_id of the policy is {ids[0]}, wanted {ids[1]}"):
        PPO.load(tmp_path, head=other.draft_head)
    assert PPO.load(tmp_path, head=decoder.draft_head).settings.hidden_size == width


def change_card(folder: Path, change: Callable[[dict], object]) -> None:
    card = json.loads((folder / "policy.json").read_text())
    change(card)
    (folder / "policy.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(format="x"), '"format" must be'),
        (lambda card: card.update(version=9), "version of the policy's card .* must be 1, got 9"),
        (lambda card: card.update(algorithm="a2c"), r"one of \['dqn', 'ppo'\], got 'a2c'"),
        (lambda card: card.update(settings=None), r"'settings' of the policy's card .* an object"),
        (
            lambda card: card.update(model=[]),
            r"'model' of the policy's card .* must be an object, got \[\]",
        ),
        (lambda card: card["model"].update(flavour=1), r"unknown \['flavour'\]"),
        (
            lambda card: card["model"].update(net_arch="64"),
            "policy's card .*: net_arch must be widths",
        ),
        (lambda card: card["model"].update(gamma="1"), r"gamma must lie in 0..1, got '1'"),
        (
            lambda card: card["settings"].update(reward="fun"),
            "'reward' of the entry 'settings' must be one of",
        ),
        (lambda card: card["settings"].pop("seed"), "the entry 'settings' lacks 'seed'"),
        (
            lambda card: card["settings"].update(hidden_size="k"),
            "'hidden_size' of the entry 'settings' must be an integer",
        ),
        (
            lambda card: card["settings"].update(reference=1),
            "'reference' of the entry 'settings' must be true or false, got 1",
        ),
        (
            lambda card: card["settings"].update(action_cache_steps=0),
            "'action_cache_steps' of the entry 'settings' must be at least 1, got 0",
        ),
        (
            lambda card: card["settings"].update(actions={}),
            "the entry 'settings' lacks 'actions.format'",
        ),
        (lambda card: card["settings"].update(horizon=1 << 30), "must be at most 1024"),
        (lambda card: card["settings"].update(hidden_size=1 << 30), "must be at most 131072"),
        (lambda card: card["model"].update(n_steps=1 << 40), "n_steps must be at most"),
        (lambda card: card["model"].update(net_arch=[1 << 30]), "of at most 8192 units"),
        (lambda card: card["model"].update(net_arch=[[1]]), "net_arch must be widths"),
        (lambda card: card["settings"]["observation"].update(width=7), "got 12"),
        (
            lambda card: card["settings"]["actions"]["actions"].pop(),
            r"must choose from .*5 actions.*got 6",
        ),
    ],
)
def test_malformed_cards_are_named(change, message: str, tmp_path: Path) -> None:
    make_policy(PPO).save(tmp_path)
    change_card(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_resps_policy(tmp_path)


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("policy.json", "config.json", "model.safetensors"):
        folder = tmp_path / name
        make_policy(PPO).save(folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ValueError, match=f"{name}' must be a regular file, got a pipe"):
            load_resps_policy(folder)


def test_malformed_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"policy\.json' cannot be read"):
        load_resps_policy(tmp_path)
    make_policy(PPO).save(tmp_path)
    (tmp_path / "policy.json").write_text("{")
    with pytest.raises(ValueError, match=r"policy\.json' cannot be read"):
        load_resps_policy(tmp_path)
    make_policy(PPO).save(tmp_path)
    file = tmp_path / "model.safetensors"
    # Copies: loaded tensors may map the file, which is about to be truncated.
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"model\.safetensors' cannot be read"):
        load_resps_policy(tmp_path)
    tensors.pop("output_bias")
    save_file(tensors, file)
    with pytest.raises(ValueError, match="missing tensors"):
        load_resps_policy(tmp_path)


def sequences(policy, first: int, last: int) -> None:
    """Learn from sequences of 7 cycles each."""
    for number in range(first, last):
        for cycle in range(7):
            policy.predict_parameters(
                hidden_states=features(100 * number + cycle), training_mode=True
            )
            policy.update_policy(generation_time=0.1 + 0.01 * cycle, new_tokens=1 + number % 4)
        policy.reset()


@BOTH
def test_resumed_online_it_learns_as_if_unbroken(policy_class: type, tmp_path: Path) -> None:
    def new(folder: str, **options: object):
        return make_policy(
            policy_class, checkpoint_dir=tmp_path / folder, checkpoint_freq=1000, **options
        )

    whole = new("a")
    sequences(whole, 0, 12)
    broken = new("b")
    # 7 sequences of 3 windows: in the middle of a rollout of 8.
    sequences(broken, 0, 7)
    broken.save_checkpoint()
    sequences(broken, 7, 9)
    resumed = new("b")
    assert resumed.resume()
    info = resumed.get_resume_info()
    assert (info["sequences"], info["windows"], info["seed"]) == (7, 21, 0)
    sequences(resumed, 7, 12)
    expected, actual = whole.weights.tensors(), resumed.weights.tensors()
    assert all(torch.equal(value, actual[name]) for name, value in expected.items())
    assert whole.get_performance_stats() == resumed.get_performance_stats()
    with pytest.raises(ValueError, match=r"seed must be 0, as in the run .* got 3"):
        new("b", seed=3).resume()
    assert not new("c").resume()
    with pytest.raises(ValueError, match="no checkpoint_dir"):
        make_policy(policy_class).resume()


def test_checkpoints_are_made_and_pruned_and_broken_ones_skipped(tmp_path: Path) -> None:
    policy = make_policy(DQN, checkpoint_dir=tmp_path, checkpoint_freq=4, max_checkpoints=2)
    sequences(policy, 0, 7)
    names = [file.name for file in CheckpointFolder(tmp_path, {}).files()]
    assert names == ["step-0000000016.safetensors", "step-0000000020.safetensors"]
    assert policy.get_resume_info()["checkpoint"].endswith(names[-1])
    newest = tmp_path / names[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    again = make_policy(DQN, checkpoint_dir=tmp_path)
    with pytest.warns(UserWarning, match=names[-1]):
        assert again.resume()
    assert again.get_resume_info()["windows"] == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (pickle.dumps({"a": 1}), "cannot be read"),
    ],
)
def test_broken_checkpoints_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "step-0000000001.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_checkpoint(path)
    assert path.name in str(caught.value)


def test_other_safetensors_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"the checkpoint .* is none"):
        read_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path, metadata={"header": "{"})
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(path)
    header = {"format": "eaglerl-policy-checkpoint", "version": 1, "step": "x"}
    save_file({"a": torch.zeros(1)}, path, metadata={"header": json.dumps(header)})
    with pytest.raises(ValueError, match="'step' of the checkpoint"):
        read_checkpoint(path)


@BOTH
def test_tensorboard_is_told(policy_class: type, tmp_path: Path) -> None:
    policy = make_policy(policy_class, tensorboard_dir=tmp_path, n_steps=8) if (
        policy_class is PPO
    ) else make_policy(policy_class, tensorboard_dir=tmp_path, batch_size=8)  # fmt: skip
    sequences(policy, 0, 40)
    policy.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()
    wanted = {"policy/reward", "policy/hit_rate", "train/loss", "train/learning_rate"}
    if policy_class is PPO:
        wanted |= {"train/approx_kl", "train/entropy_loss", "train/explained_variance"}
    assert wanted <= set(tags["scalars"])
    assert tags["histograms"] == ["policy/actions"]
    assert any(tag.startswith("policy/feature_source") for tag in tags["tensors"])
    assert events.Scalars("policy/hit_rate")[-1].value == pytest.approx(4 / 7)


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    policy = make_policy(PPO, use_wandb=True, wandb_run_name="test")
    sequences(policy, 0, 40)
    policy.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for name in (b"policy/hit_rate", b"policy/actions", b"train/approx_kl", b"action_cache_steps"):
        assert name in content


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"eaglerl\[wandb\]"):
        make_policy(PPO, use_wandb=True)
