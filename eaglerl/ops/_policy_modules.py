"""Reads a policy from modules, and checks that the modules compute only what their weights say.

A subclass, a hook or a monkeypatch may do anything besides, so every module is run on a few random
rows and compared with its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from eaglerl.ops._policy_checks import read_actions
from eaglerl.ops._policy_fields import Activation, MlpInput
from eaglerl.ops.undisturbed import undisturbed

_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Tanh: "tanh",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
}
_FUNCTIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "silu": nn.functional.silu,
}
_ROWS = 8
# Allowed rounding of a sum, in units of the dtype times the sum of the terms' magnitudes.
_ROUNDINGS = 16
# A GPU may multiply float32 in TF32.
_DEVICE_UNIT = 2.0**-10


def read_modules(
    mlp: Sequence[nn.Module],
    actions: Tensor | Sequence[Sequence[int]],
    *,
    fc: nn.Linear | None,
    norms: Sequence[nn.Module],
    mlp_input: MlpInput,
    horizon: int,
    fallback_action: int,
) -> dict[str, Any]:
    """Return the fields of a `PolicyWeights`; see `PolicyWeights.from_modules`.

    Raises:
        ValueError: the modules are not linear layers with activations between them, or compute
            something other than their weights say.
    """
    linears, activation = _read_layers(mlp)
    eps = {_eps_of(norm, f"norms[{i}]") for i, norm in enumerate(norms)}
    if len(eps) > 1:
        raise ValueError(f"norms must share one eps, got {sorted(eps)}")
    # Calls the modules before anything is copied: one may compute its weights when it is called.
    _check_modules(mlp, activation, fc, norms)
    dtype = linears[0].weight.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def matrix(linear: nn.Linear) -> Tensor:
        return linear.weight.detach().to(dtype).clone()

    def bias(linear: nn.Linear) -> Tensor:
        if linear.bias is None:
            return torch.zeros(linear.out_features, dtype=wide, device=linear.weight.device)
        return linear.bias.detach().to(wide, copy=True)

    fields: dict[str, Any] = {
        "hidden_weights": tuple(matrix(linear) for linear in linears[:-1]),
        "hidden_biases": tuple(bias(linear) for linear in linears[:-1]),
        "output_weight": matrix(linears[-1]),
        "output_bias": bias(linears[-1]),
        "actions": read_actions(actions).to(linears[0].weight.device),
        "fc_weight": None if fc is None else matrix(fc),
        "fc_bias": None if fc is None or fc.bias is None else bias(fc),
        "norm_weight": torch.cat([_scale_of(norm).to(wide) for norm in norms]) if norms else None,
        "norm_chunks": len(norms),
        "activation": activation,
        "mlp_input": "features" if fc is not None else mlp_input,
        "horizon": horizon,
        "fallback_action": fallback_action,
    }
    return fields | ({"eps": eps.pop()} if eps else {})


def _read_layers(modules: Sequence[nn.Module]) -> tuple[list[nn.Linear], Activation]:
    """Split linear, activation, linear, ... into the linear layers and the activation's name."""
    linears = [module for module in modules[::2] if isinstance(module, nn.Linear)]
    between = {type(module) for module in modules[1::2]}
    if len(modules) % 2 == 0 or len(linears) < 2 or len(linears) != len(modules[::2]):
        kinds = [type(module).__name__ for module in modules]
        raise ValueError(
            f"mlp must be Linear, activation, Linear, ... with a hidden layer, got {kinds}"
        )
    if len(between) != 1 or between - _ACTIVATIONS.keys():
        kinds = sorted(kind.__name__ for kind in between)
        raise ValueError(
            f"mlp must have one kind of Tanh, ReLU or SiLU between layers, got {kinds}"
        )
    return linears, _ACTIVATIONS[between.pop()]


def _scale_of(norm: nn.Module) -> Tensor:
    """Return a norm's weight, which `_eps_of` has found to be there."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _eps_of(norm: nn.Module, name: str) -> float:
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1:
        raise ValueError(f"{name} must have a weight for each column, got {norm!r}")
    for attribute in ("eps", "variance_epsilon"):
        if isinstance(eps := getattr(norm, attribute, None), int | float):
            return float(eps)
    if isinstance(norm, nn.RMSNorm):
        # The default of torch.
        return float(torch.finfo(weight.dtype).eps)
    raise ValueError(f"{name} must have eps or variance_epsilon, got {norm!r}")


def _check_modules(
    mlp: Sequence[nn.Module],
    activation: Activation,
    fc: nn.Linear | None,
    norms: Sequence[nn.Module],
) -> None:
    linears = {f"mlp[{i}]": m for i, m in enumerate(mlp) if isinstance(m, nn.Linear)}
    if fc is not None:
        if not isinstance(fc, nn.Linear):
            raise ValueError(f"fc must be a Linear layer, got {fc!r}")
        linears["fc"] = fc
    with undisturbed([*mlp, *norms, *([] if fc is None else [fc])]):
        for name, linear in linears.items():
            _check_linear(name, linear)
        for i, (before, module) in enumerate(pairwise(mlp), start=1):
            if isinstance(before, nn.Linear):
                x = _rows(before.out_features, before.weight.dtype, before.weight.device)
                expected = _FUNCTIONS[activation](x.double())
                _compare(f"mlp[{i}]", activation, module(x.clone()), expected, expected.abs())
        for i, norm in enumerate(norms):
            # A module that only holds weights has no forward.
            if type(norm).forward is not nn.Module.forward:
                _check_norm(f"norms[{i}]", norm)


def _check_linear(name: str, linear: nn.Linear) -> None:
    if is_lazy(linear.weight):
        raise ValueError(f"{name} must have initialised weights, got {linear!r}")
    x = _rows(linear.in_features, linear.weight.dtype, linear.weight.device)
    given = linear(x)
    weight, bias = linear.weight.double(), 0.0 if linear.bias is None else linear.bias.double()
    expected = x.double() @ weight.T + bias
    size = x.double().abs() @ weight.abs().T + abs(bias)
    _compare(name, "x W^T + b", given, expected, size)


def _check_norm(name: str, norm: nn.Module) -> None:
    weight = _scale_of(norm)
    # The mean is not 0, so that a LayerNorm, which subtracts it, gives something else.
    x = 1 + _rows(len(weight), weight.dtype, weight.device)
    scale = (x.double().square().mean(-1, keepdim=True) + _eps_of(norm, name)).rsqrt()
    expected = x.double() * scale * weight.double()
    _compare(name, "x / rms(x) * weight", norm(x), expected, expected.abs())


def _compare(name: str, formula: str, given: object, expected: Tensor, size: Tensor) -> None:
    if isinstance(given, Tensor) and given.shape == expected.shape:
        unit = torch.finfo(given.dtype).eps if given.is_floating_point() else 0.0
        if given.device.type != "cpu":
            unit = max(unit, _DEVICE_UNIT)
        differs = ~((given.double() - expected).abs() <= _ROUNDINGS * unit * size + 1e-30)
        if not bool(differs.any()):
            return
        found = f"{float(differs.double().mean()):.0%} of its results differ"
    else:
        found = f"it gives {getattr(given, 'shape', type(given).__name__)}"
    raise ValueError(
        f"{name} must compute {formula} from its weights, because only weights are copied; {found} "
        "(a hook, a subclass, or another kind of layer)"
    )


def _rows(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return random rows (8, width) without touching the global generator."""
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.randn(_ROWS, width, generator=generator)).to(device, dtype)
