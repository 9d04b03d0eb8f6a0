"""The target layers whose hidden states a head takes as features, read from its config.

``eagle_aux_hidden_state_layer_ids`` stands in several places and means the inputs of layers to some
engines and the outputs to others, so the ids are read by the rules of the tool that wrote them.
Here a layer is always named by its input, as an index into transformers' ``hidden_states``.
"""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

AuxLayerConvention = Literal["input", "output"]
FeatureLayers = tuple[int, int, int]

_KEY = "eagle_aux_hidden_state_layer_ids"
_OWN_KEY = "eaglerl_feature_layers"


def read_feature_layers(
    data: Mapping[str, Any], convention: AuxLayerConvention | None
) -> FeatureLayers | None:
    """Read the feature layers that a head's config names; None for EAGLE's default layers.

    - ``eaglerl_feature_layers``, eaglerl's own key, names inputs.
    - The ids of a speculators config name inputs: its trainer and vLLM take them so.
    - The ids inside ``eagle_config`` name outputs: SpecForge and NVIDIA's ModelOpt write them and
      SGLang reads them so. ``layer_ids`` in the same place is a key of vLLM and names inputs.
    - The ids at the top level of any other config name inputs, as vLLM reads them. If there are
      also ids inside ``eagle_config``, both must name the same layers. If there are not, the
      config does not say which tool wrote it, and a warning says so.

    Args:
        data: the content of ``config.json``.
        convention: what the ids name, regardless of these rules; None to apply them.

    Raises:
        ValueError: the ids are not three different layers, or two places name different ones.
    """
    if data.get(_OWN_KEY) is not None:
        return as_feature_layers(data[_OWN_KEY], _OWN_KEY)
    inside = eagle_config(data)
    named = {
        _KEY: _read_ids(data, _KEY, _KEY, convention or "input"),
        f"eagle_config.{_KEY}": _read_ids(
            inside, _KEY, f"eagle_config.{_KEY}", convention or "output"
        ),
        "eagle_config.layer_ids": _read_ids(
            inside, "layer_ids", "eagle_config.layer_ids", convention or "input"
        ),
    }
    found = {name: layers for name, layers in named.items() if layers is not None}
    if not found:
        return None
    (first, layers), *others = found.items()
    for name, other in others:
        if other != layers:
            raise ValueError(
                f"{first} and {name} name different layers: the inputs of {list(layers)} and of "
                f"{list(other)}; leave one out, or pass feature_layers"
            )
    if convention is None and list(found) == [_KEY] and not is_speculators(data):
        warnings.warn(
            f"{_KEY} {list(data[_KEY])} at the top level of config.json are read as inputs of "
            "layers, as vLLM does; some heads mean outputs. Pass feature_layers, or "
            "aux_layer_convention='input' or 'output', or rewrite the head by eaglerl export-head "
            "--taps, to say which.",
            stacklevel=5,
        )
    return layers


def other_reading(
    data: Mapping[str, Any], layers: FeatureLayers | None, num_layers: int
) -> FeatureLayers | None:
    """Return the layers that a head's ids name by the other convention, if that may be meant.

    That is possible if the config does not say which tool wrote it, or if only the other reading
    gives EAGLE's default layers: a converted head may keep the ids of its former format.

    Args:
        data: the content of ``config.json``.
        layers: the layers that `read_feature_layers` read from it.
        num_layers: N, the target's number of layers.
    """
    if layers is None or data.get(_OWN_KEY) is not None:
        return None
    top, inside = data.get(_KEY), eagle_config(data).get(_KEY)
    if top and inside:
        return None
    shift = 1 if top else -1
    low, middle, high = (layer + shift for layer in layers)
    if min(low, middle, high) < 0 or max(low, middle, high) >= num_layers:
        return None
    unknown = bool(top) and not is_speculators(data)
    default = eagle_feature_layers(num_layers)
    if unknown or (default == (low, middle, high) and layers != default):
        return low, middle, high
    return None


def eagle_feature_layers(num_layers: int) -> FeatureLayers:
    """Return EAGLE's default feature layers for a target of N layers, by their inputs."""
    return 2, num_layers // 2, num_layers - 3


def as_feature_layers(ids: Any, name: str, lowest: int = 0) -> tuple[int, int, int]:
    """Return ``ids`` as a tuple after checking that they are three different layer indices.

    Raises:
        ValueError: they are not; the message calls them ``name``.
    """
    is_list = isinstance(ids, list | tuple) and all(type(index) is int for index in ids)
    if not is_list or len(ids) != 3 or min(ids) < lowest:
        raise ValueError(f"{name} must be three layer indices >= {lowest}, got {ids!r}")
    if len(set(ids)) != 3:
        raise ValueError(
            f"{name} must be three different layers, got {list(ids)}; a target with few layers "
            "needs explicit ones"
        )
    return tuple(ids)


def is_speculators(data: Mapping[str, Any]) -> bool:
    """Return whether a config has the layout of speculators."""
    return any(
        key in data
        for key in ("speculators_model_type", "speculators_config", "transformer_layer_config")
    )


def eagle_config(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the ``eagle_config`` of a head's config; empty if there is none.

    Raises:
        ValueError: it is not an object.
    """
    value = data.get("eagle_config") or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"eagle_config must be an object or null, got {value!r}")
    return value


def _read_ids(
    data: Mapping[str, Any], key: str, name: str, convention: AuxLayerConvention
) -> FeatureLayers | None:
    ids = data.get(key)
    # Some exporters write an empty list for the default.
    if ids is None or ids == []:
        return None
    shift = 0 if convention == "input" else 1
    low, middle, high = as_feature_layers(ids, name, lowest=-shift)
    return low + shift, middle + shift, high + shift
