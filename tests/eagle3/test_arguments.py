"""Arguments that `SpeculativeDecoder` refuses, after which it is still usable."""

from __future__ import annotations

import pytest
import torch
from transformers import TextStreamer

from eaglerl.eagle3 import SpeculativeDecoder, TreeParams
from eaglerl.eagle3.sampling import GreedyVerifier, make_verifier
from eaglerl.eagle3.target.make_target import make_target

from .heads import make_config, make_head
from .tiny import tiny_head, tiny_model

VOCAB = 60
PROMPT = [3, 14, 15, 9, 26, 5, 35]
TREE = TreeParams(24, 3, 6)


@pytest.fixture(scope="module")
def model():
    return tiny_model(logit_scale=4.0)


@pytest.fixture(scope="module")
def decoder(model) -> SpeculativeDecoder:
    target = make_target(model)
    return SpeculativeDecoder(target, tiny_head(target))


class TestWrongArguments:
    @pytest.fixture(autouse=True)
    def _decoder_stays_usable(self, decoder):
        before = decoder.generate(PROMPT, TREE, max_new_tokens=12).sequences.tolist()
        yield
        assert decoder.generate(PROMPT, TREE, max_new_tokens=12).sequences.tolist() == before

    @pytest.mark.parametrize("prompt", [[], torch.empty(1, 0, dtype=torch.int64), torch.empty(0)])
    def test_empty_prompt(self, decoder, prompt):
        with pytest.raises(ValueError, match="input_ids is empty"):
            decoder.generate(prompt, TREE)

    def test_no_prompt_at_all(self, decoder):
        with pytest.raises(ValueError, match="input_ids"):
            decoder.generate(torch.empty(0, 4, dtype=torch.int64), TREE)

    def test_one_empty_prompt_among_several(self, decoder):
        with pytest.raises(ValueError, match=r"input_ids\[1\] is empty"):
            decoder.generate([PROMPT, [], PROMPT], TREE)

    @pytest.mark.parametrize("token", [-1, VOCAB, 10**9])
    def test_unknown_token(self, decoder, token):
        with pytest.raises(ValueError, match=f"token id {token}; allowed are 0 to {VOCAB - 1}"):
            decoder.generate([3, token, 4], TREE)

    @pytest.mark.parametrize("length", [1024, 1025, 5000])
    def test_prompt_that_fills_the_context(self, decoder, length):
        with pytest.raises(ValueError, match=f"input_ids has {length} tokens.* 1024"):
            decoder.generate([7] * length, TREE)

    def test_ids_that_are_no_integers(self, decoder):
        with pytest.raises(TypeError, match="input_ids must be integers"):
            decoder.generate(torch.tensor([1.0, 2.0]), TREE)

    def test_text_instead_of_ids(self, decoder):
        with pytest.raises((TypeError, ValueError)):
            decoder.generate("once upon a time", TREE)

    def test_mask_of_another_shape(self, decoder):
        with pytest.raises(ValueError, match="attention_mask must have the shape"):
            decoder.generate(torch.tensor([PROMPT]), TREE, attention_mask=torch.ones(1, 3))

    @pytest.mark.parametrize("count", [0, -1])
    def test_no_new_tokens(self, decoder, model, count):
        """transformers refuses it as well."""
        with pytest.raises(ValueError, match="max_new_tokens"):
            decoder.generate(PROMPT, TREE, max_new_tokens=count)
        with pytest.raises(ValueError, match="max_new_tokens"):
            model.generate(torch.tensor([PROMPT]), max_new_tokens=count)

    @pytest.mark.parametrize(
        ("name", "value", "temperature"),
        [
            ("temperature", -0.5, -0.5),
            ("temperature", float("nan"), float("nan")),
            ("top_p", 0.0, 1.0),
            ("top_p", 1.5, 1.0),
            ("top_p", -1.0, 0.0),
            ("top_k", -1, 1.0),
        ],
    )
    def test_sampling_arguments(self, decoder, name, value, temperature):
        arguments = {"temperature": temperature, name: value}
        with pytest.raises(ValueError, match=f"{name} must be"):
            decoder.generate(PROMPT, TREE, **arguments)

    @pytest.mark.parametrize("name", ["max_new_tokens", "max_length", "top_k", "temperature"])
    def test_a_bool_is_no_number(self, decoder, name):
        with pytest.raises(TypeError, match=f"{name} must be a number of type .*, got True"):
            decoder.generate(PROMPT, **{"temperature": 1.0, name: True})

    @pytest.mark.parametrize("seed", [True, 1.5, 2**70, "7"])
    def test_seeds(self, decoder, seed):
        with pytest.raises(ValueError, match="seed must be a 64-bit integer"):
            decoder.generate(PROMPT, temperature=1.0, seed=seed)
        with pytest.raises(ValueError, match="seed must be a 64-bit integer"):
            make_verifier(1.0, 1.0, 0, seed, "cpu")

    def test_a_mask_of_no_axes(self, decoder):
        with pytest.raises(ValueError, match="attention_mask must have the shape of input_ids"):
            decoder.generate(PROMPT, attention_mask=torch.tensor(1))

    def test_what_transformers_cannot_make_a_processor_of(self, decoder):
        """A processor needs an end-of-sequence token, and there is none."""
        with pytest.raises(ValueError, match="a logits processor cannot be made"):
            decoder.generate(PROMPT, exponential_decay_length_penalty=(2, 1.5))

    def test_eagenerate_does_not_cut_top_k_down(self, decoder):
        with pytest.raises(TypeError, match=r"top_k must be a number of type int, got 0\.5"):
            decoder.eagenerate([PROMPT], temperature=1.0, top_k=0.5)

    def test_length_of_a_session(self, decoder):
        with pytest.raises(ValueError, match="length must be 0 or positive, got -600"):
            decoder.new_session(GreedyVerifier(), -600)

    def test_tree_wider_than_the_draft_vocabulary(self, decoder):
        """It is refused before anything is decoded: the streamer fails if it is written to."""
        with pytest.raises(ValueError, match=r"top_k=25 .* vocabulary of 24"):
            decoder.generate(PROMPT, TreeParams(8, 2, 25), streamer=object())

    def test_streamer_for_several_prompts(self, decoder):
        with pytest.raises(ValueError, match="streamer takes one prompt"):
            decoder.generate([PROMPT, PROMPT], TREE, streamer=TextStreamer(None))

    def test_stop_strings_without_a_tokenizer(self, decoder):
        with pytest.raises(ValueError, match=r"stop_strings need .* tokenizer"):
            decoder.generate(PROMPT, TREE, stop_strings="x")


class TestHeadThatDoesNotFit:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"hidden_size": 48}, "hidden size of the features is 48 in the head and 32"),
            ({"vocab_size": 50}, "vocab_size is 50 in the head and 60"),
            (
                {"feature_layers": (1, 2, 3)},
                r"feature_layers is \(1, 2, 3\) in the head",
            ),
            ({"feature_layers": (2, 5, 9)}, r"7 layers.* \[2, 5, 9\]"),
        ],
    )
    def test_error_names_both_values(self, model, changes, message):
        head = make_head(make_config(**changes))
        with pytest.raises(ValueError, match=message):
            SpeculativeDecoder(make_target(model), head)
