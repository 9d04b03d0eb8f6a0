"""How the values of options are read that are written in a form of their own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from eaglerl.eagle3 import TreeParams

# A tree that is written with one of these can stand in a list with commas.
_SIGN = re.compile("[/-]")


def parse_feature_layers(text: str | None) -> tuple[int, int, int] | None:
    """Read `L,M,H` as three layers.

    Raises:
        typer.BadParameter: not three different whole numbers of at least 0.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(set(parts)) != 3 or not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(
            f"{text!r} is not of the form L,M,H, three different layers such as 1,2,3",
            param_hint="--feature-layers",
        )
    low, mid, high = map(int, parts)
    return low, mid, high


def parse_numbers(text: str, option: str, form: str = "N,...") -> tuple[int, ...]:
    """Read whole numbers of at least 1, separated by commas.

    Args:
        text: what was given.
        option: its name, for the error.
        form: how the option's help writes them, for the error.

    Raises:
        typer.BadParameter: anything else.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(
            f"{text!r} is not of the form {form}, whole numbers of at least 1 such as 1,2,4,8",
            param_hint=option,
        )
    return numbers


def parse_tree(text: str | None, *, plain: bool = False) -> TreeParams | None:
    """Read `T/D/K` as tree parameters.

    Args:
        text: what was given, if anything.
        plain: whether `--plain` was given.

    Returns:
        The tree; None for the decoder's default.

    Raises:
        typer.BadParameter: both were given, not three whole numbers, or numbers of no valid tree.
    """
    if plain and text is not None:
        raise typer.BadParameter(
            "give either --tree or --plain, which drafts nothing", param_hint="--tree"
        )
    from eaglerl.eagle3 import NO_DRAFT, TreeParams

    if plain:
        return NO_DRAFT
    if text is None:
        return None
    try:
        return TreeParams.from_text(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--tree") from error


def parse_trees(text: str, option: str) -> tuple[TreeParams, ...]:
    """Read several trees, `T/D/K,...`; separated by spaces or semicolons they may be `T,D,K`.

    Args:
        text: what was given.
        option: its name, for the error.

    Raises:
        typer.BadParameter: a tree is not valid, or is given twice.
    """
    from eaglerl.eagle3 import TreeParams

    parts = re.split(r"[;\s]+", text.strip())
    texts = [one for part in parts for one in (part.split(",") if _SIGN.search(part) else [part])]
    try:
        trees = tuple(TreeParams.from_text(one) for one in texts)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
    if len(set(trees)) < len(trees):
        raise typer.BadParameter(f"the trees must be distinct, got {text!r}", param_hint=option)
    return trees
