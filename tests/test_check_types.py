"""The type check counts errors by part and lets no part have more than it is listed with."""

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def check_types() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_types", ROOT / "tools" / "check_types.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_errors_are_counted_by_part(check_types: ModuleType) -> None:
    report = (
        "eaglerl/eagle3/head/draft_head.py:12: error: Name is not defined  [name-defined]\n"
        "eaglerl/eagle3/head/draft_head.py:12: note: Maybe another\n"
        "eaglerl/actions.py:3: error: Incompatible types  [assignment]\n"
        "eaglerl/eagle3/session.py:1: error: Something\n"
    )
    assert check_types.count_errors(report) == {"eagle3": 2, "actions": 1}


@pytest.mark.parametrize(
    ("found", "allowed", "failing", "fewer"),
    [
        ({}, {}, [], []),
        ({"cli": 2}, {"cli": 2}, [], []),
        ({"ops": 1}, {"cli": 0}, ["ops"], []),
        ({"cli": 3}, {"cli": 2}, ["cli"], []),
        ({"cli": 1}, {"cli": 2}, [], ["cli"]),
        ({}, {"cli": 2}, [], ["cli"]),
    ],
)
def test_more_fail_and_fewer_are_told(
    check_types: ModuleType,
    found: dict[str, int],
    allowed: dict[str, int],
    failing: list[str],
    fewer: list[str],
) -> None:
    failed = check_types.too_many(Counter(found), allowed)
    assert list(failed) == failing
    assert all(f"eaglerl.{part}: {found[part]} type errors" in failed[part] for part in failing)
    lowered = check_types.to_be_lowered(Counter(found), allowed)
    assert [sentence.split(":")[0] for sentence in lowered] == [f"eaglerl.{p}" for p in fewer]
