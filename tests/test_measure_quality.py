"""The figures of benchmarks/measure_quality.py against transformers and free-running decoding."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from eaglerl.eagle3 import NO_DRAFT, SpeculativeDecoder, make_target

from .eagle3.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "measure_quality.py"))


@pytest.fixture(scope="module")
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two models that differ a little."""
    one, other = tiny_model(logit_scale=3), tiny_model(logit_scale=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return one, other


@torch.inference_mode()
def test_the_text_is_scored_as_by_transformers(models: tuple) -> None:
    windows = [torch.arange(100) * step % 60 for step in (7, 11, 13)]
    targets = {"one": make_target(models[0]), "other": make_target(models[1])}
    results = SCRIPT["score_text"](targets, targets["one"], windows)
    losses, divergences, same = [], [], 0
    for window in windows:
        scores = [model.double()(window[None]).logits[0, :-1].log_softmax(-1) for model in models]
        losses.append(float(models[1](window[None], labels=window[None]).loss))
        divergences.append(
            float(
                torch.nn.functional.kl_div(scores[1], scores[0], reduction="sum", log_target=True)
            )
        )
        same += int((scores[0].argmax(-1) == scores[1].argmax(-1)).sum())
    other = results["other"].summary()
    assert other["perplexity"] == pytest.approx(math.exp(sum(losses) / 3), rel=1e-4)
    assert other["kl_divergence"] == pytest.approx(sum(divergences) / 297, rel=1e-2)
    assert results["other"].same_choice == pytest.approx(same, abs=1)
    assert results["one"].summary()["kl_divergence"] == pytest.approx(0, abs=1e-6)
    assert results["one"].summary()["same_choice"] == 1


@torch.inference_mode()
def test_answers_agree_until_free_running_decoding_differs(models: tuple) -> None:
    """Until the first difference, a text that is given and one that is decoded are the same."""
    decoders = [SpeculativeDecoder(make_target(model.float()), None) for model in models]
    prompts = [torch.arange(start, start + 9) % 60 for start in range(0, 24, 3)]
    texts = [
        [
            decoder.generate(prompt, NO_DRAFT, max_new_tokens=40).sequences[0, len(prompt) :]
            for prompt in prompts
        ]
        for decoder in decoders
    ]
    results = {"other": SCRIPT["Quality"]()}
    targets = {"other": decoders[1].target}
    SCRIPT["score_answers"](targets, list(zip(prompts, texts[0], strict=True)), results)
    before = [
        int((one == other).long().cumprod(0).sum()) for one, other in zip(*texts, strict=True)
    ]
    assert results["other"].until_difference == before
    assert min(before) < 40
    assert results["other"].unchanged == sum(count == 40 for count in before)
    assert sum(before) <= results["other"].agreed < 40 * len(prompts)
    assert "other" in SCRIPT["report"](results)
