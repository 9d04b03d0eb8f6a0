"""Check that a comparison that is continued is the one in its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from eaglerl.evaluation.results.records import Manifest, Mode

# Most differences that a message names.
_MOST_NAMED = 6


def check_agreement(before: Manifest, now: Manifest, folder: str | Path) -> None:
    """Check that a folder's comparison and the requested one differ only in which modes they have.

    Args:
        before: the manifest in the folder.
        now: the manifest of the requested comparison.
        folder: the folder, for the message.

    Raises:
        ValueError: they differ in something else, or a label stands for two different modes; the
            message says what differs, with both values.
    """
    found = list(_differences(before, now))
    if found:
        more = len(found) - _MOST_NAMED
        named = "; ".join(found[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(
            f"the folder {str(folder)!r} holds another comparison: {named}. Use the same settings, "
            "or name another folder"
        )


def add_modes(before: Manifest, modes: Mapping[str, Mode]) -> Manifest:
    """Return the manifest with the modes that it lacks."""
    added = {label: mode for label, mode in modes.items() if label not in before.modes}
    return replace(before, modes=dict(before.modes) | added)


def _differences(before: Manifest, now: Manifest) -> Iterator[str]:
    for name in ("target_id", "head_id", "machine"):
        yield from _differs(name, getattr(before, name), getattr(now, name))
    for name in ("configuration", "versions"):
        old, new = getattr(before, name), getattr(now, name)
        for key in sorted(old.keys() | new.keys()):
            yield from _differs(key, old.get(key), new.get(key))
    if [q["id"] for q in before.questions] != [q["id"] for q in now.questions]:
        yield f"questions are {len(before.questions)} there, {len(now.questions)} others now"
    elif list(before.questions) != list(now.questions):
        yield "questions have other prompts"
    for label in before.modes.keys() & now.modes.keys():
        old, new = before.modes[label], now.modes[label]
        yield from _differs(f"the mode {label!r}", old.spec, new.spec)
        if old.spec == new.spec and old.fingerprint != new.fingerprint:
            yield (
                f"the mode {label!r} is made from other files or options: {old.fingerprint} there, "
                f"{new.fingerprint} now"
            )


def _differs(name: str, old: Any, new: Any) -> Iterator[str]:
    if old != new:
        yield f"{name} is {old} there, {new} now"
