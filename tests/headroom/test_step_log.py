"""Logs of steps are read as they were written, and what is wrong with one is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eaglerl.headroom.logged_cost import cost_of_steps
from eaglerl.headroom.step_log import read_steps

from .logs import always, drawn_lines, write_log


def line(**changes: Any) -> dict[str, Any]:
    plain = {"request": "a", "position": 1, "context": 9, "logprobs": [-0.5, -1], "accepted": 1}
    return plain | changes


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    return path


def test_steps_are_ordered_by_request_and_position(tmp_path: Path) -> None:
    path = write(
        tmp_path / "steps.jsonl",
        line(position=1, accepted=1),
        line(request="b", position=4, logprobs=[], accepted=0, batch=2),
        line(position=3, accepted=2, logprobs=[-0.1, -0.2, -0.3], verified=2),
        line(position=5, accepted=1, logprobs=[-0.1, -0.2, -0.3], verified=2),
        line(position=7, accepted=0, logprobs=[-0.1]),
    )
    steps = read_steps([path])
    assert steps.requests == ("0:a", "0:b")
    assert steps.request.tolist() == [0, 0, 0, 0, 1]
    assert steps.position.tolist() == [1, 3, 5, 7, 4]
    # At position 3 the target's own token was the drafted one, so the next is unknown. At 5 it was
    # another one.
    assert steps.judged.tolist() == [2, 2, 3, 1, 0]
    assert steps.drafted.tolist() == [2, 3, 3, 1, 0]
    assert steps.batch.tolist() == [1, 1, 1, 1, 2]
    assert steps.rows.tolist() == [3, 2, 2, 2, 2]
    assert steps.levels == 3
    np.testing.assert_array_equal(steps.log_probs[0], [-0.5, -1.0, np.nan])


def test_what_the_plugin_for_vllm_adds_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "steps.jsonl", line(source="head", rows=24, batch=8, verified=2))
    assert read_steps([path]).rows.tolist() == [24]


def test_requests_of_two_files_are_different(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, line()) for name in ("one.jsonl", "two.jsonl")]
    assert read_steps(paths).requests == ("0:a", "1:a")


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "steps.jsonl", line())
    with path.open("a") as file:
        file.write('{"request": "a", "posi')
    with pytest.warns(UserWarning, match="line 2 .* not finished"):
        assert len(read_steps([path])) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accepted": 3}, "'accepted' of line 1 .* at most the number of drafted tokens, 2, got 3"),
        ({"logprobs": [0.5]}, r"'logprobs\[0\]' of line 1 .* must be at most 0.001, got 0.5"),
        ({"logprobs": [-1] * 65}, "logprobs"),
        ({"batch": 0}, "'batch' of line 1 .* must be at least 1"),
        ({"request": 3}, "'request' of line 1 .* must be a text"),
        ({"seconds": 1}, "unknown key 'seconds'"),
        ({"lookup": {"match": 1, "tokens": 2, "accepted": 3}}, "'lookup.accepted' .* at most"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "steps.jsonl", line(**changes))
    with pytest.raises(ValueError, match=message):
        read_steps([path])


def test_no_step_and_no_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have a step"):
        read_steps([write(tmp_path / "steps.jsonl")])
    with pytest.raises(ValueError, match="no file"):
        read_steps([])
    with pytest.raises(FileNotFoundError):
        read_steps([tmp_path / "nothing.jsonl"])


def test_counts_that_include_the_targets_own_token_are_found(tmp_path: Path) -> None:
    lines = drawn_lines(always(0.5), requests=3, steps=10)
    write_log(tmp_path / "right.jsonl", lines)
    read_steps([tmp_path / "right.jsonl"])
    shifted = [one for one in lines if one.accepted < len(one.logprobs)]
    wrong = [one.model_copy(update={"accepted": one.accepted + 1}) for one in shifted]
    write_log(tmp_path / "wrong.jsonl", wrong)
    with pytest.raises(ValueError, match=r"steps .* must continue one another: .* accepted"):
        read_steps([tmp_path / "wrong.jsonl"])


def test_a_few_missing_lines_and_verified_lookups_are_no_error(tmp_path: Path) -> None:
    lines = drawn_lines(always(0.5), requests=3, steps=30)
    write_log(tmp_path / "gaps.jsonl", [one for n, one in enumerate(lines) if n % 17])
    assert len(read_steps([tmp_path / "gaps.jsonl"])) == 84
    lookup = {"match": 4, "tokens": 6, "accepted": 6}
    path = write(tmp_path / "lookup.jsonl", line(lookup=lookup), line(position=8))
    assert read_steps([path]).lookup_accepted.tolist() == [6, 0]


def test_looked_up_tokens_beyond_the_emitted_ones_are_unknown(tmp_path: Path) -> None:
    lookups = [{"match": 4, "tokens": 6, "accepted": accepted} for accepted in (2, 1, 0)]
    lines = [line(position=1 + 2 * n, lookup=lookup) for n, lookup in enumerate(lookups)]
    steps = read_steps([write(tmp_path / "steps.jsonl", *lines)])
    assert steps.lookup_judged.tolist() == [2, 6, 6]
    told = [each | {"lookup": each["lookup"] | {"judged": 6}} for each in lines]
    assert read_steps([write(tmp_path / "told.jsonl", *told)]).lookup_judged.tolist() == [6] * 3


def test_the_logs_own_times_are_its_costs(tmp_path: Path) -> None:
    lines = [
        line(request=f"{rows}, {n}", verified=rows, verify_seconds=0.01 * rows, draft_seconds=0.004,
             accepted=0)
        for rows in (1, 2, 3)
        for n in range(5)
    ]  # fmt: skip
    cost = cost_of_steps(read_steps([write(tmp_path / "steps.jsonl", *lines)]))
    assert cost.verify(np.array([1, 2, 3]), 1, np.array(0)).tolist() == pytest.approx(
        [0.01, 0.02, 0.03]
    )
    assert cost.draft(np.array([2]), 1, np.array(0)).tolist() == pytest.approx([0.004])
    with pytest.raises(ValueError, match="costs must be given"):
        cost_of_steps(read_steps([write(tmp_path / "untimed.jsonl", line())]))
