"""Rows: reading, the split by prompt, the draft's vocabulary."""

import hashlib
import json
import struct
from pathlib import Path

import pytest

from eaglerl.training.data import Row, choose_draft_vocabulary, is_held_out, read_rows, split_rows


def write_lines(path: Path, *rows: tuple[list[int], list[int]], tail: str = "") -> Path:
    lines = [json.dumps({"p": prompt, "r": response}) + "\n" for prompt, response in rows]
    path.write_text("".join(lines) + tail, encoding="utf-8")
    return path


def test_rows_of_several_files_come_in_order_and_once(tmp_path):
    first = write_lines(tmp_path / "a.jsonl", ([1, 2], [3]), ([4], [5, 6]))
    second = write_lines(tmp_path / "b.jsonl", ([1, 2], [7]), ([4], [5, 6]))
    expected = [Row((1, 2), (3,)), Row((4,), (5, 6)), Row((1, 2), (7,))]
    assert read_rows([first, second]) == expected


def test_where_the_prompt_ends_is_part_of_a_row():
    assert Row((1, 2), (3,)).digest != Row((1,), (2, 3)).digest


@pytest.mark.parametrize("tail", ['{"p": [1, 2], "r": [3, 4', '{"p": [1], "r"', '{"p": [7]}'])
def test_a_last_line_cut_short_is_reported_and_skipped(tmp_path, tail):
    path = write_lines(tmp_path / "a.jsonl", ([1, 2], [3]), tail=tail)
    with pytest.warns(UserWarning, match=r"a\.jsonl: skipped the last line"):
        assert read_rows([path]) == [Row((1, 2), (3,))]


@pytest.mark.parametrize("bad", ["{", '{"p": [1]}', '{"p": [], "r": [1]}', '{"p": [1], "r": [-2]}'])
def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path, bad):
    path = tmp_path / "a.jsonl"
    path.write_text('{"p": [1], "r": [2]}\n' + bad + '\n{"p": [1], "r": [3]}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2 of the rows '.*a\.jsonl'"):
        read_rows([path])


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="existing JSONL files"):
        read_rows([tmp_path / "none.jsonl"])


def test_the_split_is_the_documented_hash():
    for prompt in ([1], [1, 9690, 198], list(range(300))):
        packed = struct.pack(f"<{len(prompt)}q", *prompt)
        expected = int(hashlib.sha256(packed).hexdigest(), 16) % 10 == 0
        assert is_held_out(prompt) == expected
        assert is_held_out(tuple(prompt)) == expected


def test_the_split_takes_a_tenth_and_keeps_prompts_together():
    rows = [Row((index // 2, 5), (index,)) for index in range(4000)]
    train, held_out = split_rows(rows)
    # 2,000 prompts: the standard deviation of the share is 0.7 %.
    assert 0.07 < len(held_out) / len(rows) < 0.13
    assert {row.prompt for row in train}.isdisjoint(row.prompt for row in held_out)
    assert sorted(train + held_out, key=lambda row: row.response) == rows


def test_the_split_of_a_row_does_not_depend_on_the_others():
    rows = [Row((index,), (index,)) for index in range(200)]
    held_out = set(split_rows(rows)[1])
    assert set(split_rows(rows[::-2])[1]) == held_out & set(rows[::-2])


def test_the_draft_vocabulary_is_the_most_frequent_response_tokens():
    rows = [Row((9, 9, 9, 9), (3, 3, 3, 5)), Row((9,), (5, 7))]
    assert choose_draft_vocabulary(rows, 2, 12).tolist() == [3, 5]
    assert choose_draft_vocabulary(rows, 2, 12, required_ids=[11]).tolist() == [3, 11]
    # Unseen ids fill the rest, the smallest first.
    assert choose_draft_vocabulary(rows, 5, 12).tolist() == [0, 1, 3, 5, 7]


@pytest.mark.parametrize("size", [0, 13])
def test_a_draft_vocabulary_out_of_range_is_an_error(size):
    with pytest.raises(ValueError, match="draft_vocab_size must be between"):
        choose_draft_vocabulary([Row((1,), (2,))], size, 12)


def test_ids_beyond_the_vocabulary_are_an_error():
    with pytest.raises(ValueError, match="written by another model"):
        choose_draft_vocabulary([Row((1,), (12,))], 4, 12)
