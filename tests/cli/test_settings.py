"""Settings dataclasses as commands: options, defaults, order, checks and help."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner, Result

from eaglerl.cli.shared.parse_options import parse_numbers
from eaglerl.cli.shared.settings import settings_command

TERMINAL = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: Annotated[str, typer.Argument()]
    many: Annotated[list[int] | None, typer.Option("--many")] = None
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 3
    loud: Annotated[bool, typer.Option("--loud")] = False
    debug: Annotated[bool, typer.Option("--debug")] = False

    def __post_init__(self) -> None:
        if self.loud and self.count > 5:
            raise typer.BadParameter("at most 5 with --loud", param_hint="--count")


@settings_command
def greet(settings: Settings) -> None:
    """Greet."""
    if settings.name == "nobody":
        raise ValueError("name must not be nobody")
    typer.echo(f"{settings.name} {settings.many} {settings.count} {settings.loud}")


def run(*arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(greet)
    return CliRunner().invoke(app, list(arguments), env=TERMINAL)


def test_fields_are_the_options() -> None:
    assert run("Ada").stdout == "Ada None 3 False\n"
    assert run("--many", "2", "Ada", "--many", "1", "--loud").stdout == "Ada [2, 1] 3 True\n"


def test_order_and_defaults_are_those_of_the_dataclass() -> None:
    parameters = inspect.signature(greet).parameters
    assert list(parameters) == ["name", "many", "count", "loud", "debug"]
    assert parameters["name"].default is inspect.Parameter.empty
    assert parameters["count"].default == 3
    shown = run("--help").stdout
    assert "Greet." in shown
    assert "How many. [default: 3]" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing argument"),
        (["Ada", "--count", "0"], 2, "--count"),
        (["Ada", "--count", "6", "--loud"], 2, "at most 5 with --loud"),
        (["nobody"], 1, "error: name must not be nobody"),
    ],
)
def test_wrong_usage_and_failures(arguments: list[str], code: int, message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.stderr


def test_parse_numbers() -> None:
    assert parse_numbers("64", "--net-arch") == (64,)
    assert parse_numbers("8,1, 2", "--top-k", "K,...") == (8, 1, 2)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0", "2,-1", "1.5"])
def test_parse_numbers_refuses(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"is not of the form K,\.\.\., whole numbers"):
        parse_numbers(text, "--top-k", "K,...")
