"""The action spaces: those of Re-SpS, JSON, and errors that name what is wrong."""

import json
from pathlib import Path

import pytest
import torch

from eaglerl.actions import ActionSpace
from eaglerl.eagle3.policy import NO_DRAFT, TreeParams


def test_the_rule_of_resps_excludes_three_of_the_180_actions() -> None:
    resps, grid = ActionSpace.resps(), ActionSpace.resps_grid()
    assert (len(resps), len(grid)) == (177, 180)
    missing = set(grid) - set(resps)
    assert {(tree.total_tokens, tree.depth, tree.top_k) for tree in missing} == {
        (80, 3, 8), (96, 3, 8), (128, 3, 8),
    }  # fmt: skip


def test_actions_are_in_the_order_of_resps() -> None:
    totals, depths, widths = (32, 48, 64, 80, 96, 128), range(3, 9), (8, 12, 16, 20, 32)
    expected = [(total, depth, width) for total in totals for depth in depths for width in widths]
    rows = ActionSpace.resps_grid().tensor
    assert rows.dtype == torch.int32
    assert rows.tolist() == [list(triple) for triple in expected]


def test_a_grid_holds_every_tree_that_exists_and_no_other() -> None:
    space = ActionSpace.grid(range(1, 12), range(4), (1, 2, 3))
    expected = []
    for total in range(1, 12):
        for depth in range(4):
            for width in (1, 2, 3):
                # The pool by hand: K candidates of the first pass, K * K of every round.
                pool = width + sum(width * width for _ in range(depth))
                if total - 1 <= pool:
                    expected.append((total, depth, width))
    assert [tuple(row) for row in space.tensor.tolist()] == expected


def test_no_draft_is_added_once_and_first() -> None:
    space = ActionSpace([TreeParams(4, 1, 2)]).with_no_draft()
    assert list(space) == [NO_DRAFT, TreeParams(4, 1, 2)]
    assert space.with_no_draft() == space
    assert NO_DRAFT in ActionSpace.cpu()
    assert NO_DRAFT in ActionSpace.cpu_grid()


def test_index_is_the_inverse_of_item() -> None:
    space = ActionSpace.resps()
    assert [space.index(tree) for tree in space] == list(range(177))
    with pytest.raises(ValueError, match="none of the 177 actions"):
        space.index(NO_DRAFT)
    with pytest.raises(ValueError, match="none of the 177 actions"):
        space.index(space[3], 4)


def test_json_round_trip(tmp_path: Path) -> None:
    space = ActionSpace.cpu()
    space.to_json(tmp_path / "actions.json")
    assert ActionSpace.from_json(tmp_path / "actions.json") == space
    assert [path.name for path in tmp_path.iterdir()] == ["actions.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "the action space .* cannot be read: it is not valid JSON"),
        ("[]", '"format" must be "eaglerl-actions"'),
        ({"version": 9}, "version of the action space .* must be 1, got 9"),
        ({"actions": 3}, "'actions' of the action space .* must be a list, got 3"),
        ({"actions": [[4, 2]]}, r"the action space .* lacks 'actions\[0\]\[2\]'"),
        (
            {"actions": [[1, 0, 1], [99, 0, 2]]},
            r"'actions\[1\]' of the action space .*: total_tokens=99 asks for 98",
        ),
        ({"actions": [["4", 1, 2]]}, r"'actions\[0\]\[0\]' of .* must be an integer, got '4'"),
        ({"actions": []}, "must have at least 1 item"),
        ({"actions": [[2, 1, 1], [2, 1, 1]]}, "the action space .*: actions must be distinct"),
        ({"actions": [[2, 1, 1 << 20]]}, r"'actions\[0\]\[2\]' .* must be at most 256"),
        ({"actions": [[2, 100, 200]]}, r"'actions\[0\]' .* must have at most 1,048,576 candidates"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "actions.json"
    if isinstance(content, dict):
        content = json.dumps(ActionSpace.cpu().to_dict() | content)
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        ActionSpace.from_json(path)


def test_wrong_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct"):
        ActionSpace([NO_DRAFT, NO_DRAFT])
    with pytest.raises(TypeError, match="TreeParams"):
        ActionSpace([(1, 0, 1)])
    with pytest.raises(ValueError, match="at least one tree"):
        ActionSpace.grid((99,), (0,), (1,))


def test_the_names_of_before_warn_and_work() -> None:
    with pytest.warns(DeprecationWarning, match=r"use ActionSpace\.resps$"):
        assert list(ActionSpace.published()) == list(ActionSpace.resps())
    with pytest.warns(DeprecationWarning, match=r"use ActionSpace\.resps_grid$"):
        assert list(ActionSpace.published_bins()) == list(ActionSpace.resps_grid())
    with pytest.warns(DeprecationWarning, match="use resps_rule$"):
        old = ActionSpace.grid((80,), (3, 4), (8,), published_rule=True)
    assert list(old) == [TreeParams(80, 4, 8)]
    with pytest.warns(DeprecationWarning, match=r"use ActionSpace\.tensor$"):
        assert old.bins.tolist() == [[80, 4, 8]]
