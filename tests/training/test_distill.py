"""Self-distillation: the file it writes, the tokens it draws, and what a resumed run does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from eaglerl.training.distill import (
    ChatTemplatePieces,
    DistillProgress,
    append_row,
    choose_tokens,
    distill,
    recover,
)

VOCAB = 40
SPECIAL = ("<s>", "</s>", "<user>", "<bot>")
TEMPLATE = (
    "{% for message in messages %}<s><user>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s><bot>{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Letters and four special tokens, with a chat template around them."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [*"0123456789"]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    """Folder of a random Llama of seven layers with the tiny tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    path = tmp_path_factory.mktemp("distill-target")
    LlamaForCausalLM(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def run(target: Path, output: Path, response_tokens: int, **changes: object) -> DistillProgress:
    arguments = {"slots": 5, "max_new_tokens": 12, "dtype": "float32", "openings": ("abc", "who")}
    return distill(target, output, response_tokens=response_tokens, **(arguments | changes))


def read_rows(path: Path) -> list[dict[str, list[int]]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class TestFile:
    def test_append_row(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        append_row(path, [1, 2], [3])
        append_row(path, (), [4, 5, 6])
        assert path.read_bytes() == b'{"p":[1,2],"r":[3]}\n{"p":[],"r":[4,5,6]}\n'

    def test_recover_counts_what_is_there(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        append_row(path, [1, 2], [3])
        append_row(path, [7], [4, 5, 6])
        assert recover(path) == DistillProgress(rows=2, response_tokens=4, prompt_tokens=3)

    def test_recover_without_a_file(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        assert recover(path) == DistillProgress(0, 0, 0)
        assert not path.exists()

    def test_recover_cuts_off_any_part_of_a_line(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        append_row(path, [1, 2], [3])
        whole = path.read_bytes()
        for length in range(1, len(whole)):
            path.write_bytes(whole + whole[:length])
            assert recover(path) == DistillProgress(rows=1, response_tokens=1, prompt_tokens=2)
            assert path.read_bytes() == whole

    @pytest.mark.parametrize("line", ["{", "[1, 2]", '{"p": [1]}', "", "null"])
    def test_recover_leaves_a_broken_file_as_it_is(self, tmp_path, line):
        path = tmp_path / "rows.jsonl"
        append_row(path, [1], [2])
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        append_row(path, [1], [2])
        before = path.read_bytes()
        with pytest.raises(ValueError, match=r"line 2 of the rows '.*rows\.jsonl'"):
            recover(path)
        assert path.read_bytes() == before


class TestChooseTokens:
    def test_argmax_at_temperature_0(self):
        logits = torch.randn(50, VOCAB)
        chosen = choose_tokens(logits, torch.zeros(50), torch.Generator())
        assert torch.equal(chosen, logits.argmax(-1))

    def test_rows_have_their_own_temperature(self):
        logits = torch.randn(1, VOCAB).expand(200, -1)
        temperatures = torch.tensor([0.0, 5.0]).repeat(100)
        chosen = choose_tokens(logits, temperatures, torch.Generator().manual_seed(0))
        assert chosen[::2].unique().tolist() == [int(logits[0].argmax())]
        assert len(chosen[1::2].unique()) > 10

    @pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
    def test_distribution(self, temperature):
        """Chi-square against the softmax in float64; the seed is fixed."""
        draws = 40_000
        logits = torch.randn(12, generator=torch.Generator().manual_seed(1))
        chosen = choose_tokens(
            logits.expand(draws, -1),
            torch.full((draws,), temperature),
            torch.Generator().manual_seed(2),
        )
        expected = torch.softmax(logits.double() / temperature, -1) * draws
        observed = torch.bincount(chosen, minlength=12)
        assert float(expected.min()) > 5
        assert chisquare(observed.numpy(), expected.numpy()).pvalue > 0.01

    def test_tokens_without_probability_are_never_drawn(self):
        logits = torch.full((5000, VOCAB), float("-inf"))
        logits[:, [3, 17]] = 0.0
        chosen = choose_tokens(logits, torch.ones(5000), torch.Generator().manual_seed(0))
        assert chosen.unique().tolist() == [3, 17]


class TestChatTemplatePieces:
    def test_pieces(self):
        pieces = ChatTemplatePieces(tiny_tokenizer())
        assert pieces.opening == [0, 2]
        assert pieces.turn_change == [1, 0, 3]

    def test_template_without_the_text(self):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "<s><user></s>"
        with pytest.raises(ValueError, match="does not contain the user's text"):
            ChatTemplatePieces(tokenizer)

    def test_template_without_anything_around_the_text(self):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
        with pytest.raises(ValueError, match="no text around"):
            ChatTemplatePieces(tokenizer)


class TestRun:
    def test_rows_have_the_form_of_a_chat(self, target, tmp_path):
        output = tmp_path / "folder" / "rows.jsonl"
        seen = []
        progress = run(target, output, 150, progress=lambda now: seen.append(now.rows))
        rows = read_rows(output)
        for row in rows:
            assert row["p"][:2] == [0, 2]
            assert row["p"][-3:] == [1, 0, 3]
            assert 1 not in row["p"][2:-3]
            assert 1 <= len(row["r"]) <= 12
            assert 1 not in row["r"][:-1]
            assert row["r"][-1] == 1 or len(row["r"]) == 12
        assert seen == list(range(1, len(rows) + 1))
        assert progress == recover(output)
        assert progress.response_tokens >= 150
        assert progress.response_tokens - len(rows[-1]["r"]) < 150

    def test_some_prompts_begin_with_an_opening(self, target, tmp_path):
        output = tmp_path / "rows.jsonl"
        run(target, output, 300)
        openings = [tiny_tokenizer()(text).input_ids for text in ("abc", "who")]
        rows = read_rows(output)
        steered = [row for row in rows if row["p"][2:5] in openings]
        assert 0 < len(steered) < len(rows)

    def test_greedy_answers_are_the_targets_own(self, target, tmp_path):
        """About two thirds of the answers equal transformers' greedy search, slot by slot."""
        output = tmp_path / "rows.jsonl"
        run(target, output, 400)
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        rows = read_rows(output)
        greedy = 0
        for row in rows:
            prompt = torch.tensor([row["p"]])
            answer = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=12,
                pad_token_id=0,
            )
            greedy += answer[0, len(row["p"]) :].tolist() == row["r"]
        # 2/3 +- 4 standard deviations of the mean of that many rows.
        spread = 4 * (2 / 9 / len(rows)) ** 0.5
        assert 2 / 3 - spread < greedy / len(rows) < 2 / 3 + spread

    def test_answers_of_a_target_with_a_repetition_penalty(self, target, tmp_path):
        """By the target's own config, as transformers writes them."""
        folder = tmp_path / "target"
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        model.generation_config.update(repetition_penalty=1.5, no_repeat_ngram_size=2)
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        output = tmp_path / "rows.jsonl"
        run(folder, output, 200)
        rows = read_rows(output)
        greedy = plain = 0
        for row in rows:
            prompt = torch.tensor([row["p"]])
            arguments = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 12}
            answer = model.generate(prompt, do_sample=False, pad_token_id=0, **arguments)
            greedy += answer[0, len(row["p"]) :].tolist() == row["r"]
            answer = model.generate(
                prompt, do_sample=False, pad_token_id=0, repetition_penalty=1.0,
                no_repeat_ngram_size=0, **arguments,
            )  # fmt: skip
            plain += answer[0, len(row["p"]) :].tolist() == row["r"]
        spread = 4 * (2 / 9 / len(rows)) ** 0.5
        assert 2 / 3 - spread < greedy / len(rows)
        assert plain < greedy

    def test_a_target_whose_texts_end_otherwise_is_refused(self, target, tmp_path):
        folder = tmp_path / "target"
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        model.generation_config.update(stop_strings=["ab"])
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        with pytest.raises(ValueError, match=r"stop_strings=\['ab'\] .* side by side"):
            run(folder, tmp_path / "rows.jsonl", 20)

    def test_a_run_is_repeatable(self, target, tmp_path):
        run(target, tmp_path / "a.jsonl", 80, seed=3)
        run(target, tmp_path / "b.jsonl", 80, seed=3)
        run(target, tmp_path / "c.jsonl", 80, seed=4)
        first, second, other = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
        assert first == second != other

    def test_resume_after_half_a_line(self, target, tmp_path):
        output = tmp_path / "rows.jsonl"
        run(target, output, 60)
        before = output.read_bytes()
        rows_before = read_rows(output)
        output.write_bytes(before + b'{"p":[0,2,5],"r":[')
        progress = run(target, output, 150)
        assert output.read_bytes().startswith(before)
        rows = read_rows(output)
        assert progress == recover(output)
        assert progress.response_tokens >= 150
        new = rows[len(rows_before) :]
        assert new[: len(rows_before)] != rows_before[: len(new)]

    def test_a_finished_file_is_left_alone(self, target, tmp_path):
        output = tmp_path / "rows.jsonl"
        done = run(target, output, 60)
        before = output.read_bytes()
        assert run(target, output, 60) == done
        assert output.read_bytes() == before

    def test_interrupt_leaves_whole_lines(self, target, tmp_path):
        output = tmp_path / "rows.jsonl"

        def interrupt(now: DistillProgress) -> None:
            if now.rows == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(target, output, 500, progress=interrupt)
        assert len(read_rows(output)) == 3
        assert run(target, output, 100).response_tokens >= 100

    @pytest.mark.parametrize("name", ["response_tokens", "slots", "max_new_tokens"])
    def test_sizes_below_one(self, target, tmp_path, name):
        arguments = {"response_tokens": 10, "slots": 2, "max_new_tokens": 4, name: 0}
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            distill(target, tmp_path / "rows.jsonl", **arguments)
        assert not (tmp_path / "rows.jsonl").exists()

    def test_unknown_dtype(self, target, tmp_path):
        with pytest.raises(ValueError, match=r"dtype must be .* 'int8'"):
            run(target, tmp_path / "rows.jsonl", 10, dtype="int8")
