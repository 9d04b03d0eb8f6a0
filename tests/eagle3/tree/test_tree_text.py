"""A tree as text: one spelling is written, three are read."""

import pytest

from eaglerl.cli.shared.parse_options import parse_trees
from eaglerl.eagle3 import TreeParams
from eaglerl.evaluation.modes.mode_names import parse_mode


@pytest.mark.parametrize("text", ["16/3/4", "16,3,4", "16-3-4", " 16/3/4\n"])
def test_three_spellings_are_read(text: str) -> None:
    assert TreeParams.from_text(text) == TreeParams(16, 3, 4)
    assert str(TreeParams.from_text(text)) == "16/3/4"


@pytest.mark.parametrize(
    "text", ["", "8", "8/2", "8/2/4/1", "8/2-4", "8,2/4", "8//4", "-8/2/4", "8/2/x", "9" * 5000]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="three whole numbers T/D/K such as 8/2/4, got"):
        TreeParams.from_text(text)


def test_an_invalid_tree_is_refused_with_its_reason() -> None:
    with pytest.raises(ValueError, match="pool of only"):
        TreeParams.from_text("50/0/2")


@pytest.mark.parametrize(
    "text", ["8/2/4,6/1/2", "8-2-4,6-1-2", "8,2,4;6,1,2", "8,2,4 6,1,2", "8/2/4; 6-1-2"]
)
def test_lists_of_trees(text: str) -> None:
    assert parse_trees(text, "--grid") == (TreeParams(8, 2, 4), TreeParams(6, 1, 2))


def test_a_mode_is_the_same_however_its_tree_is_spelt() -> None:
    assert parse_mode("tree:8,2,4") == parse_mode("tree:8-2-4") == parse_mode("tree:8/2/4")
    assert parse_mode("tree:8,2,4").label == "tree:8/2/4"
