"""Whatever decodes for itself writes what a target with a repetition penalty would write."""

import pytest
import torch
from transformers import WatermarkingConfig

from eaglerl.eagle3 import NO_DRAFT, SpeculativeDecoder
from eaglerl.eagle3.target.packed_target import packed_target
from eaglerl.envs.live_env import SpeculativeDecodingEnv
from eaglerl.fingerprints import target_id
from eaglerl.traces.recording import RecordOptions, record

from ..eagle3.tiny import tiny_head, tiny_model
from .test_oracle import ACTIONS, COST
from .tiny import VOCAB, tiny_prompts

OWN = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3}
OPTIONS = RecordOptions(top_ks=(1, 2), max_depth=2, max_new_tokens=14, slots=3)


def make(own: dict) -> tuple:
    """The model of transformers and a decoder of it."""
    model = tiny_model(vocab_size=VOCAB, logit_scale=3.0)
    model.generation_config.update(**own)
    target = packed_target(model)
    return model, SpeculativeDecoder(target, tiny_head(target, draft_vocab_size=VOCAB))


def expected(model, prompt: tuple[int, ...], **options: object) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), pad_token_id=0, max_new_tokens=14, **options
    )
    return output[0, len(prompt) :].tolist()


def test_traces_are_of_the_targets_text(tmp_path) -> None:
    model, decoder = make(OWN)
    traces = record(decoder, tiny_prompts(4), tmp_path, options=OPTIONS)
    assert len(traces) == 4
    others = 0
    for trace in traces:
        prompt = tuple(trace.prompt_ids.tolist())
        written = trace.continuation_ids[:14].tolist()
        assert written == expected(model, prompt)
        others += written != expected(model, prompt, repetition_penalty=1.0, no_repeat_ngram_size=0)
    assert others > 0
    # A tree of the trace's is accepted as far as a live one.
    output = decoder.generate(tiny_prompts(4)[0].token_ids, ACTIONS[1], max_new_tokens=14)
    assert output.sequences[0, -14:].tolist() == expected(model, tiny_prompts(4)[0].token_ids)


def test_an_episode_is_the_targets_text() -> None:
    model, decoder = make(OWN)
    env = SpeculativeDecodingEnv(
        decoder, tiny_prompts(2), ACTIONS, cost=COST, max_new_tokens=14, cache_steps=3
    )
    for index, prompt in enumerate(tiny_prompts(2)):
        env.reset(options={"prompt": index})
        done = False
        while not done:
            done = env.step(index % len(ACTIONS))[2]
        assert env.token_ids == [*prompt.token_ids, *expected(model, prompt.token_ids)]


def test_names_of_targets_tell_their_processors() -> None:
    names = [
        target_id(make(own)[1].target)
        for own in ({}, {"repetition_penalty": 1.0, "do_sample": True, "top_k": 5}, OWN,
                    {"repetition_penalty": 1.3})
    ]  # fmt: skip
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_a_watermark_makes_another_target() -> None:
    """It changes the greedy text, as `generate` writes it, and so what traces tell."""
    model, decoder = make({})
    prompt, name = tiny_prompts(1)[0].token_ids, target_id(decoder.target)
    before = decoder.generate(prompt, max_new_tokens=14).new_ids[0]
    model.generation_config.watermarking_config = WatermarkingConfig(bias=9.0)
    written = decoder.generate(prompt, max_new_tokens=14).new_ids[0]
    assert written == expected(model, prompt) != before
    assert target_id(decoder.target) != name


def test_a_target_whose_texts_end_otherwise_is_not_recorded(tmp_path) -> None:
    _, decoder = make({"stop_strings": ["x"]})
    with pytest.raises(ValueError, match=r"stop_strings=\['x'\] .* side by side"):
        record(decoder, tiny_prompts(2), tmp_path, options=OPTIONS)


def test_plain_decoding_of_the_same_target() -> None:
    model, decoder = make(OWN)
    prompt = tiny_prompts(1)[0].token_ids
    output = decoder.generate(prompt, NO_DRAFT, max_new_tokens=14)
    assert output.sequences[0, len(prompt) :].tolist() == expected(model, prompt)
