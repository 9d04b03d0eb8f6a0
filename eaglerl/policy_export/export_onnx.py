"""Writes a trained PPO or DQN policy as an ONNX graph, with what its inputs and actions mean."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eaglerl.envs.trace_windows import POSITION_SCALE, observation_size
from eaglerl.files import atomic_path
from eaglerl.ops import PolicyWeights, fused_encode_ref
from eaglerl.policies.policy_folder import find_policy
from eaglerl.resps.policies.load_saved import load_resps_policy
from eaglerl.resps.policies.policy_file import read_card
from eaglerl.resps.policies.policy_settings import PolicySettings

FORMAT = "eaglerl-onnx-policy"
VERSION = 1
# Difference of a score that rounding explains, beside the largest score.
_ROUNDING = 1e-5
_EXTRAS = {
    "acceptance": "running mean of the tokens that a cycle emits, bonus token included",
    "position": f"tokens of context / {POSITION_SCALE:g}",
    "confidence": "log-probabilities of the first draft pass in the last cycle that drafted, best "
    "first; -log(8) before there is one",
}


def export_onnx(folder: str | Path, path: str | Path) -> Path:
    """Write the graph, and a description beside it as ``PATH.json``.

    The description is in the graph's metadata as well, under "eaglerl". What the graph computes is
    compared with `fused_encode_ref` by onnx's own interpreter first.

    Args:
        folder: the policy's folder.
        path: a file ``NAME.onnx``, which is overwritten.

    Returns:
        The path of the description.

    Raises:
        ImportError: onnx is not installed.
        ValueError: the folder holds no policy, the policy reads projected text, the path is no
            ``.onnx`` or cannot be written, or the graph computes something else.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"output must be NAME.onnx, got {path.name!r}")
    files = find_policy(folder)
    policy = load_resps_policy(files.path)
    settings, weights = policy.settings, policy.weights
    try:
        import onnx

        from eaglerl.policy_export.onnx_graph import policy_graph
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise ImportError(
            "exporting to ONNX needs onnx: install the extra with pip install 'eaglerl[onnx]'"
        ) from error
    description = describe_policy(settings, weights, policy.algorithm)
    description["policy"] = files.fingerprint
    # Of the draft head that reduces the features.
    description["head"] = read_card(files.path)["head_id"]
    main, *extras = description["inputs"]
    width = sum(part["width"] for entry in extras for part in entry["parts"])
    model = policy_graph(weights, main_input=main["name"], extra_width=width)
    text = json.dumps(description, indent=1)
    onnx.helper.set_model_props(model, {"eaglerl": text})
    onnx.checker.check_model(model, full_check=True)
    _check_reproduced(model, weights, [main["width"], width])
    described = path.with_name(f"{path.name}.json")
    try:
        with atomic_path(described) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        with atomic_path(path) as temporary:
            temporary.write_bytes(model.SerializeToString())
    except OSError as error:
        raise ValueError(f"output {str(path)!r} cannot be written: {error.strerror}") from error
    return described


def describe_policy(
    settings: PolicySettings, weights: PolicyWeights, algorithm: str
) -> dict[str, Any]:
    """Return what the inputs and outputs of a policy's graph mean, as JSON values.

    Raises:
        ValueError: the policy reads text that is projected to the width of features.
    """
    spec = settings.spec
    if not settings.use_eagle3_features and spec.source != "context":
        raise ValueError(
            "the policy reads text that is projected to the features' width, which the graph "
            "would lack; a policy of features, or of the text's embedding, can be exported"
        )
    inputs: list[dict[str, Any]] = [_main_input(settings)]
    if spec.extras:
        parts = [
            {"name": name, "width": observation_size(0, [name]), "meaning": _EXTRAS[name]}
            for name in spec.extras
        ]
        inputs.append({"name": "state", "width": sum(p["width"] for p in parts), "parts": parts})
    return {
        "format": FORMAT,
        "version": VERSION,
        "eaglerl": version("eaglerl"),
        "algorithm": algorithm,
        "inputs": inputs,
        "outputs": {
            "scores": "logits" if algorithm == "ppo" else "action values",
            "action": "index of the best score, or fallback_action if a score is not finite",
            "tree": "total_tokens, depth and top_k of the action",
        },
        "trees": weights.actions.tolist(),
        "fallback_action": weights.fallback_action,
        "horizon": weights.horizon,
        "cycles_per_decision": settings.interval,
        "similarity_threshold": settings.similarity_threshold,
        # At 0 the best action is taken; above, actions are drawn from softmax(scores / it).
        "temperature": settings.inference_temperature if settings.max_entropy_inference else 0.0,
    }


def _main_input(settings: PolicySettings) -> dict[str, Any]:
    spec = settings.spec
    taps = "low, mid and high, the target's features of the last token"
    reduced = f"the draft head's reduction (its norms and fc) of {taps}"
    if settings.reference:
        reduced = f"mean of {taps}"
    meaning = {
        "features": reduced,
        "taps": f"{taps}, joined",
        "context": f"embedding of the text so far by {settings.text_model}",
    }
    name = "embedding" if spec.source == "context" else spec.source
    return {"name": name, "width": spec.width, "meaning": meaning[spec.source]}


def _check_reproduced(model: Any, weights: PolicyWeights, widths: list[int]) -> None:
    """Compare the graph with the reference on random observations of several scales.

    Raises:
        ValueError: they differ by more than rounding.
    """
    from onnx.reference import ReferenceEvaluator

    draw = np.random.default_rng(0)
    rows = draw.standard_normal((16, sum(widths))) * draw.choice([0.1, 1, 10], (16, 1))
    observation = rows.astype(np.float32)
    parts = np.split(observation, [widths[0]], axis=1)
    names = [entry.name for entry in model.graph.input]
    evaluator = ReferenceEvaluator(model)
    outputs: Any = evaluator.run(None, dict(zip(names, parts, strict=False)))
    scores, actions = np.asarray(outputs[0]), np.asarray(outputs[1])
    expected = fused_encode_ref(
        torch.from_numpy(observation), None, None, weights.to(dtype=torch.float32)
    ).logits.numpy()
    largest = np.abs(expected).max(axis=1, keepdims=True)
    allowed = _ROUNDING * np.maximum(largest, 1.0)
    if np.any(np.abs(scores - expected) > allowed):
        raise ValueError("the graph computes other scores than the policy")
    windows = expected.reshape(len(rows), weights.horizon, -1)
    taken = np.take_along_axis(windows, actions[..., None].astype(np.int64), axis=2)[..., 0]
    if np.any(taken < windows.max(axis=2) - 2 * allowed):
        raise ValueError("the graph chooses other actions than the policy")
