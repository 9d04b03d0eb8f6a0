"""What every command shares at the terminal: consoles, progress and error messages.

Generated text goes to stdout; everything else goes to stderr, so that output can be piped.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_P = ParamSpec("_P")
_R = TypeVar("_R")

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
# Seconds between two progress lines if stderr is no terminal, where a bar cannot be drawn.
PLAIN_LINE_INTERVAL = 5.0

_ERROR_NUMBER = re.compile(r"\[Errno -?\d+\] ")

DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

# The messages of these are written for users; other errors are reported with their type.
_SELF_EXPLAINING = (ValueError, TypeError, OSError, ImportError, RuntimeError)


def output() -> Console:
    """Return a console for results, on the current stdout."""
    return Console(highlight=False)


def notes() -> Console:
    """Return a console for progress, statistics and errors, on the current stderr."""
    return Console(stderr=True, highlight=False)


def say(sentence: str) -> None:
    """Print a sentence on stderr as it is, however long: it may be a path to copy."""
    notes().print(sentence, markup=False, soft_wrap=True)


def command(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Report a command's failure as one sentence on stderr and an exit code.

    The command must have a parameter `debug`; if it is true, the traceback is shown as well.
    """

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            with _short_warnings():
                return function(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            notes().print("\ninterrupted", style="yellow")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader has closed the pipe. Without this, Python would fail again on exit when it
            # flushes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_FAILED) from None
        except Exception as error:
            _report(error, debug=bool(kwargs.get("debug")))
            raise typer.Exit(EXIT_FAILED) from error

    return run


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """Yield a function that shows a stage and the fraction done, on stderr.

    On a terminal it draws a bar that disappears at the end. Elsewhere it prints a line when the
    stage changes, and otherwise every few seconds.
    """
    console = notes()
    if not console.is_terminal:
        yield _plain_progress(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0, visible=False)

        def show(stage: str, fraction: float) -> None:
            bar.update(task, description=stage, completed=fraction, visible=True)

        yield show


@contextmanager
def busy(message: str) -> Iterator[None]:
    """Show on stderr that something of unknown duration is in progress."""
    console = notes()
    if console.is_terminal:
        with console.status(message):
            yield
    else:
        console.print(message + " ...", markup=False, soft_wrap=True)
        yield


def _plain_progress(console: Console) -> Callable[[str, float], None]:
    last_stage = ""
    last_time = 0.0

    def show(stage: str, fraction: float) -> None:
        nonlocal last_stage, last_time
        now = time.monotonic()
        if stage != last_stage or now - last_time > PLAIN_LINE_INTERVAL:
            console.print(f"{fraction:4.0%} {stage}", markup=False, soft_wrap=True)
            last_stage, last_time = stage, now

    return show


def _report(error: Exception, *, debug: bool) -> None:
    console = notes()
    if debug:
        console.print_exception()
    sentence = " ".join(_words(error).split())
    if not isinstance(error, _SELF_EXPLAINING) or not sentence:
        sentence = f"{type(error).__name__}: {sentence}".removesuffix(": ")
        if not debug:
            sentence += " (--debug shows where)"
    console.print(Text.assemble(("error: ", "bold red"), sentence), soft_wrap=True)


def _words(error: Exception) -> str:
    """Return the error as a sentence: a system error without its number, its file first."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        names = " and ".join(
            repr(os.fsdecode(name))
            for name in (error.filename, error.filename2)
            if isinstance(name, str | bytes)
        )
        return f"{names or error.filename}: {error.strerror}"
    return _ERROR_NUMBER.sub("", str(error))


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show each warning as one line, without the source line that raised it."""

    def show(message: Warning | str, *_args: object, **_kwargs: object) -> None:
        sentence = " ".join(_ERROR_NUMBER.sub("", str(message)).split())
        notes().print(Text.assemble(("warning: ", "yellow"), sentence), soft_wrap=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
