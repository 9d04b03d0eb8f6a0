"""`eaglerl export-policy --for onnx`: the graph beside the reference and stable-baselines3."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, of the extra dev")

from eaglerl.cli.app import app  # noqa: E402
from eaglerl.envs.action_repeat import decide  # noqa: E402
from eaglerl.envs.observations import ObservationSpec  # noqa: E402
from eaglerl.ops import PolicyWeights, fused_encode_ref  # noqa: E402
from eaglerl.policies.policy_folder import NoPolicyError  # noqa: E402
from eaglerl.policy_export import export_onnx  # noqa: E402
from eaglerl.policy_export.onnx_graph import policy_graph  # noqa: E402
from eaglerl.prepare import shipped_policies  # noqa: E402
from eaglerl.resps.policies.load_saved import load_resps_policy  # noqa: E402

from ..ops.policies import make_modules  # noqa: E402
from ..resps.small_policies import BOTH, DQN, PPO, make_policy  # noqa: E402
from ..traces.planted import ACTIONS, WIDTH  # noqa: E402


def run(model: Any, *parts: np.ndarray) -> list[np.ndarray]:
    """Return scores, action and tree by onnxruntime."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, dict(zip(names, parts, strict=True)))


def observations(width: int, count: int = 400) -> np.ndarray:
    """Random rows of four scales, and what lies at the edges."""
    draw = np.random.default_rng(1)
    scales = draw.choice([1e-3, 0.1, 1.0, 10.0], (count, 1))
    rows = (draw.standard_normal((count, width)) * scales).astype(np.float32)
    rows[:6] = 0.0
    rows[1] = 1e-40
    rows[2, 0] = np.nan
    rows[3, -1] = np.inf
    rows[4] = 3e38
    rows[5] = -rows[6]
    return rows


def check(scores: np.ndarray, actions: np.ndarray, weights: PolicyWeights, x: np.ndarray) -> None:
    """Compare with the reference in float64; actions may differ where scores are equal."""
    wide = torch.from_numpy(x).double()
    out = fused_encode_ref(wide, None, None, weights.to(dtype=torch.float64))
    expected = out.logits.numpy()
    usable = np.isfinite(scores).all(axis=1)
    # Sums of huge numbers overflow in float32 alone.
    compared = np.isfinite(x).all(axis=1) & (np.abs(x).max(axis=1) < 1e30)
    assert compared.sum() >= len(x) - 3
    assert np.all(usable[compared])
    largest = np.abs(expected[compared]).max(axis=1, keepdims=True)
    assert np.all(np.abs(scores - expected)[compared] <= 2e-5 * np.maximum(largest, 1.0))
    assert np.all(actions[~usable] == weights.fallback_action)
    windows = scores[usable].reshape(usable.sum(), weights.horizon, -1)
    assert np.array_equal(actions[usable], windows.argmax(axis=2))


@BOTH
def test_it_decides_as_stable_baselines3_predicts(policy_class: type, tmp_path: Path) -> None:
    policy = make_policy(policy_class, max_entropy_inference=False)
    if policy_class is PPO:
        # PPO begins with logits of some thousandths; trained ones differ by more than rounding.
        with torch.no_grad():
            policy.learner.model.policy.action_net.weight.mul_(100)
    policy.save(tmp_path / "policy")
    described = export_onnx(tmp_path / "policy", tmp_path / "policy.onnx")
    x = observations(WIDTH)
    scores, actions, trees = run((tmp_path / "policy.onnx").read_bytes(), x)
    weights = policy.weights
    assert actions.dtype == trees.dtype == np.int32
    assert np.array_equal(trees[:, 0], weights.actions.numpy()[actions[:, 0]])
    check(scores, actions, weights, x)
    finite = np.isfinite(x).all(axis=1) & (np.abs(x).max(axis=1) < 1e30)
    expected, _ = policy.learner.model.predict(x[finite], deterministic=True)
    ordered = np.sort(scores[finite], axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 1e-5 * np.maximum(np.abs(ordered).max(axis=1), 1.0)
    assert clear.mean() > 0.95
    assert np.array_equal(actions[finite, 0][clear], expected[clear])
    # And as the library's own op does.
    own = decide(weights, torch.from_numpy(x[finite]))
    assert np.array_equal(actions[finite, 0][clear], own[clear, 0])
    text = onnx.load(tmp_path / "policy.onnx").metadata_props[0].value
    description = json.loads(described.read_text())
    assert json.loads(text) == description
    assert described == tmp_path / "policy.onnx.json"
    assert description["trees"] == ACTIONS.tensor.tolist()
    assert description["outputs"]["scores"] == (
        "logits" if policy_class is PPO else "action values"
    )
    assert description["temperature"] == 0.0
    assert description["cycles_per_decision"] == 3


def test_scores_that_are_not_finite_fall_back(tmp_path: Path) -> None:
    make_policy(PPO).save(tmp_path / "policy")
    export_onnx(tmp_path / "policy", tmp_path / "policy.onnx")
    policy = load_resps_policy(tmp_path / "policy")
    x = np.zeros((3, WIDTH), dtype=np.float32)
    x[1, 0], x[2, 1] = np.nan, np.inf
    _, actions, _ = run((tmp_path / "policy.onnx").read_bytes(), x)
    chosen = fused_encode_ref(torch.from_numpy(x), None, None, policy.weights).action.numpy()
    assert np.array_equal(actions[:2, 0], chosen[:2])
    assert actions[1, 0] == policy.weights.fallback_action


def test_ties_go_to_the_lowest_index() -> None:
    weights = PolicyWeights(
        hidden_weights=(torch.eye(2),),
        hidden_biases=(torch.zeros(2),),
        output_weight=torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]),
        output_bias=torch.zeros(4),
        actions=torch.tensor([[1, 0, 1], [2, 1, 1], [3, 1, 2], [4, 2, 2]], dtype=torch.int32),
        fallback_action=3,
    )
    x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0], [np.nan, 0.0]], dtype=np.float32)
    scores, actions, trees = run(policy_graph(weights, main_input="features"), x)
    assert actions[:, 0].tolist() == [1, 0, 0, 3]
    assert trees[:, 0].tolist() == [[2, 1, 1], [1, 0, 1], [1, 0, 1], [4, 2, 2]]
    assert scores.shape == (4, 4)


def test_what_follows_the_features_is_an_input_of_its_own(tmp_path: Path) -> None:
    spec = ObservationSpec("features", WIDTH, ("acceptance", "confidence", "position"))
    policy = make_policy(DQN, observation=spec)
    policy.save(tmp_path / "policy")
    described = export_onnx(tmp_path / "policy", tmp_path / "policy.onnx")
    x = observations(WIDTH + 10)
    parts = np.ascontiguousarray(x[:, :WIDTH]), np.ascontiguousarray(x[:, WIDTH:])
    scores, actions, _ = run((tmp_path / "policy.onnx").read_bytes(), *parts)
    check(scores, actions, policy.weights, x)
    features, state = json.loads(described.read_text())["inputs"]
    assert (features["name"], features["width"]) == ("features", WIDTH)
    assert (state["name"], state["width"]) == ("state", 10)
    assert [(p["name"], p["width"]) for p in state["parts"]] == [
        ("acceptance", 1),
        ("confidence", 8),
        ("position", 1),
    ]


def test_several_windows(tmp_path: Path) -> None:
    policy = make_policy(PPO, horizon=3)
    policy.save(tmp_path / "policy")
    export_onnx(tmp_path / "policy", tmp_path / "policy.onnx")
    x = observations(WIDTH)
    scores, actions, trees = run((tmp_path / "policy.onnx").read_bytes(), x)
    assert actions.shape == (len(x), 3)
    assert trees.shape == (len(x), 3, 3)
    check(scores, actions, policy.weights, x)


@pytest.mark.parametrize("chunks", [0, 1, 3])
@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
@pytest.mark.parametrize("folded", [False, True])
def test_policies_with_a_reduction_of_their_own(chunks: int, activation: str, folded: bool) -> None:
    modules = make_modules(activation=activation, norm_chunks=chunks)
    weights = modules.weights()
    weights = weights.fold() if folded else weights
    model = policy_graph(weights, main_input="taps")
    onnx.checker.check_model(model, full_check=True)
    x = observations(weights.joined_size or 0)
    x[4] = 1.0  # its square would overflow, here and in the reference
    scores, actions, _ = run(model, x)
    check(scores, actions, weights, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = make_policy(PPO).weights.to(dtype=dtype)
    x = observations(WIDTH)
    scores, actions, _ = run(policy_graph(weights, main_input="features"), x)
    check(scores, actions, weights, x)


@pytest.mark.parametrize("folder", shipped_policies(), ids=lambda folder: folder.name)
def test_shipped_policies(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "policy.onnx"
    result = CliRunner().invoke(app, ["export-policy", "--for", "onnx", folder.name, str(output)])
    assert result.exit_code == 0, result.output
    assert f"written: {output}.json" in "".join(result.output.split("\n"))
    weights = load_resps_policy(folder).weights
    x = observations(weights.mlp_in_features)
    scores, actions, _ = run(output.read_bytes(), x)
    check(scores, actions, weights, x)
    assert json.loads(Path(f"{output}.json").read_text())["head"]


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoPolicyError):
        export_onnx(tmp_path, tmp_path / "a.onnx")
    policy = tmp_path / "policy"
    make_policy(PPO).save(policy)
    with pytest.raises(ValueError, match=r"NAME\.onnx"):
        export_onnx(policy, tmp_path / "a.txt")
    with pytest.raises(ValueError, match="cannot be written"):
        export_onnx(policy, "/proc/a.onnx")
    make_policy(PPO, use_eagle3_features=False).save(tmp_path / "text")
    with pytest.raises(ValueError, match="projected"):
        export_onnx(tmp_path / "text", tmp_path / "a.onnx")
    result = CliRunner().invoke(app, ["export-policy", "--for", "onnx", "none", "a.onnx"])
    assert result.exit_code == 1
    assert "POLICY must be a folder, or one of" in result.output
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"eaglerl\[onnx\]"):
        export_onnx(policy, tmp_path / "a.onnx")
    assert not list(tmp_path.glob("*.onnx*"))


def test_the_embedding_of_the_text_is_an_input(tmp_path: Path) -> None:
    policy = make_policy(DQN, use_context_only_state=True)
    policy.save(tmp_path / "policy")
    described = export_onnx(tmp_path / "policy", tmp_path / "policy.onnx")
    (embedding,) = json.loads(described.read_text())["inputs"]
    assert (embedding["name"], embedding["width"]) == ("embedding", 384)
    x = observations(384)
    scores, actions, _ = run((tmp_path / "policy.onnx").read_bytes(), x)
    check(scores, actions, policy.weights, x)
