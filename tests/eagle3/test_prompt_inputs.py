"""Prompts in every form: what transformers' `generate` takes has its result, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BatchEncoding, TextIteratorStreamer

from eaglerl.eagle3 import SpeculativeDecoder, TreeParams
from eaglerl.eagle3.prompt_inputs import all_read, read_prompts
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.eagle3.target.target_files import load_transformers_model

from .tiny import tiny_head, tiny_model

VOCAB, PAD = 60, 7
TREE = TreeParams(24, 3, 6)
PROMPTS = [[3, 14, 15, 9, 26, 5, 35], [1, 4], [8, 8, 40, 2, 55]]
WIDTH = 9
NEW_TOKENS = 10


@pytest.fixture(scope="module")
def model():
    return tiny_model(logit_scale=4.0)


@pytest.fixture(scope="module")
def sliding_model():
    return tiny_model("mistral", logit_scale=4.0, sliding_window=4)


def make_decoder(model) -> SpeculativeDecoder:
    backend = "transformers" if model.config.model_type == "mistral" else "auto"
    target = make_target(model, backend=backend)
    return SpeculativeDecoder(target, tiny_head(target))


@pytest.fixture(scope="module")
def decoder(model) -> SpeculativeDecoder:
    return make_decoder(model)


@pytest.fixture
def pad(model):
    """The model's own padding token, for the time of a test."""
    model.generation_config.pad_token_id = PAD
    yield PAD
    model.generation_config.pad_token_id = None


def reference(model, ids, mask=None, **arguments) -> torch.Tensor:
    """transformers' own."""
    masks = {} if mask is None else {"attention_mask": torch.as_tensor(mask)}
    arguments = {"max_new_tokens": NEW_TOKENS, "do_sample": False} | arguments
    return model.generate(torch.as_tensor(ids), **masks, **arguments)


def padded(*, left: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """All prompts in one batch, padded on the left, and their mask."""
    rows = [[left] * (WIDTH - len(prompt)) + prompt for prompt in PROMPTS]
    masks = [[0] * (WIDTH - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS]
    return torch.tensor(rows), torch.tensor(masks)


class TestForms:
    @pytest.mark.parametrize(
        "form",
        [
            PROMPTS[0],
            tuple(PROMPTS[0]),
            [PROMPTS[0]],
            [torch.tensor(PROMPTS[0])],
            [np.array(PROMPTS[0])],
            [torch.tensor(token) for token in PROMPTS[0]],
            list(np.array(PROMPTS[0])),
            np.array(PROMPTS[0]),
            np.array([PROMPTS[0]], dtype=np.uint16),
            torch.tensor(PROMPTS[0]),
            torch.tensor([PROMPTS[0]], dtype=torch.int32),
            torch.tensor([PROMPTS[0]], dtype=torch.uint8),
            {"input_ids": PROMPTS[0], "attention_mask": [1] * 7},
            {"input_ids": [PROMPTS[0]], "attention_mask": [[1] * 7]},
            {"input_ids": torch.tensor([PROMPTS[0]])},
            BatchEncoding({"input_ids": PROMPTS[0], "attention_mask": None}),
            BatchEncoding(
                {"input_ids": [PROMPTS[0]], "attention_mask": [[1] * 7]}, tensor_type="pt"
            ),
            range(3, 10),
        ],
        ids=lambda form: type(form).__name__,
    )
    def test_one_prompt(self, decoder, model, form) -> None:
        prompt = [*range(3, 10)] if isinstance(form, range) else PROMPTS[0]
        expected = reference(model, [prompt], [[1] * 7])
        output = decoder.generate(form, TREE, max_new_tokens=NEW_TOKENS)
        assert output.sequences.tolist() == expected.tolist()
        assert output.new_ids == (expected[0, 7:].tolist(),)
        assert output.prompt_lengths == (7,)
        generation = decoder.start(form, TREE, max_new_tokens=NEW_TOKENS)
        while generation.finish_reason is None:
            generation.advance()
        assert generation.token_ids == expected[0].tolist()

    def test_inputs_is_another_name(self, decoder, model) -> None:
        ids = torch.tensor([PROMPTS[0]])
        expected = reference(model, ids, torch.ones_like(ids))
        output = decoder.generate(inputs=ids, policy=TREE, max_new_tokens=NEW_TOKENS)
        assert output.sequences.tolist() == expected.tolist()

    def test_lists_of_different_lengths(self, decoder, model) -> None:
        output = decoder.generate(PROMPTS, TREE, max_new_tokens=NEW_TOKENS)
        for index, prompt in enumerate(PROMPTS):
            expected = reference(model, [prompt], [[1] * len(prompt)])[0].tolist()
            assert output.sequences[index, : len(expected)].tolist() == expected
            assert output.new_ids[index] == expected[len(prompt) :]
        assert output.prompt_lengths == (7, 2, 5)

    def test_a_tokenizers_output_of_several_texts(self, decoder, model) -> None:
        ids, mask = padded()
        expected = reference(model, ids, mask)
        encoding = BatchEncoding({"input_ids": ids.tolist(), "attention_mask": mask.tolist()})
        output = decoder.generate(encoding, TREE, max_new_tokens=NEW_TOKENS)
        assert output.sequences.tolist() == expected.tolist()
        output = decoder.generate(**encoding, policy=TREE, max_new_tokens=NEW_TOKENS)
        assert output.sequences.tolist() == expected.tolist()

    def test_the_result_is_where_the_input_was(self) -> None:
        """There is no device here but the CPU; what can be checked is that it is asked."""
        prompts = read_prompts(torch.tensor([[1, 2]]))
        assert prompts.device == torch.device("cpu")
        assert read_prompts([1, 2]).device == torch.device("cpu")
        assert read_prompts([torch.tensor([1, 2])]).device == torch.device("cpu")


class TestMasks:
    @pytest.mark.parametrize(
        "kind",
        [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, "list", "numpy"],
        ids=str,
    )
    def test_left_padding(self, decoder, model, kind) -> None:
        ids, mask = padded(left=11)
        expected = reference(model, ids, mask)
        given = {"list": mask.tolist, "numpy": mask.numpy}.get(kind, lambda: mask.to(kind))()
        output = decoder.generate(ids, TREE, attention_mask=given, max_new_tokens=NEW_TOKENS)
        assert output.sequences.tolist() == expected.tolist()
        assert [*output.new_ids] == expected[:, WIDTH:].tolist()
        assert output.prompt_lengths == (7, 2, 5)

    def test_texts_that_end_early_are_filled_up(self, decoder, model, pad) -> None:
        ids, mask = padded(left=pad)
        new = reference(model, ids, mask)[:, WIDTH:]
        eos = [int(new[0, 2]), int(new[1, 5])]
        expected = reference(model, ids, mask, eos_token_id=eos)
        output = decoder.generate(
            ids, TREE, attention_mask=mask, max_new_tokens=NEW_TOKENS, eos_token_id=eos
        )
        assert output.sequences.tolist() == expected.tolist()
        assert len({len(ids) for ids in output.new_ids}) > 1

    @pytest.mark.parametrize("mask", [[1, 1, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1, 1]])
    def test_holes(self, decoder, model, mask) -> None:
        """transformers counts positions by the mask, so that a hole is as if it were not there."""
        ids, mask = torch.tensor([PROMPTS[0]]), torch.tensor([mask])
        expected = reference(model, ids, mask)
        whole = reference(model, ids, torch.ones_like(mask))
        assert expected.tolist() != whole.tolist()
        output = decoder.generate(ids, TREE, attention_mask=mask, max_new_tokens=NEW_TOKENS)
        assert output.sequences.tolist() == expected.tolist()
        assert output.prompt_lengths == (int(mask.sum()),)

    def test_holes_under_a_sliding_window(self, sliding_model) -> None:
        """There transformers counts the hole, too, so that leaving it out gives another text."""
        decoder = make_decoder(sliding_model)
        ids, mask = torch.tensor([PROMPTS[0]]), torch.tensor([[1, 1, 0, 0, 1, 1, 1]])
        left_out = torch.tensor([PROMPTS[0][:2] + PROMPTS[0][4:]])
        assert (
            reference(sliding_model, ids, mask)[:, 7:].tolist()
            != reference(sliding_model, left_out, torch.ones_like(left_out))[:, 5:].tolist()
        )
        with pytest.raises(ValueError, match=r"hides tokens in the middle.* sliding window"):
            decoder.generate(ids, TREE, attention_mask=mask)
        ids, mask = padded()
        expected = reference(sliding_model, ids, mask)
        output = decoder.generate(ids, TREE, attention_mask=mask, max_new_tokens=NEW_TOKENS)
        assert output.sequences.tolist() == expected.tolist()

    @pytest.mark.parametrize(
        "options", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"max_time": 60.0}]
    )
    def test_what_reads_the_text_reads_the_padding_and_refuses_holes(
        self, decoder, model, options
    ) -> None:
        """As in transformers, processors are shown hidden tokens."""
        ids, mask = padded(left=10)
        expected = reference(model, ids, mask, **options)
        output = decoder.generate(
            ids, TREE, attention_mask=mask, max_new_tokens=NEW_TOKENS, **options
        )
        assert output.sequences.tolist() == expected.tolist()
        with pytest.raises(ValueError, match=r"hides tokens in the middle.* read the text"):
            decoder.generate(PROMPTS[0], TREE, attention_mask=[1, 1, 0, 0, 1, 1, 1], **options)

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            ([[1] * 5 + [0] * 2], "ends with padding .*pad on the left"),
            ([[1] * 6 + [0]], "ends with padding"),
            ([[0] * 7], "is all padding"),
            ([[2] * 7], "must be 1 for tokens and 0 for padding, got 2"),
            ([[0.0, 0.5, 1, 1, 1, 1, 1]], "got 0.5"),
            ([[0.0, -torch.inf, 0, 0, 0, 0, 0]], "got -inf"),
            ([[float("nan")] + [1.0] * 6], "got nan"),
            ([[1] * 6], r"shape of input_ids, \(1, 7\), got \(1, 6\)"),
            ([[1] * 7] * 2, r"got \(2, 7\)"),
            ([[[[1] * 7]]], r"got \(1, 1, 1, 7\)"),
        ],
    )
    def test_refused(self, decoder, mask, message) -> None:
        ids = torch.tensor([PROMPTS[0]])
        for given in (torch.tensor(mask), np.array(mask)):
            with pytest.raises(ValueError, match=message):
                decoder.generate(ids, TREE, attention_mask=given)
            with pytest.raises(ValueError, match=message):
                decoder.start(ids, TREE, attention_mask=given)

    def test_masks_of_other_kinds(self, decoder) -> None:
        for given in ("1111111", 1, object()):
            with pytest.raises(TypeError, match="attention_mask must be"):
                decoder.generate(PROMPTS[0], TREE, attention_mask=given)
        with pytest.raises(ValueError, match="attention_mask was given twice"):
            decoder.generate(
                {"input_ids": [1, 2], "attention_mask": [1, 1]}, TREE, attention_mask=[1, 1]
            )


class TestPaddingWithoutAMask:
    def test_it_is_taken_for_padding(self, decoder, model, pad) -> None:
        ids, mask = padded(left=pad)
        expected = reference(model, ids)
        assert expected.tolist() == reference(model, ids, mask).tolist()
        output = decoder.generate(ids, TREE, max_new_tokens=NEW_TOKENS)
        assert output.sequences.tolist() == expected.tolist()

    def test_also_in_the_midst_of_a_text(self, decoder, model, pad) -> None:
        ids = [[3, 14, pad, 15, 9, 26]]
        expected = reference(model, ids)
        assert expected.tolist() != reference(model, ids, [[1] * 6]).tolist()
        output = decoder.generate(ids, TREE, max_new_tokens=NEW_TOKENS)
        assert output.sequences.tolist() == expected.tolist()
        assert output.prompt_lengths == (5,)

    def test_unless_it_ends_texts(self, decoder, model, pad) -> None:
        ids = [[pad, pad, 14, 15, 9, 26]]
        expected = reference(model, ids, eos_token_id=[pad, 59])
        assert expected.tolist() != reference(model, ids).tolist()
        output = decoder.generate(ids, TREE, max_new_tokens=NEW_TOKENS, eos_token_id=[pad, 59])
        assert output.sequences.tolist() == expected.tolist()

    def test_a_mask_that_is_given_counts(self, decoder, model, pad) -> None:
        ids, mask = [[3, 14, pad, 15, pad]], [[1] * 5]
        expected = reference(model, ids, mask)
        output = decoder.generate(ids, TREE, attention_mask=mask, max_new_tokens=NEW_TOKENS)
        assert output.sequences.tolist() == expected.tolist()

    @pytest.mark.parametrize("form", [list, torch.tensor])
    def test_a_prompt_that_is_all_read(self, decoder, model, pad, form) -> None:
        """What whoever has the exact ids gives, such as the server."""
        ids = [3, 14, pad, 15, pad]
        expected = reference(model, [ids], [[1] * 5])
        output = decoder.generate(all_read(form(ids)), TREE, max_new_tokens=NEW_TOKENS)
        assert output.sequences.tolist() == expected.tolist()

    def test_without_a_padding_token_there_is_none(self, decoder, model) -> None:
        ids = [[PAD, PAD, 14, 15, 9, 26]]
        expected = reference(model, ids)
        output = decoder.generate(ids, TREE, max_new_tokens=NEW_TOKENS)
        assert output.sequences.tolist() == expected.tolist()

    def test_on_the_right_it_is_refused(self, decoder, pad) -> None:
        with pytest.raises(ValueError, match=r"ends with padding .*give attention_mask if"):
            decoder.generate([[3, 14, pad]], TREE)
        with pytest.raises(ValueError, match="is all padding"):
            decoder.generate([[pad, pad]], TREE)
        with pytest.raises(ValueError, match=r"input_ids\[1\] ends with padding"):
            decoder.generate([[3, 14], [3, pad]], TREE)


class TestRefusedIds:
    @pytest.mark.parametrize(
        "form",
        [
            [1, 2.5],
            [1.0, 2.0],
            [True, False],
            [None],
            [np.float32(1)],
            [np.bool_(1)],
            [torch.tensor(1.5)],
            [[1, 2], [3, 4.5]],
            torch.tensor([True, False]),
            torch.tensor([1.0]),
            np.array([1.5]),
            np.array(["a"]),
        ],
        ids=repr,
    )
    def test_what_is_no_integer(self, decoder, form) -> None:
        with pytest.raises(TypeError, match=r"input_ids.* must be integers"):
            decoder.generate(form, TREE)

    @pytest.mark.parametrize("form", ["text", b"text", ["text"], [["text"]], {1, 2}, 5, object()])
    def test_what_is_no_list(self, decoder, form) -> None:
        with pytest.raises(TypeError, match="input_ids"):
            decoder.generate(form, TREE)

    @pytest.mark.parametrize(
        ("form", "message"),
        [
            (None, "input_ids is missing"),
            ({}, "input_ids is missing"),
            (torch.zeros(1, 2, 3, dtype=torch.int64), r"must have shape .*got \(1, 2, 3\)"),
            ([torch.zeros(2, 3, dtype=torch.int64)], r"input_ids\[0\] must be one prompt, got 2"),
            ({"input_ids": [1], "token_type_ids": [0]}, "token_type_ids"),
            ({"input_ids": [1], "pixel_values": [0], "foo": 1}, "foo, pixel_values"),
        ],
    )
    def test_other_shapes_and_fields(self, decoder, form, message) -> None:
        with pytest.raises(ValueError, match=message):
            decoder.generate(form, TREE)

    def test_two_names_at_once(self, decoder) -> None:
        with pytest.raises(ValueError, match="inputs is another name of input_ids"):
            decoder.generate([1, 2], TREE, inputs=[1, 2])

    def test_start_and_eagenerate_take_one_prompt(self, decoder) -> None:
        for method in (decoder.start, decoder.eagenerate):
            with pytest.raises(ValueError, match=r"one prompt.* got 3"):
                method(PROMPTS)

    def test_unknown_arguments(self, decoder) -> None:
        for name in ("num_beans", "past_key_values", "position_ids"):
            with pytest.raises((TypeError, ValueError), match=name):
                decoder.generate([1, 2], TREE, **{name: object()})
            with pytest.raises((TypeError, ValueError), match=name):
                decoder.start([1, 2], TREE, **{name: object()})


class Recording:
    """Writes down what a streamer is given."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def put(self, value: torch.Tensor) -> None:
        self.calls.append((tuple(value.shape), value.dtype, value.device.type, value.tolist()))

    def end(self) -> None:
        self.calls.append("end")


@pytest.mark.parametrize("left", [0, 3])
def test_streamers_are_given_what_transformers_gives_them(decoder, model, left) -> None:
    ids = torch.tensor([[0] * left + PROMPTS[0]])
    mask = torch.tensor([[0] * left + [1] * 7])
    expected, found = Recording(), Recording()
    reference(model, ids, mask, streamer=expected)
    decoder.generate(ids, TREE, attention_mask=mask, max_new_tokens=NEW_TOKENS, streamer=found)
    assert found.calls == expected.calls
    assert len(found.calls) == NEW_TOKENS + 2


def test_eagenerate_takes_masks_of_a_tokenizer(decoder, model) -> None:
    encoding = BatchEncoding(
        {"input_ids": [[0, 0, *PROMPTS[0]]], "attention_mask": [[0, 0] + [1] * 7]}
    )
    expected = reference(model, encoding["input_ids"], encoding["attention_mask"])
    output = decoder.eagenerate(encoding, max_new_tokens=NEW_TOKENS)
    assert output.tolist() == expected.tolist()


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [1], 5, [None]])
def test_stop_strings_that_are_none(decoder, stop) -> None:
    with pytest.raises((TypeError, ValueError), match="stop_strings"):
        decoder.generate(PROMPTS[0], TREE, stop_strings=stop, tokenizer=object())


@pytest.mark.slow
@pytest.mark.parametrize(
    "texts", [["Rain falls when", "The capital of France is the city of", "Hi"]]
)
def test_smollm2_with_its_own_tokenizer(smollm2_path, texts) -> None:
    from transformers import AutoTokenizer

    from eaglerl.prepare import default_draft_path

    decoder = SpeculativeDecoder.from_pretrained(smollm2_path, default_draft_path())
    model = load_transformers_model(smollm2_path, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_path, padding_side="left")
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    expected = model.generate(**batch, max_new_tokens=24, do_sample=False)
    for output in (
        decoder.generate(batch, max_new_tokens=24),
        decoder.generate(**batch, max_new_tokens=24),
    ):
        assert output.sequences.tolist() == expected.tolist()
        width = batch.input_ids.shape[1]
        assert tokenizer.batch_decode(
            output.sequences[:, width:], skip_special_tokens=True
        ) == tokenizer.batch_decode(output.new_ids, skip_special_tokens=True)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": texts[0]}], add_generation_prompt=True, return_tensors="pt"
    )
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    output = decoder.generate(chat, max_new_tokens=24, streamer=streamer)
    ids = chat["input_ids"]
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
    )
    assert output.sequences.tolist() == expected.tolist()
    assert "".join(streamer) == tokenizer.decode(output.new_ids[0])
