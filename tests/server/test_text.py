"""Text that comes in pieces: it adds up to the whole, and stops where the whole would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eaglerl.server.text import IncrementalText, StopTexts

from .tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token_id


@given(st.lists(st.integers(0, END), max_size=40))
def test_pieces_add_up_to_the_text_of_all_tokens(ids: list[int]) -> None:
    text = IncrementalText(TOKENIZER)
    pieces = [text.push(token) for token in ids]
    whole = TOKENIZER.decode(ids, skip_special_tokens=True)
    # What was sent cannot be taken back, so it must be right at every moment.
    sent = ""
    for piece in pieces:
        sent += piece
        assert whole.startswith(sent)
    assert sent + text.finish() == whole


def test_half_a_character_is_held_back() -> None:
    text = IncrementalText(TOKENIZER)
    ids = TOKENIZER("aé🙂").input_ids
    assert [text.push(token) for token in ids] == ["a", "", "é", "", "", "", "🙂"]
    assert text.finish() == ""


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    st.data(),
)
def test_text_ends_before_the_first_stop_text(text: str, stops: list[str], data) -> None:
    matcher, sent, rest = StopTexts(stops), "", text
    while rest and not matcher.found:
        size = data.draw(st.integers(1, len(rest)))
        sent += matcher.push(rest[:size])
        rest = rest[size:]
    sent += matcher.finish()
    places = [text.find(stop) for stop in stops if stop in text]
    assert matcher.found == bool(places)
    if not places:
        assert sent == text
        return
    # A piece may hold several stop texts, or end with one that began earlier than another.
    first_end = min(text.find(stop) + len(stop) for stop in stops if stop in text)
    assert text.startswith(sent)
    assert min(places) <= len(sent) <= first_end
    assert not any(stop in sent for stop in stops if len(stop) == 1)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["one ", "STOP two"], "one "),
        (["one S", "TO", "P two"], "one "),
        (["one S", "TOO"], "one STOO"),
        (["SSTOP"], "S"),
        (["one ", "ST"], "one ST"),
    ],
)
def test_a_stop_text_may_be_cut_anywhere(pieces: list[str], expected: str) -> None:
    matcher = StopTexts(["STOP"])
    assert "".join(matcher.push(piece) for piece in pieces) + matcher.finish() == expected
