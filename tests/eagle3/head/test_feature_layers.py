"""Which of two readings of a head's layer ids is meant, told by how well the head predicts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.eagle3.head.feature_layer_check import (
    LayerReading,
    check_layer_ids,
    compare_feature_layers,
)
from eaglerl.eagle3.head.feature_layers import other_reading
from eaglerl.eagle3.target.make_target import load_target, make_target
from eaglerl.eagle3.target.target_model import TargetModel

from ..heads import eagle_json, make_config, speculators_json
from ..tiny import tiny_head, tiny_model

KEY = "eagle_aux_hidden_state_layer_ids"


def flat(**changes: Any) -> dict[str, Any]:
    return eagle_json(make_config()) | changes


@pytest.mark.parametrize(
    ("data", "layers", "num_layers", "other"),
    [
        (flat(), None, 10, None),
        # Own key, or both engines' places: nothing is left open.
        (flat(eaglerl_feature_layers=[1, 3, 4]), (1, 3, 4), 10, None),
        (flat(**{KEY: [1, 3, 4], "eagle_config": {KEY: [0, 2, 3]}}), (1, 3, 4), 10, None),
        # Of a flat file the producer is unknown.
        (flat(**{KEY: [1, 3, 5]}), (1, 3, 5), 7, (2, 4, 6)),
        (flat(**{KEY: [1, 3, 6]}), (1, 3, 6), 7, None),
        # A converted head with the ids of its former format: 10 layers, features of 2, 5, 7.
        (speculators_json(make_config()) | {KEY: [1, 4, 6]}, (1, 4, 6), 10, (2, 5, 7)),
        (speculators_json(make_config()) | {KEY: [2, 5, 7]}, (2, 5, 7), 10, None),
        (speculators_json(make_config()) | {KEY: [1, 3, 6]}, (1, 3, 6), 10, None),
        # vLLM's ids inside eagle_config.
        (flat(eagle_config={KEY: [2, 5, 7]}), (3, 6, 8), 10, (2, 5, 7)),
        (flat(eagle_config={KEY: [1, 4, 6]}), (2, 5, 7), 10, None),
    ],
)
def test_where_another_reading_may_be_meant(
    data: dict[str, Any],
    layers: tuple[int, int, int] | None,
    num_layers: int,
    other: tuple[int, int, int] | None,
) -> None:
    assert other_reading(data, layers, num_layers) == other


@pytest.mark.parametrize("backend", ["packed", "transformers"])
def test_readings_equal_the_heads_own_passes(backend: str) -> None:
    """Against one draft pass per row, and the target's own logits by transformers."""
    model = tiny_model(logit_scale=3.0)
    target = make_target(model, backend=backend)
    head = tiny_head(target)
    ids = torch.randint(60, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    readings = [(2, 3, 4), (1, 2, 3)]
    results = compare_feature_layers(target, head, readings, ids)
    assert target.feature_layers == (2, 3, 4)
    with torch.inference_mode():
        output = model(torch.tensor([ids]), output_hidden_states=True)
    teacher = torch.softmax(output.logits[0].double()[:, head.draft_to_target], -1)
    from eaglerl.eagle3.head.module_draft import ModuleDraft

    for layers, result in zip(readings, results, strict=True):
        features = torch.cat([output.hidden_states[layer][0] for layer in layers], dim=-1)
        draft = ModuleDraft(head, capacity=160)
        expected = []
        for row in range(len(ids) - 1):
            logits = draft.extend(torch.tensor([ids[row + 1]]), features[row : row + 1])[1]
            log_probs = torch.log_softmax(logits.double(), -1)
            expected.append(-(teacher[row + 1] * log_probs).sum())
        assert result.layers == layers
        torch.testing.assert_close(
            result.cross_entropy, torch.stack(expected), rtol=1e-4, atol=1e-4
        )
        assert 0 <= result.accuracy <= 1


def test_only_a_clear_difference_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(400, generator=generator, dtype=torch.float64) + 3
    noise = torch.randn(400, generator=generator, dtype=torch.float64)

    def reading(shift: float) -> LayerReading:
        return LayerReading((2, 3, 4), 0.5, base - shift + 0.5 * noise)

    read = LayerReading((1, 2, 3), 0.4, base)
    assert reading(0.2).clearly_better_than(read)
    assert not reading(0.0).clearly_better_than(read)
    assert not read.clearly_better_than(read)
    # Beyond doubt, and beneath notice.
    assert not LayerReading((2, 3, 4), 0.5, base - 0.001).clearly_better_than(read)


def test_loading_warns_of_the_better_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head whose ids name its layers by their outputs, in a file that does not say so."""
    model = tiny_model(logit_scale=3.0)
    model.save_pretrained(tmp_path / "target")
    words = {f"w{i}": i for i in range(60)}
    tokenizer = _word_tokenizer(words)
    tokenizer.save_pretrained(tmp_path / "target")
    target = make_target(model)
    head = tiny_head(target)
    head.save_pretrained(tmp_path / "head")
    file = tmp_path / "head" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {KEY: [1, 2, 3]}))
    seen = []

    def compare(target: TargetModel, head: Any, readings: Any, ids: Any) -> list[LayerReading]:
        seen.append(list(readings))
        losses = (torch.full((50,), 4.0).double(), torch.linspace(3.0, 3.5, 50).double())
        return [LayerReading(tuple(r), 0.3, loss) for r, loss in zip(readings, losses, strict=True)]

    monkeypatch.setattr("eaglerl.eagle3.head.feature_layer_check.compare_feature_layers", compare)
    with (
        pytest.warns(UserWarning, match="at the top level of config.json"),
        pytest.warns(UserWarning, match=r"those of \[2, 3, 4\] suit it better.*--taps 2,3,4"),
    ):
        SpeculativeDecoder.from_pretrained(tmp_path / "target", tmp_path / "head", device="cpu")
    assert seen == [[(1, 2, 3), (2, 3, 4)]]
    decoder = SpeculativeDecoder.from_pretrained(
        tmp_path / "target", tmp_path / "head", feature_layers=[2, 3, 4], device="cpu"
    )
    assert decoder.target.feature_layers == (2, 3, 4)
    assert len(seen) == 1


def _word_tokenizer(words: dict[str, int]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")


@pytest.mark.slow
def test_the_shipped_heads_layers_are_told_from_their_neighbours(tmp_path: Path) -> None:
    """Its ids used to be written as outputs, [1, 14, 26], and vLLM takes the inputs of those."""
    from transformers import AutoTokenizer

    from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
    from eaglerl.prepare import default_draft_path, prepare_model

    folder = prepare_model()
    config = json.loads((default_draft_path() / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {KEY: [1, 14, 26]}))
    target = load_target(folder, feature_layers=(1, 14, 26), device="cpu")
    head = Eagle3DraftHead.from_pretrained(default_draft_path(), feature_layers=(1, 14, 26))
    head.set_embed_tokens(target.embed_tokens)
    with pytest.warns(UserWarning, match=r"those of \[2, 15, 27\] suit it better"):
        check_layer_ids(tmp_path, target, head, AutoTokenizer.from_pretrained(folder))
