"""Labels of modes, and tables of a comparison that keep to a terminal's 80 columns."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.evaluation.modes.mode_names import parse_mode, parse_modes, short_label

from ..made_up import write_comparison


@pytest.mark.parametrize(
    ("kind", "argument", "label"),
    [
        ("policy", "models/policy-dqn-of-mine-smollm2-135m-instruct", "dqn-of-mine"),
        ("policy", "models/policy-ppo-smollm2-135m-instruct/", "ppo"),
        ("policy", "runs/first/policy", "first"),
        ("policy", "runs/of mine=best", "of-mine-best"),
        ("uncached", "models/policy-ppo-smollm2-135m-instruct", "uncached:ppo"),
        ("baseline", "lookup-rule", "baseline:lookup-rule"),
        ("plain", "", "plain"),
    ],
)
def test_short_labels(kind: str, argument: str, label: str) -> None:
    assert short_label(kind, argument) == label


def test_two_policies_of_one_name_need_a_label(policies: SimpleNamespace, tmp_path: Path) -> None:
    other = tmp_path / "ppo"
    other.symlink_to(policies.ppo)
    first, second = f"policy:{policies.ppo}", f"policy:{other}"
    with pytest.raises(ValueError, match=f"'ppo' twice; name one of them: LABEL={second}"):
        parse_modes([first, second])
    assert parse_mode(f"b={second}").label == "b"
    labels = [mode.label for mode in parse_modes([first, f"b={second}"])]
    assert labels == ["plain", "ppo", "b"]


def test_tables_keep_to_80_columns(tmp_path: Path) -> None:
    modes = {
        "plain": ("plain", lambda n: 2.0),
        "tuned": ("tuned", lambda n: 1.0),
        "a-dqn-of-mine": ("tree:6/2/4", lambda n: 0.8 + 0.01 * (n % 3)),
        "a-label-that-somebody-chose-to-be-long": ("tree:4/1/2", lambda n: 1.0),
        "broken": ("tree:8/2/2", lambda n: 0.5),
    }
    domains = ["mt_bench", "gsm8k", "humaneval", "qa", "sum"]
    write_comparison(tmp_path / "c", modes, domains=domains, broken="broken")
    against = [word for name in ("tuned", "plain", "broken") for word in ("--against", name)]
    result = CliRunner().invoke(
        app, ["compare", str(tmp_path / "c"), *against], env={"COLUMNS": "80", "NO_COLOR": "1"}
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    # Tables stand apart, under titles that are not wrapped at the width of the table.
    titles = [number for number, line in enumerate(lines) if "questions (" in line]
    titles += [number for number, line in enumerate(lines) if line.endswith(", by file")]
    titles += [lines.index(title) for title in ("Tokens and times", "What the modes did")]
    assert len(titles) > 4
    for number in titles:
        assert number == 0 or not lines[number - 1].strip()
        assert lines[number + 1].startswith("mode ")
    # No figure is cut or broken.
    assert "…" not in result.stdout
    assert any("a-dqn-of-mine" in line and line.count("[") == 2 for line in lines)
    for domain in domains:
        assert domain in result.stdout
    assert any(line.split()[:2] == ["broken", "failed"] for line in lines)
    assert "outputs identical to plain decoding" in result.stdout
