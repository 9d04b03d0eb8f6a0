"""Exported heads in SGLang's own model class, read from its wheel."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.export_head import export_head
from eaglerl.eagle3.head.feature_layer_check import _draft_log_probs

from ..heads import VOCAB, make_config, make_head
from .sglang_model import captured_layers, load_eagle3

WHEEL = os.environ.get("EAGLERL_SGLANG_WHEEL")
LAYERS, ROWS = 10, 12

pytestmark = pytest.mark.skipif(
    WHEEL is None, reason="needs EAGLERL_SGLANG_WHEEL, the wheel of SGLang 0.5.23"
)


def exported(folder: Path, head: Eagle3DraftHead) -> dict[str, Any]:
    export_head(head, folder, "sglang", num_target_layers=LAYERS)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("layers", [None, (2, 5, 7), (1, 4, 8), (0, 4, 9)])
def test_layers(tmp_path: Path, layers: tuple[int, int, int] | None) -> None:
    data = exported(tmp_path, make_head(make_config(feature_layers=layers)))
    assert WHEEL is not None
    assert captured_layers(Path(WHEEL), data, LAYERS) == list(layers or (2, 5, 7))


@pytest.mark.parametrize("changes", [{}, {"fc_norm": True}, {"norm_before_fc": True}])
def test_the_model_class_predicts_what_the_head_predicts(
    tmp_path: Path, changes: dict[str, bool]
) -> None:
    """Every tensor is loaded, and a pass over real features gives the same distributions."""
    assert WHEEL is not None
    head = make_head(make_config(**changes))
    data = exported(tmp_path, head)
    model = load_eagle3(Path(WHEEL)).LlamaForCausalLMEagle3(LlamaConfig(**data))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    weights = load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        model.load_weights(iter(weights.items()))
        assert head.embed_tokens is not None
        # The target's, which the worker gives to the model.
        model.model.embed_tokens.weight.copy_(head.embed_tokens)
    assert not any(parameter.isnan().any() for parameter in model.parameters())
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(ROWS - 1, 3 * head.config.hidden_size, generator=draw)
    ids = torch.randint(VOCAB, (ROWS,), generator=draw)
    batch = SimpleNamespace(mm_input_embeds=None, spec_info=SimpleNamespace(hidden_states=features))
    batch.forward_mode = SimpleNamespace(is_extend=lambda: False)
    with torch.no_grad():
        hidden, _ = model.model(ids[1:], torch.arange(ROWS - 1).float(), batch)
        theirs = torch.log_softmax(model.lm_head(hidden).double(), -1)
        ours = _draft_log_probs(head, ids.tolist(), features)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert model.hot_token_id.tolist() == head.draft_to_target.tolist()
