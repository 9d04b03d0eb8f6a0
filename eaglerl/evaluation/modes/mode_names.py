"""Modes by name: ``[LABEL=]KIND[:ARGUMENT]``, as in ``ours=policy:models/policy``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eaglerl.eagle3.policy import NO_DRAFT, TreeParams
from eaglerl.evaluation.modes.baseline_modes import BASELINES
from eaglerl.evaluation.modes.policy_modes import find_policy
from eaglerl.evaluation.results.records import PLAIN
from eaglerl.prepare import MODELS

#: The name that stands for every baseline.
ALL_BASELINES = "baseline:all"
#: Kinds whose argument is a trained policy.
POLICY_KINDS = ("policy", "uncached", "shuffled")

# A label is also the name of a folder of answers.
_LABEL = re.compile(r"[^=/\s][^=\s]*")


@dataclass(frozen=True)
class ModeSpec:
    """A mode as it was requested.

    Attributes:
        label: its name in tables and files; `short_label` by default.
        kind: a name in `KINDS`.
        argument: what follows the kind; empty if there is nothing.
        needs: "cost" and "traces", if these must be given for it.
        concurrency: questions that it decodes at once.
    """

    label: str
    kind: str
    argument: str = ""
    needs: tuple[str, ...] = ()
    concurrency: int = 1

    @property
    def spec(self) -> str:
        """The kind and the argument, without the label."""
        return f"{self.kind}:{self.argument}" if self.argument else self.kind

    @property
    def description(self) -> str:
        """One line that says what it is."""
        if self.kind == "baseline":
            return BASELINES[self.argument].help
        return KINDS[self.kind].help + (f" ({self.argument})" if self.argument else "")


@dataclass(frozen=True)
class Kind:
    """A kind of mode.

    Attributes:
        argument: what its argument is; empty if it takes none.
        help: one line that says what it is.
        check: checks the argument, raising a ValueError, and returns what else the mode needs.
    """

    argument: str
    help: str
    check: Callable[[str], tuple[str, ...]]


def parse_mode(text: str) -> ModeSpec:
    """Parse one mode without loading anything.

    Raises:
        ValueError: the kind is unknown, the argument is wrong, or the label is malformed.
    """
    label, sign, rest = text.partition("=")
    # A path may contain '=': what precedes it is a label only if it has no colon.
    if not sign or ":" in label:
        label, rest = "", text
    kind, _, argument = rest.partition(":")
    if kind not in KINDS:
        raise ValueError(f"the kind of a mode must be one of {list(KINDS)}, got {text!r}")
    if bool(argument) != bool(KINDS[kind].argument):
        wanted = KINDS[kind].argument or "nothing"
        raise ValueError(f"{wanted} must follow {kind!r} in a mode, got {text!r}")
    if sign and label and not _LABEL.fullmatch(label):
        raise ValueError(
            f"the label of a mode must have no space, '=' or leading '/', got {text!r}"
        )
    needs = KINDS[kind].check(argument)
    if kind == "tree":
        # Trees may be spelt differently; one spelling makes them the same mode.
        argument = str(TreeParams.from_text(argument))
    return ModeSpec(label or short_label(kind, argument), kind, argument, needs)


def short_label(kind: str, argument: str) -> str:
    """Return the default label of a mode, short enough for a table.

    A trained policy is called by the name of its folder, without the prefix ``policy-`` and the
    suffix of a model: ``policy:models/policy-ppo-smollm2-135m-instruct`` is ``ppo``. If the folder
    is just ``policy``, the name of the run's folder around it is used. Any other mode is called
    what was given.
    """
    if kind not in POLICY_KINDS:
        return f"{kind}:{argument}" if argument else kind
    path = Path(argument).absolute()
    name = path.name
    if name == "policy":
        name = path.parent.name
    for model in MODELS:
        name = name.removesuffix(f"-{model}")
    name = re.sub(r"[=\s]+", "-", name.removeprefix("policy-")) or "policy"
    return name if kind == "policy" else f"{kind}:{name}"


def parse_modes(texts: Iterable[str]) -> tuple[ModeSpec, ...]:
    """Parse several modes, adding plain decoding, which all are compared with, if it is missing.

    Raises:
        ValueError: see `parse_mode`; or two modes have the same label.
    """
    wanted: list[str] = []
    for text in texts:
        every = [f"baseline:{name}" for name in BASELINES]
        wanted.extend(every if text == ALL_BASELINES else [text])
    modes = [parse_mode(text) for text in wanted]
    if not any(mode.label == PLAIN for mode in modes):
        modes.insert(0, ModeSpec(PLAIN, PLAIN))
    by_label: dict[str, ModeSpec] = {}
    for mode in modes:
        if (mode.label == PLAIN) != (mode.spec == PLAIN):
            raise ValueError(f"the label {PLAIN!r} belongs to plain decoding, got {mode.spec!r}")
        if by_label.setdefault(mode.label, mode) != mode:
            raise ValueError(
                f"labels of modes must be distinct, got {mode.label!r} twice; name one of them: "
                f"LABEL={mode.spec}"
            )
    return tuple(by_label.values())


def at_concurrencies(modes: Sequence[ModeSpec], numbers: Iterable[int]) -> tuple[ModeSpec, ...]:
    """Return the modes one question after another, and once more for every larger number at once.

    transformers' ``generate`` decodes one after another only.

    Args:
        modes: modes of one question at a time.
        numbers: how many questions to decode at once; 1 is always included.

    Raises:
        ValueError: a label of several at once, such as ``plain@8``, is also another mode's.
    """
    found = {mode.label: mode for mode in modes}
    for number in sorted(set(numbers) - {1}):
        for mode in modes:
            if mode.kind == "generate":
                continue
            several = replace(mode, label=f"{mode.label}@{number}", concurrency=number)
            if several.label in found:
                raise ValueError(
                    f"the label {several.label!r} is that of {mode.label!r} {number} at once: call "
                    "the other mode something else"
                )
            found[several.label] = several
    return tuple(found.values())


def constant_tree(mode: ModeSpec) -> TreeParams | None:
    """Return the tree of a mode that always drafts the same tree, None for other modes."""
    if mode.kind == PLAIN:
        return NO_DRAFT
    return TreeParams.from_text(mode.argument) if mode.kind == "tree" else None


def _nothing(argument: str) -> tuple[str, ...]:
    return ()


def _tree(argument: str) -> tuple[str, ...]:
    TreeParams.from_text(argument)
    return ()


def _policy(argument: str) -> tuple[str, ...]:
    find_policy(Path(argument))
    return ()


def _baseline(argument: str) -> tuple[str, ...]:
    if argument not in BASELINES:
        raise ValueError(f"a baseline must be one of {[*BASELINES, 'all']}, got {argument!r}")
    return BASELINES[argument].needs


KINDS: Mapping[str, Kind] = {
    "generate": Kind("", "transformers' generate with its KV cache", _nothing),
    "plain": Kind("", "one token per cycle, without a draft", _nothing),
    "auto": Kind("", "the policy that learns costs and acceptance while decoding", _nothing),
    "auto-trees": Kind("", "the same without prompt lookup", _nothing),
    "tree": Kind("T/D/K", "a constant tree", _tree),
    "tuned": Kind(
        "", "the constant tree that was fastest on the questions of the other half", _nothing
    ),
    "hindsight": Kind(
        "", "the constant tree that was fastest on the questions of the comparison itself", _nothing
    ),
    "policy": Kind("FOLDER", "a trained policy", _policy),
    "uncached": Kind("FOLDER", "a trained policy without its action cache", _policy),
    "shuffled": Kind(
        "FOLDER", "a trained policy that is shown the states of other cycles", _policy
    ),
    "baseline": Kind("NAME", "a baseline", _baseline),
}
