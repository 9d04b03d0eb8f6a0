"""`SpeculativeDecoder`: ends of a sequence, streamers, batches, sampling, EAGLE's signature."""

from __future__ import annotations

import string

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer, TextStreamer

from eaglerl.eagle3 import NO_DRAFT, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.target.make_target import make_target

from .tiny import tiny_head, tiny_model

VOCAB = 60
PROMPT = [3, 14, 15, 9, 26, 5, 35]
TREE = TreeParams(24, 3, 6)

#: Wide enough that some of the target's tokens are accepted although the head is random.
WIDE = TreeParams(400, 2, VOCAB)


def make_decoder(model, **changes: object) -> SpeculativeDecoder:
    target = make_target(model)
    return SpeculativeDecoder(target, tiny_head(target, **changes))


def reference(model, prompt: list[int], **arguments: object) -> list[int]:
    """Prompt and output of transformers' greedy search."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **arguments
    )
    return output[0].tolist()


@pytest.fixture(scope="module")
def model():
    return tiny_model(logit_scale=4.0)


@pytest.fixture(scope="module")
def short_model():
    """A model with a context of 32 tokens."""
    return tiny_model(logit_scale=4.0, max_position_embeddings=32)


@pytest.fixture(scope="module")
def decoder(model) -> SpeculativeDecoder:
    return make_decoder(model)


@pytest.fixture(scope="module")
def wide_decoder(model) -> SpeculativeDecoder:
    """Its head drafts any token."""
    return make_decoder(model, draft_vocab_size=VOCAB)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Letters, the space and a few longer tokens; 60 in all."""
    merges = [("a", "b"), ("c", "d"), ("ab", "cd"), ("X", "Y"), ("i", "n"), ("in", "g"), ("Ġ", "t")]
    tokens = [*string.ascii_letters, "Ġ", *("".join(merge) for merge in merges)]
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    assert inner.get_vocab_size() == VOCAB
    return PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False)


class TestEndOfSequence:
    @pytest.mark.parametrize("tree", [NO_DRAFT, TREE, TreeParams(20, 7, 3)])
    @pytest.mark.parametrize("length", [20, 30, 31])
    def test_context_limit(self, short_model, tree, length):
        decoder = make_decoder(short_model)
        prompt = [(7 * i) % VOCAB for i in range(length)]
        output = decoder.generate(prompt, tree, max_new_tokens=100)
        assert output.finish_reasons == ("context",)
        expected = reference(short_model, prompt, max_new_tokens=32 - length)
        assert output.sequences[0].tolist() == expected
        assert len(expected) == 32

    @pytest.mark.parametrize("tree", [NO_DRAFT, TREE, WIDE])
    @pytest.mark.parametrize("count", [1, 2, 3, 11])
    def test_max_new_tokens(self, wide_decoder, model, tree, count):
        output = wide_decoder.generate(PROMPT, tree, max_new_tokens=count)
        assert output.finish_reasons == ("length",)
        assert output.sequences[0].tolist() == reference(model, PROMPT, max_new_tokens=count)

    def test_eos_inside_an_accepted_path(self, wide_decoder, model):
        free = wide_decoder.generate(PROMPT, WIDE, max_new_tokens=40)
        new_ids = free.sequences[0, len(PROMPT) :].tolist()
        start, candidates = 1, []
        for cycle in free.statistics.cycles:
            for offset, token in enumerate(cycle.token_ids[:-1]):
                if token not in new_ids[: start + offset]:
                    candidates.append(token)
            start += len(cycle.token_ids)
        assert candidates, "no cycle accepted a token that is new: the test shows nothing"
        for token in candidates:
            output = wide_decoder.generate(PROMPT, WIDE, max_new_tokens=40, eos_token_id=token)
            expected = reference(model, PROMPT, max_new_tokens=40, eos_token_id=token)
            assert output.sequences[0].tolist() == expected
            assert output.finish_reasons == ("stop",)
            assert expected[-1] == token
            assert len(output.statistics.cycles[-1].token_ids) > 1

    def test_eos_as_the_first_token(self, decoder, model):
        first = reference(model, PROMPT, max_new_tokens=1)[-1]
        output = decoder.generate(PROMPT, TREE, eos_token_id=first)
        assert output.sequences[0].tolist() == [*PROMPT, first]
        assert output.statistics.num_cycles == 0

    def test_list_of_eos_tokens(self, decoder, model):
        new_ids = reference(model, PROMPT, max_new_tokens=30)[len(PROMPT) :]
        eos = [new_ids[20], new_ids[9], new_ids[14]]
        output = decoder.generate(PROMPT, TREE, max_new_tokens=30, eos_token_id=eos)
        expected = reference(model, PROMPT, max_new_tokens=30, eos_token_id=eos)
        assert output.sequences[0].tolist() == expected
        assert output.finish_reasons == ("stop",)

    def test_eos_of_the_generation_config_is_the_default(self, model):
        new_ids = reference(model, PROMPT, max_new_tokens=10)[len(PROMPT) :]
        decoder = make_decoder(model)
        model.generation_config.eos_token_id = [new_ids[5]]
        try:
            output = decoder.generate(PROMPT, TREE, max_new_tokens=10)
            expected = reference(model, PROMPT, max_new_tokens=10)
        finally:
            model.generation_config.eos_token_id = None
        assert output.sequences[0].tolist() == expected
        assert expected[-1] == new_ids[5]

    @pytest.mark.parametrize("position", [0, 3, 11, 20])
    @pytest.mark.parametrize("length", [1, 3, 6])
    def test_stop_strings(self, wide_decoder, model, tokenizer, position, length):
        new_ids = reference(model, PROMPT, max_new_tokens=40)[len(PROMPT) :]
        text = tokenizer.decode(new_ids)
        stop_strings = [text[position : position + length], "this is not written"]
        arguments = {"max_new_tokens": 40, "stop_strings": stop_strings, "tokenizer": tokenizer}
        output = wide_decoder.generate(PROMPT, WIDE, **arguments)
        expected = reference(model, PROMPT, **arguments)
        assert output.sequences[0].tolist() == expected
        assert output.finish_reasons == ("stop_string",)

    def test_single_stop_string_with_the_tokenizer_of_the_decoder(self, model, tokenizer):
        target = make_target(model)
        decoder = SpeculativeDecoder(target, tiny_head(target), tokenizer=tokenizer)
        new_ids = reference(model, PROMPT, max_new_tokens=12)[len(PROMPT) :]
        stop = tokenizer.decode(new_ids)[4:6]
        output = decoder.generate(PROMPT, TREE, max_new_tokens=12, stop_strings=stop)
        expected = reference(
            model, PROMPT, max_new_tokens=12, stop_strings=stop, tokenizer=tokenizer
        )
        assert output.sequences[0].tolist() == expected


class TestStreamers:
    def test_text_streamer(self, wide_decoder, tokenizer, capsys):
        streamer = TextStreamer(tokenizer, skip_prompt=True)
        output = wide_decoder.generate(PROMPT, WIDE, max_new_tokens=30, streamer=streamer)
        text = tokenizer.decode(output.sequences[0, len(PROMPT) :])
        assert capsys.readouterr().out == text + "\n"

    @pytest.mark.parametrize("skip_prompt", [False, True])
    def test_text_iterator_streamer(self, wide_decoder, model, tokenizer, skip_prompt):
        """The text ends at an accepted end-of-sequence token; nothing follows it."""
        eos = reference(model, PROMPT, max_new_tokens=17)[-1]
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=skip_prompt, timeout=60)
        output = wide_decoder.generate(
            PROMPT, WIDE, max_new_tokens=30, eos_token_id=eos, streamer=streamer
        )
        start = len(PROMPT) if skip_prompt else 0
        assert "".join(streamer) == tokenizer.decode(output.sequences[0, start:])

    def test_interrupt_leaves_the_decoder_usable(self, decoder):
        class Interrupting:
            calls = 0

            def put(self, value: torch.Tensor) -> None:
                self.calls += 1
                if self.calls == 4:
                    raise KeyboardInterrupt

            def end(self) -> None:
                raise AssertionError("the output did not end")

        before = decoder.generate(PROMPT, TREE, max_new_tokens=20)
        with pytest.raises(KeyboardInterrupt):
            decoder.generate(PROMPT, TREE, max_new_tokens=20, streamer=Interrupting())
        after = decoder.generate(PROMPT, TREE, max_new_tokens=20)
        assert after.sequences.tolist() == before.sequences.tolist()


class TestSeveralPrompts:
    PROMPTS = (PROMPT, [1], [8, 8, 8, 40, 2, 55, 13, 21, 34, 3])

    def test_each_is_decoded_as_if_alone(self, decoder, model):
        eos = reference(model, PROMPT, max_new_tokens=9)[-1]
        arguments = {"max_new_tokens": 25, "eos_token_id": eos}
        output = decoder.generate(list(self.PROMPTS), TREE, **arguments)
        for row, prompt in enumerate(self.PROMPTS):
            alone = decoder.generate(prompt, TREE, **arguments)
            length = alone.sequences.shape[1]
            assert output.sequences[row, :length].tolist() == alone.sequences[0].tolist()
            assert set(output.sequences[row, length:].tolist()) <= {eos}
            assert output.finish_reasons[row] == alone.finish_reasons[0]
            assert output.per_sequence[row].new_tokens == alone.statistics.new_tokens

    def test_left_padding(self, decoder):
        width = max(len(prompt) for prompt in self.PROMPTS)
        padding = [width - len(prompt) for prompt in self.PROMPTS]
        ids = torch.tensor([[0] * n + p for n, p in zip(padding, self.PROMPTS, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (width - n) for n in padding])
        padded = decoder.generate(ids, TREE, attention_mask=mask, max_new_tokens=10)
        plain = decoder.generate(list(self.PROMPTS), TREE, max_new_tokens=10)
        assert padded.sequences[:, :width].tolist() == ids.tolist()
        assert padded.sequences[:, width:].tolist() == [*plain.new_ids]

    @pytest.mark.parametrize(
        "form",
        [PROMPT, tuple(PROMPT), [PROMPT], torch.tensor(PROMPT), torch.tensor([PROMPT]).int()],
    )
    def test_forms_of_one_prompt(self, decoder, model, form):
        output = decoder.generate(form, TREE, max_new_tokens=5)
        assert output.sequences.tolist() == [reference(model, PROMPT, max_new_tokens=5)]


class TestSampling:
    ARGUMENTS = {"max_new_tokens": 30, "temperature": 0.9, "top_p": 0.95, "top_k": 20}  # noqa: RUF012

    def test_seed_repeats_the_output(self, decoder):
        outputs = [
            decoder.generate(PROMPT, TREE, seed=seed, **self.ARGUMENTS).sequences.tolist()
            for seed in (1, 1, 2)
        ]
        assert outputs[0] == outputs[1]
        assert outputs[0] != outputs[2]

    def test_seed_leaves_the_global_generator_alone(self, decoder):
        state = torch.get_rng_state()
        decoder.generate(PROMPT, TREE, seed=1, **self.ARGUMENTS)
        assert torch.equal(torch.get_rng_state(), state)

    def test_global_generator_without_a_seed(self, decoder):
        outputs = []
        for _ in range(2):
            torch.manual_seed(5)
            outputs.append(decoder.generate(PROMPT, TREE, **self.ARGUMENTS).sequences.tolist())
        assert outputs[0] == outputs[1]

    def test_one_token_to_sample_from_is_greedy(self, decoder, model):
        output = decoder.generate(PROMPT, TREE, max_new_tokens=20, temperature=1.3, top_k=1)
        assert output.sequences[0].tolist() == reference(model, PROMPT, max_new_tokens=20)


class TestEagenerate:
    def test_equals_generate(self, decoder, monkeypatch):
        # The number of cycles must not depend on what they take.
        monkeypatch.setattr(decoder, "default_policy", TreeParams(6, 2, 4))
        ids = torch.tensor([PROMPT])
        expected = decoder.generate(ids, max_new_tokens=20)
        assert decoder.eagenerate(ids, max_new_tokens=20).tolist() == expected.sequences.tolist()
        ids_out, new_tokens, last_cycle = decoder.eagenerate(ids, max_new_tokens=20, log=True)
        assert ids_out.tolist() == expected.sequences.tolist()
        assert new_tokens == 20
        assert last_cycle == expected.statistics.num_cycles - 1

    def test_sampling_arguments(self, decoder):
        ids = torch.tensor([PROMPT])
        torch.manual_seed(3)
        output = decoder.eagenerate(ids, temperature=0.8, top_p=0.9, top_k=9.0, max_new_tokens=15)
        torch.manual_seed(3)
        expected = decoder.generate(ids, temperature=0.8, top_p=0.9, top_k=9, max_new_tokens=15)
        assert output.tolist() == expected.sequences.tolist()

    def test_max_length_counts_the_prompt(self, decoder, model):
        output = decoder.eagenerate(torch.tensor([PROMPT]), max_length=12)
        assert output[0].tolist() == reference(model, PROMPT, max_new_tokens=12 - len(PROMPT))
        with pytest.raises(ValueError, match="max_length=7 leaves no room"):
            decoder.eagenerate(torch.tensor([PROMPT]), max_length=7)

    def test_is_llama3_needs_its_token(self, decoder):
        with pytest.raises(ValueError, match="eot_id"):
            decoder.eagenerate(torch.tensor([PROMPT]), is_llama3=True)


@pytest.mark.parametrize(
    "tree", [TreeParams(60, 8, 32), TreeParams(500, 8, 32), TreeParams(700, 12, 60)]
)
def test_wide_and_deep_trees(wide_decoder, model, tree):
    output = wide_decoder.generate(PROMPT, tree, max_new_tokens=24)
    assert output.sequences[0].tolist() == reference(model, PROMPT, max_new_tokens=24)


def test_long_sequence_after_a_short_one(model):
    """The caches grow, and a shorter sequence after that reuses them."""
    decoder = make_decoder(model)
    for length, count in ((3, 4), (900, 20), (5, 6)):
        prompt = [(11 * i * i + 5) % VOCAB for i in range(length)]
        output = decoder.generate(prompt, TREE, max_new_tokens=count)
        assert output.sequences[0].tolist() == reference(model, prompt, max_new_tokens=count)


@pytest.mark.parametrize("draft_dtype", ["float32", "auto"])
def test_a_dynamic_head_drafts_within_its_own_length(short_model, draft_dtype):
    """The context limits the text, not the rows that are reserved for trees."""
    target = make_target(short_model)
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    head = tiny_head(target, max_position_embeddings=32, rope_parameters=dynamic)
    dynamic_decoder = SpeculativeDecoder(target, head, draft_dtype=draft_dtype)
    output = dynamic_decoder.generate([PROMPT], TREE, max_new_tokens=100)
    assert output.sequences[0].tolist() == reference(short_model, PROMPT, max_length=32)
    assert len(output.sequences[0]) == 32
    shorter = tiny_head(target, max_position_embeddings=16, rope_parameters=dynamic)
    with pytest.raises(ValueError, match="max_position_embeddings with RoPE of type 'dynamic'"):
        SpeculativeDecoder(target, shorter).generate([PROMPT], TREE, max_new_tokens=100)


def test_a_head_with_a_window_drafts_the_targets_text(model):
    windowed = make_decoder(
        model, draft_vocab_size=VOCAB, sliding_window=6, qk_norm=True, norm_before_fc=True
    )
    output = windowed.generate([PROMPT], WIDE, max_new_tokens=40)
    assert output.sequences[0].tolist() == reference(model, PROMPT, max_new_tokens=40)
    assert any(cycle.accepted for cycle in output.per_sequence[0].cycles)


def test_statistics_add_up(wide_decoder):
    output = wide_decoder.generate([PROMPT, [4, 4]], WIDE, max_new_tokens=21)
    total = output.statistics
    assert total.new_tokens == sum(part.new_tokens for part in output.per_sequence) == 42
    assert total.num_cycles == sum(part.num_cycles for part in output.per_sequence)
    for part, sequence in zip(output.per_sequence, output.sequences, strict=True):
        prompt_length = len(sequence) - 21 if part is output.per_sequence[0] else 2
        length = prompt_length + 1
        emitted = []
        for cycle in part.cycles:
            assert cycle.accepted + 1 == len(cycle.token_ids)
            assert cycle.seconds == cycle.draft_seconds + cycle.verify_seconds > 0
            assert cycle.policy_seconds > 0
            length += len(cycle.token_ids)
            assert cycle.context_length == length
            emitted.extend(cycle.token_ids)
        written = sequence[prompt_length + 1 : prompt_length + 21].tolist()
        assert emitted[:20] == written
        own = sum(cycle.seconds for cycle in part.cycles)
        # The choice of what is verified counts as drafting and as the policy's time.
        assert own <= part.decode_seconds
        assert part.policy_seconds <= part.decode_seconds
        assert part.mean_acceptance_length == len(emitted) / part.num_cycles
    assert total.tokens_per_second == total.new_tokens / total.seconds
