"""Logits processors: the text, the calls and the draws are those of transformers' `generate`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)

from eaglerl.eagle3 import NO_DRAFT, DraftPlan, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.target.make_target import load_target, make_target
from eaglerl.eagle3.target.target_files import load_transformers_model
from eaglerl.prepare import default_draft_path

from .tiny import tiny_head, tiny_model

VOCAB = 40
PROMPT = [3, 14, 15, 9, 26, 14, 15]
# Wide enough that some of the target's tokens are accepted although the head is random.
WIDE = TreeParams(120, 2, 30)
PLANS = [NO_DRAFT, WIDE, DraftPlan(TreeParams(20, 1, 12), lookup_tokens=4)]
EOS = [0, 2, 7]


def two_follow(index: int, ids: torch.Tensor) -> list[int]:
    """Two tokens that may come after a text."""
    return [(int(ids[-1]) * 7 + i) % VOCAB for i in (1, 2)]


OPTIONS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"suppress_tokens": [0, 2, 3]},
    {"begin_suppress_tokens": [31, 5, 6]},
    {"bad_words_ids": [[4], [31, 27], [0, 2]]},
    {"min_new_tokens": 9, "eos_token_id": EOS},
    {"min_length": 14, "eos_token_id": EOS},
    {"forced_eos_token_id": 7},
    {"exponential_decay_length_penalty": (3, 1.6), "eos_token_id": EOS},
    {"sequence_bias": [[[4], 3.0], [[31, 27], -9.0]]},
    {"remove_invalid_values": True, "renormalize_logits": True},
    {"encoder_repetition_penalty": 1.4},
    {"encoder_no_repeat_ngram_size": 2},
    {"prefix_allowed_tokens_fn": two_follow},
    {"watermarking_config": WatermarkingConfig(bias=3.0)},
    {"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[3, 5, 8])},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 4, "eos_token_id": 31},
]  # fmt: skip
SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_k": 7, "top_p": 0.9},
    {"min_p": 0.1},
    {"typical_p": 0.8},
    {"top_h": 0.4},
    {"epsilon_cutoff": 0.02, "eta_cutoff": 0.03},
    {"temperature": 1.2, "repetition_penalty": 1.3, "min_p": 0.05, "renormalize_logits": True},
]


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=VOCAB, logit_scale=2.0)


@pytest.fixture(scope="module")
def decoder(model) -> SpeculativeDecoder:
    target = make_target(model)
    return SpeculativeDecoder(target, tiny_head(target, draft_vocab_size=VOCAB))


def expected(model, arguments: dict[str, Any], prompt: list[int] = PROMPT) -> list[int]:
    """Prompt and output of transformers."""
    ids = torch.tensor([prompt])
    torch.manual_seed(5)
    return model.generate(ids, attention_mask=torch.ones_like(ids), **arguments)[0].tolist()


def check(model, decoder, arguments: dict[str, Any], plan, prompt: list[int] = PROMPT) -> None:
    """Our text is transformers', and so is the state of the generator that drew it."""
    wanted = expected(model, arguments, prompt)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    output = decoder.generate(prompt, plan, **arguments)
    assert output.sequences[0].tolist() == wanted
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("plan", PLANS[1:])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options))
def test_greedy(model, decoder, options, plan):
    check(model, decoder, {"max_new_tokens": 14} | options, plan)


@pytest.mark.parametrize("options", SAMPLING + OPTIONS, ids=lambda options: ",".join(options))
def test_seeded_sampling(model, decoder, options):
    check(model, decoder, {"max_new_tokens": 14, "do_sample": True} | options, WIDE)


def test_processors_change_the_text_and_drafts_are_accepted(decoder):
    """Or the tests above would show little."""
    plain = decoder.generate(PROMPT, WIDE, max_new_tokens=14)
    accepted = 0
    for options in OPTIONS[:5]:
        output = decoder.generate(PROMPT, WIDE, max_new_tokens=14, **options)
        accepted += sum(cycle.accepted for cycle in output.statistics.cycles)
        assert output.sequences.tolist() != plain.sequences.tolist()
    assert accepted > 0


@pytest.mark.parametrize(
    "options",
    [{"max_length": 20}, {"repetition_penalty": 1.4}, {"no_repeat_ngram_size": 2},
     {"min_length": 15, "eos_token_id": EOS}, {"encoder_repetition_penalty": 1.5},
     {"encoder_no_repeat_ngram_size": 2}, {"begin_suppress_tokens": [31, 27, 15]}],
    ids=str,
)  # fmt: skip
def test_padded_batches(model, decoder, options):
    """Processors are shown the padding, lengths count it, as in transformers."""
    prompts = [PROMPT, [5, 31], [0, 0, 12]]
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    arguments = {"pad_token_id": 0, "attention_mask": mask} | options
    if "max_length" not in options:
        arguments["max_new_tokens"] = 10
    wanted = model.generate(ids, **arguments)
    output = decoder.generate(ids, WIDE, **arguments)
    assert output.sequences.tolist() == wanted.tolist()


@st.composite
def combinations(draw: st.DrawFn) -> dict[str, Any]:
    """Several options at once."""
    arguments: dict[str, Any] = {
        "max_new_tokens": draw(st.integers(1, 12)),
        "do_sample": draw(st.booleans()),
    }
    for options in draw(st.lists(st.sampled_from(OPTIONS + SAMPLING), min_size=1, max_size=4)):
        arguments |= options
    return arguments


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(combinations(), st.sampled_from(PLANS), st.lists(st.integers(0, VOCAB - 1), min_size=1))
def test_combinations(model, decoder, arguments, plan, prompt):
    check(model, decoder, arguments, plan, prompt)


class Remembering(LogitsProcessor):
    """Prefers another token at every call, and remembers what it was shown."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[list[int]], tuple[int, ...], torch.dtype]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls.append((input_ids.tolist(), tuple(scores.shape), scores.dtype))
        # In place: the row must be its own.
        scores[:, 3 * len(self.calls) % VOCAB] += 2.0
        return scores


class StopsAt(StoppingCriteria):
    """Ends a sequence at its n-th call."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.calls: list[list[list[int]]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.calls.append(input_ids.tolist())
        return torch.full((len(input_ids),), len(self.calls) >= self.count)


class TestUserProcessors:
    @pytest.mark.parametrize("do_sample", [False, True])
    @pytest.mark.parametrize("plan", PLANS)
    def test_called_once_for_every_token_in_order(self, model, decoder, plan, do_sample):
        calls = []
        for run in (
            lambda one: expected(model, one),
            lambda one: decoder.generate(PROMPT, plan, **one).sequences[0].tolist(),
        ):
            processor = Remembering()
            torch.manual_seed(5)
            text = run(
                {
                    "max_new_tokens": 16,
                    "do_sample": do_sample,
                    "eos_token_id": [15, 31],
                    "min_new_tokens": 6,
                    "logits_processor": LogitsProcessorList([processor]),
                }
            )
            calls.append((text, processor.calls))
        assert calls[0] == calls[1]
        assert len(calls[0][1]) == len(calls[0][0]) - len(PROMPT)

    def test_a_users_processor_takes_the_place_of_its_kind(self, model, decoder):
        arguments = {
            "max_new_tokens": 12,
            "repetition_penalty": 1.1,
            "logits_processor": [RepetitionPenaltyLogitsProcessor(1.9)],
        }
        check(model, decoder, arguments, WIDE)

    def test_every_prompt_has_its_own_state(self, decoder):
        prompts = [PROMPT, [5, 6], [1, 2, 3]]
        together = decoder.generate(
            prompts, WIDE, max_new_tokens=8, logits_processor=[Remembering()]
        )
        for row, prompt in enumerate(prompts):
            alone = decoder.generate(
                prompt, WIDE, max_new_tokens=8, logits_processor=[Remembering()]
            ).sequences[0]
            assert together.sequences[row, : len(alone)].tolist() == alone.tolist()

    def test_prefix_function_is_told_the_prompt(self, decoder):
        def allowed(index: int, ids: torch.Tensor) -> list[int]:
            return [10 + index, 20 + index]

        output = decoder.generate(
            [PROMPT, [5, 6]], WIDE, max_new_tokens=5, prefix_allowed_tokens_fn=allowed
        )
        assert set(output.sequences[0, len(PROMPT) :].tolist()) <= {10, 20}
        assert set(output.sequences[1, 2:7].tolist()) <= {11, 21}

    @pytest.mark.parametrize("plan", PLANS)
    @pytest.mark.parametrize("do_sample", [False, True])
    def test_stopping_criteria(self, model, decoder, plan, do_sample):
        arguments = {"max_new_tokens": 16, "do_sample": do_sample}
        theirs, ours = StopsAt(7), StopsAt(7)
        wanted = expected(model, arguments | {"stopping_criteria": StoppingCriteriaList([theirs])})
        torch.manual_seed(5)
        output = decoder.generate(PROMPT, plan, stopping_criteria=[ours], **arguments)
        assert output.sequences[0].tolist() == wanted
        assert output.finish_reasons == ("criteria",)
        assert ours.calls == theirs.calls

    @pytest.mark.parametrize(
        ("arguments", "kind", "message"),
        [
            ({"logits_processor": Remembering()}, TypeError, "logits_processor must be a Logits"),
            ({"logits_processor": [3]}, TypeError, "logits_processor must be"),
            ({"stopping_criteria": StopsAt(3)}, TypeError, "stopping_criteria must be"),
            (
                {"stopping_criteria": [MaxLengthCriteria(9)]},
                ValueError,
                r"stopping_criteria holds a MaxLengthCriteria: pass max_length=",
            ),
        ],
    )
    def test_wrong_kinds(self, decoder, arguments, kind, message):
        with pytest.raises(kind, match=message):
            decoder.generate(PROMPT, WIDE, **arguments)


class TestGenerationConfig:
    @pytest.mark.parametrize(
        "arguments",
        [
            {"generation_config": GenerationConfig(repetition_penalty=1.3)},
            {"generation_config": GenerationConfig(do_sample=True, max_new_tokens=9)},
            {"generation_config": GenerationConfig(do_sample=True, temperature=0.6, top_k=5)},
            {"generation_config": GenerationConfig(max_length=12, eos_token_id=EOS)},
            {"generation_config": GenerationConfig(max_new_tokens=9), "repetition_penalty": 1.4},
            {"max_length": 15},
            {"max_length": 15, "max_new_tokens": 4},
            {"max_new_tokens": 9, "do_sample": False, "temperature": 0.8},
        ],
        ids=str,
    )
    def test_same_as_generate(self, model, decoder, arguments):
        check(model, decoder, arguments, WIDE)

    @pytest.mark.parametrize(
        ("own", "arguments"),
        [
            ({"repetition_penalty": 1.3}, {}),
            ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.0}),
            ({"max_new_tokens": 5, "no_repeat_ngram_size": 2}, {}),
            ({"max_length": 11}, {}),
            ({"do_sample": True, "top_k": 4, "top_p": 0.9}, {"do_sample": True}),
            ({"do_sample": True, "top_k": 4}, {"do_sample": False}),
            ({"suppress_tokens": [31]}, {"generation_config": GenerationConfig(max_length=15)}),
        ],
        ids=str,
    )
    def test_the_targets_own(self, own, arguments):
        own_model = tiny_model(vocab_size=VOCAB, logit_scale=2.0)
        own_model.generation_config.update(**own)
        target = make_target(own_model)
        own_decoder = SpeculativeDecoder(target, tiny_head(target, draft_vocab_size=VOCAB))
        if not {"max_new_tokens", "max_length"} & set(own):
            arguments = {"max_new_tokens": 12} | arguments
        check(own_model, own_decoder, arguments, WIDE)

    def test_temperature_alone_samples_with_the_targets_top_k(self):
        """A temperature says by itself that tokens are drawn, and greedy is the default."""
        own_model = tiny_model(vocab_size=VOCAB, logit_scale=2.0)
        own_model.generation_config.update(do_sample=True, top_k=4, repetition_penalty=1.2)
        target = make_target(own_model)
        own_decoder = SpeculativeDecoder(target, tiny_head(target, draft_vocab_size=VOCAB))
        torch.manual_seed(5)
        drawn = own_decoder.generate(PROMPT, WIDE, temperature=0.9, max_new_tokens=12)
        arguments = {"max_new_tokens": 12, "do_sample": True, "temperature": 0.9}
        assert drawn.sequences[0].tolist() == expected(own_model, arguments)
        greedy = own_decoder.generate(PROMPT, WIDE, max_new_tokens=12)
        arguments = {"max_new_tokens": 12, "do_sample": False}
        assert greedy.sequences[0].tolist() == expected(own_model, arguments)

    @pytest.mark.parametrize(
        "form", [int, tuple, torch.tensor, lambda ids: list(torch.tensor(ids)), np.array]
    )
    def test_forms_of_eos(self, model, decoder, form):
        free = expected(model, {"max_new_tokens": 12})
        eos = form(free[-4] if form is int else [free[-4], 0])
        output = decoder.generate(PROMPT, WIDE, max_new_tokens=12, eos_token_id=eos)
        wanted = expected(model, {"max_new_tokens": 12, "eos_token_id": [free[-4], 0]})
        assert output.sequences[0].tolist() == wanted
        assert len(wanted) < len(free)

    @pytest.mark.parametrize(
        ("arguments", "kind", "message"),
        [
            ({"num_beams": 4}, ValueError, "num_beams=4 is not supported"),
            ({"num_return_sequences": 2, "do_sample": True}, ValueError, "num_return_sequences=2"),
            ({"penalty_alpha": 0.6}, ValueError, "penalty_alpha=0.6"),
            ({"guidance_scale": 1.5}, ValueError, "guidance_scale=1.5"),
            ({"dola_layers": "high"}, ValueError, "dola_layers='high'"),
            ({"prompt_lookup_num_tokens": 3}, ValueError, "prompt_lookup_num_tokens=3"),
            ({"assistant_model": "another model"}, ValueError, "assistant_model is not supported"),
            ({"cache_implementation": "quantized"}, ValueError, "cache_implementation"),
            ({"return_dict_in_generate": True}, ValueError, "return_dict_in_generate=True"),
            ({"output_scores": True}, ValueError, "output_scores=True"),
            ({"generation_config": GenerationConfig(num_beams=2)}, ValueError, "num_beams=2"),
            ({"generation_config": {"num_beams": 2}}, TypeError, "generation_config must be"),
            ({"repetition_penalti": 1.2}, TypeError, "'repetition_penalti' is no argument"),
            ({"repetition_penalty": -1.0}, ValueError, "'repetition_penalty' .* above 0"),
            ({"repetition_penalty": "x"}, ValueError, "'repetition_penalty' .* a number, got 'x'"),
            ({"min_p": 2.0, "temperature": 1.0}, ValueError, "min_p"),
            ({"bad_words_ids": [[99]]}, ValueError, r"vocabulary size is 40.* \[99\]"),
            ({"seed": "x", "temperature": 1.0}, ValueError, "seed must be a 64-bit integer"),
            ({"seed": 2**70, "temperature": 1.0}, ValueError, "seed must be a 64-bit integer"),
            ({"pad_token_id": [1, 2]}, ValueError, "pad_token_id must be one token id"),
            ({"temperature": 0, "do_sample": True}, ValueError, "temperature=0 .* do_sample"),
            ({"temperature": "hot"}, TypeError, "temperature must be a number"),
            ({"top_k": 2.5}, TypeError, "top_k must be a number"),
            ({"max_length": 7}, ValueError, "max_length=7 leaves no room"),
            ({"eos_token_id": "</s>"}, ValueError, "eos_token_id must be token ids"),
            ({"eos_token_id": [2, 1.5]}, ValueError, "eos_token_id must be token ids"),
            ({"eos_token_id": -1}, ValueError, "eos_token_id must be token ids"),
        ],
        ids=str,
    )
    def test_what_is_not_supported_is_refused_by_name(self, decoder, arguments, kind, message):
        with pytest.raises(kind, match=message):
            decoder.generate(PROMPT, WIDE, **arguments)

    @pytest.mark.parametrize(
        ("own", "message"),
        [
            ({"num_beams": 4}, "num_beams=4 is not supported"),
            ({"num_return_sequences": 3, "do_sample": True}, "num_return_sequences=3"),
            ({"guidance_scale": 2.0}, "guidance_scale=2.0"),
            ({"eos_token_id": "</s>"}, "eos_token_id must be token ids"),
            ({"pad_token_id": "<pad>"}, "pad_token_id must be token ids"),
            (
                {"repetition_penalty": "1.3"},
                "repetition_penalty. of the target.*generation_config.json",
            ),
            ({"suppress_tokens": ["a"]}, "suppress_tokens"),
            ({"cache_implementation": "static"}, "cache_implementation="),
            ({"bad_words_ids": [[9999]]}, "generation_config.json.*9999"),
        ],
        ids=str,
    )
    def test_a_target_that_asks_for_it_is_refused_when_loaded(self, own, message):
        own_model = tiny_model(vocab_size=VOCAB)
        for name, value in own.items():
            setattr(own_model.generation_config, name, value)
        with pytest.raises(ValueError, match=message):
            make_target(own_model)

    @pytest.mark.parametrize(
        "own",
        [
            {"num_beams": 1, "num_return_sequences": 1, "guidance_scale": 1.0},
            {"length_penalty": 1.0, "early_stopping": False, "use_cache": True},
            {"pad_token_id": -1, "output_hidden_states": False, "num_assistant_tokens": 20},
            {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
        ],
        ids=str,
    )
    def test_neutral_values_are_not(self, own):
        own_model = tiny_model(vocab_size=VOCAB)
        own_model.generation_config.update(**own)
        make_target(own_model)


class TestGenerationConfigFile:
    """generation_config.json in a target's folder, as others write it."""

    WRITTEN = {  # noqa: RUF012
        "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        "output_attentions": False, "output_hidden_states": False, "use_cache": True,
        "transformers_version": "5.24.0", "repetition_penalty": 1.3,
    }  # fmt: skip

    def folder(self, path, **changes: Any):
        tiny_model(vocab_size=VOCAB, logit_scale=2.0).save_pretrained(path)
        content = json.dumps(self.WRITTEN | changes)
        (path / "generation_config.json").write_text(content, encoding="utf-8")
        return path

    def test_is_honoured(self, tmp_path):
        path = self.folder(tmp_path, eos_token_id=[2, 30], no_repeat_ngram_size=3)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        target = load_target(path)
        decoder = SpeculativeDecoder(target, tiny_head(target, draft_vocab_size=VOCAB))
        for do_sample in (False, True):
            check(model, decoder, {"max_new_tokens": 20, "do_sample": do_sample}, WIDE)

    def test_of_the_model_config_is_honoured(self, tmp_path):
        """Older checkpoints have such values in config.json, and no generation_config.json."""
        path = self.folder(tmp_path)
        (path / "generation_config.json").unlink()
        file = path / "config.json"
        content = json.loads(file.read_text()) | {"repetition_penalty": 1.3}
        file.write_text(json.dumps(content))
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        assert model.generation_config.repetition_penalty == 1.3
        target = load_target(path)
        decoder = SpeculativeDecoder(target, tiny_head(target, draft_vocab_size=VOCAB))
        check(model, decoder, {"max_new_tokens": 14}, WIDE)

    @pytest.mark.parametrize(
        "changes",
        [{"cache_implementation": "hybrid"}, {"pad_token_id": -1}, {"chat_format": "chatml"},
         {"repetition_penalty": None}, {"top_k": -1, "temperature": 0.0}, {"length_penalty": 1}],
        ids=str,
    )  # fmt: skip
    def test_is_taken(self, tmp_path, changes):
        load_target(self.folder(tmp_path, **changes))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("eos_token_id", "</s>"),
            ("eos_token_id", [2, "</s>"]),
            ("eos_token_id", 2.5),
            ("eos_token_id", True),
            ("pad_token_id", "<pad>"),
            ("repetition_penalty", "1.3"),
            ("repetition_penalty", 0),
            ("temperature", "hot"),
            ("do_sample", "yes"),
            ("max_new_tokens", "many"),
            ("max_length", 2.5),
            ("no_repeat_ngram_size", -1),
            ("bad_words_ids", 3),
            ("forced_eos_token_id", "</s>"),
            ("exponential_decay_length_penalty", "x"),
            ("suppress_tokens", ["a"]),
            ("num_beams", 4),
            ("penalty_alpha", 0.6),
            ("sequence_bias", {"a": 1}),
        ],
    )
    def test_is_refused_with_its_key(self, tmp_path, name, value):
        path = self.folder(tmp_path, **{name: value})
        with pytest.raises(ValueError, match=rf"{name}(.|\n)*generation_config\.json|"
                           rf"generation_config\.json(.|\n)*{name}"):  # fmt: skip
            load_target(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"repetition_penalty": 1.3}, {"repetition_penalty": 1.1}, {"no_repeat_ngram_size": 3}],
    ids=str,
)
@pytest.mark.parametrize("do_sample", [False, True])
def test_smollm2(smollm2_path, options, do_sample):
    """The packaged target with its shipped head, by its own config and by arguments."""
    model = load_transformers_model(smollm2_path, torch.float32)
    decoder = SpeculativeDecoder.from_pretrained(smollm2_path, default_draft_path())
    chat = [{"role": "user", "content": "Write the word banana twenty times."}]
    prompt = decoder.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    arguments = {"max_new_tokens": 32, "do_sample": do_sample}
    wanted = expected(model, arguments | options, prompt)
    plain = expected(model, arguments, prompt)
    assert wanted != plain
    for plan in (TreeParams(6, 2, 4), DraftPlan(TreeParams(8, 3, 4), lookup_tokens=6)):
        torch.manual_seed(5)
        output = decoder.generate(prompt, plan, **arguments, **options)
        assert output.sequences[0].tolist() == wanted
        assert sum(cycle.accepted for cycle in output.statistics.cycles) > 0
    decoder.target.generation_config.update(**options)
    torch.manual_seed(5)
    assert decoder.generate(prompt, **arguments).sequences[0].tolist() == wanted
