"""A policy's decision as an ONNX graph, made of standard operators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from eaglerl.ops import PolicyWeights

#: Old enough for runtimes of 2023: nothing newer is needed.
OPSET, IR_VERSION = 17, 8


@dataclass
class _Graph:
    """Nodes and constants, in order."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: torch.Tensor | np.ndarray | list[int]) -> str:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.is_floating_point() else value).numpy()
        array = np.asarray(value)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


def policy_graph(
    weights: PolicyWeights, *, main_input: str, extra_width: int = 0
) -> onnx.ModelProto:
    """Return the decision of `eaglerl.ops.fused_encode_ref` at temperature 0.

    Inputs are float32: `main_input` (N, width), and ``state`` (N, extra_width) if that is not 0.
    Outputs are ``scores`` (N, horizon * A) float32, ``action`` (N, horizon) int32 and ``tree``
    (N, horizon, 3) int32, total_tokens, depth and top_k. Matrices of 16 bits become float32.

    Args:
        weights: the policy.
        main_input: name of the first input.
        extra_width: width of what follows it in an observation.
    """
    graph = _Graph()
    width = (weights.joined_size or weights.mlp_in_features) - extra_width
    inputs = {main_input: width} | ({"state": extra_width} if extra_width else {})
    x = main_input
    if extra_width:
        x = graph.add("Concat", list(inputs), "observation", axis=1)
    if weights.fc_weight is not None or weights.mlp_input == "taps":
        x = _add_norms(graph, weights, x)
    if weights.fc_weight is not None:
        x = _add_linear(graph, "fc", x, weights.fc_weight, weights.fc_bias)
    layers = zip(weights.hidden_weights, weights.hidden_biases, strict=True)
    for number, (weight, bias) in enumerate(layers):
        x = _add_linear(graph, f"hidden_{number}", x, weight, bias)
        x = _add_activation(graph, weights.activation, x)
    _add_linear(graph, "scores", x, weights.output_weight, weights.output_bias)
    _add_choice(graph, weights)
    return _model(graph, weights, inputs)


def _add_norms(graph: _Graph, weights: PolicyWeights, x: str) -> str:
    if weights.norm_chunks:
        graph.constant("chunks", np.array([0, weights.norm_chunks, -1], dtype=np.int64))
        graph.constant("whole", np.array([0, -1], dtype=np.int64))
        graph.constant("eps", np.array(weights.eps, dtype=np.float32))
        parts = graph.add("Reshape", [x, "chunks"], "parts")
        squares = graph.add("Mul", [parts, parts], "squares")
        mean = graph.add("ReduceMean", [squares], "mean_square", axes=[2], keepdims=1)
        root = graph.add("Sqrt", [graph.add("Add", [mean, "eps"], "above_eps")], "root_mean_square")
        x = graph.add("Reshape", [graph.add("Div", [parts, root], "scaled"), "whole"], "joined")
    if weights.norm_weight is not None:
        graph.constant("norm_weight", weights.norm_weight)
        x = graph.add("Mul", [x, "norm_weight"], "normalised")
    return x


def _add_linear(
    graph: _Graph, name: str, x: str, weight: torch.Tensor, bias: torch.Tensor | None
) -> str:
    inputs = [x, graph.constant(f"{name}.weight", weight)]
    if bias is not None:
        inputs.append(graph.constant(f"{name}.bias", bias))
    return graph.add("Gemm", inputs, name, transB=1)


def _add_activation(graph: _Graph, activation: str, x: str) -> str:
    if activation == "silu":
        return graph.add("Mul", [x, graph.add("Sigmoid", [x], f"{x}.sigmoid")], f"{x}.active")
    return graph.add({"tanh": "Tanh", "relu": "Relu"}[activation], [x], f"{x}.active")


def _add_choice(graph: _Graph, weights: PolicyWeights) -> None:
    """Add the best action of each window; the fallback if a score is not finite."""
    graph.constant("windows_shape", np.array([0, weights.horizon, -1], dtype=np.int64))
    graph.constant("fallback", np.array(weights.fallback_action, dtype=np.int64))
    graph.constant("trees", weights.actions.to(torch.int32))
    graph.constant("zero", np.array(0.0, dtype=np.float32))
    # 0 times infinity or NaN is NaN, which is not 0.
    zeros = graph.add("Mul", ["scores", "zero"], "zeros")
    equal = graph.add("Equal", [zeros, "zero"], "finite")
    numbers = graph.add("Cast", [equal], "finite_number", to=TensorProto.FLOAT)
    least = graph.add("ReduceMin", [numbers], "all_finite_number", axes=[1], keepdims=1)
    usable = graph.add("Cast", [least], "usable", to=TensorProto.BOOL)
    windows = graph.add("Reshape", ["scores", "windows_shape"], "windows")
    # Ties go to the lowest index.
    best = graph.add("ArgMax", [windows], "best", axis=2, keepdims=0, select_last_index=0)
    chosen = graph.add("Where", [usable, best, "fallback"], "chosen")
    graph.add("Cast", [chosen], "action", to=TensorProto.INT32)
    graph.add("Gather", ["trees", chosen], "tree", axis=0)


def _model(graph: _Graph, weights: PolicyWeights, inputs: dict[str, int]) -> onnx.ModelProto:
    horizon = weights.horizon
    made = helper.make_graph(
        graph.nodes,
        "policy",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])
            for name, width in inputs.items()
        ],
        [
            helper.make_tensor_value_info(
                "scores", TensorProto.FLOAT, ["N", horizon * weights.num_actions]
            ),
            helper.make_tensor_value_info("action", TensorProto.INT32, ["N", horizon]),
            helper.make_tensor_value_info("tree", TensorProto.INT32, ["N", horizon, 3]),
        ],
        initializer=graph.constants,
    )
    return helper.make_model(
        made,
        producer_name="eaglerl",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
