"""Ways to decode by name: ``[LABEL=]KIND[:ARGUMENT]``, as in ``ours=policy:models/policy``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eaglerl.eagle3.policy import NO_DRAFT, TreeParams
from eaglerl.evaluation.modes.baseline_modes import BASELINES
from eaglerl.evaluation.modes.policy_modes import COST_NAME, find_policy
from eaglerl.evaluation.results.records import PLAIN
from eaglerl.prepare import MODELS

#: Given by name to stand for every baseline.
ALL_BASELINES = "baseline:all"
#: Kinds whose argument is a trained policy.
POLICY_KINDS = ("policy", "unguarded", "trees-only", "uncached", "shuffled")

# A label names a file of answers, too.
_LABEL = re.compile(r"[^=/\s][^=\s]*")


@dataclass(frozen=True)
class ModeSpec:
    """One way to decode that was asked for.

    Attributes:
        label: what it is called; `short_label` by default.
        kind: a name in `KINDS`.
        argument: what follows the kind; empty for none.
        needs: "cost", "traces": what must be given for it besides.
    """

    label: str
    kind: str
    argument: str = ""
    needs: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        """Kind and argument, without the label."""
        return f"{self.kind}:{self.argument}" if self.argument else self.kind

    @property
    def description(self) -> str:
        """What it is, in words."""
        if self.kind == "baseline":
            return BASELINES[self.argument].help
        return KINDS[self.kind].help + (f" ({self.argument})" if self.argument else "")


@dataclass(frozen=True)
class Kind:
    """A kind of mode.

    Attributes:
        argument: what its argument is; empty where it has none.
        help: what it is, in words.
        check: raises a ValueError for a wrong argument, and gives what the mode needs besides.
    """

    argument: str
    help: str
    check: Callable[[str], tuple[str, ...]]


def parse_mode(text: str) -> ModeSpec:
    """Read one mode; nothing is loaded.

    Raises:
        ValueError: an unknown kind, a wrong argument, or a label that is none.
    """
    label, sign, rest = text.partition("=")
    # A path may hold the sign of a label: what stands before it is one only without a colon.
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
        # However it was spelt, it is the same mode.
        argument = str(TreeParams.from_text(argument))
    return ModeSpec(label or short_label(kind, argument), kind, argument, needs)


def short_label(kind: str, argument: str) -> str:
    """What a mode is called that was given no label: short enough for a table.

    A trained policy is called by its folder's name, without ``policy-`` before it and a model's
    name behind it: ``policy:models/policy-ppo-smollm2-135m-instruct`` is ``ppo``. A folder that
    says no more than ``policy`` lies in a run's, whose name is taken. Any other mode is called what
    was given.
    """
    if kind not in POLICY_KINDS:
        return f"{kind}:{argument}" if argument else kind
    path = Path(argument).absolute()
    name = path.stem if path.suffix == ".safetensors" else path.name
    if name == "policy":
        name = path.parent.name
    for model in MODELS:
        name = name.removesuffix(f"-{model}")
    name = re.sub(r"[=\s]+", "-", name.removeprefix("policy-")) or "policy"
    return name if kind == "policy" else f"{kind}:{name}"


def parse_modes(texts: Iterable[str]) -> tuple[ModeSpec, ...]:
    """Read several modes; plain decoding, which all are compared with, joins them where it lacks.

    Raises:
        ValueError: see `parse_mode`; or two modes with the same label.
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


def constant_tree(mode: ModeSpec) -> TreeParams | None:
    """The tree of a mode that always drafts the same; None for the others."""
    if mode.kind == PLAIN:
        return NO_DRAFT
    return TreeParams.from_text(mode.argument) if mode.kind == "tree" else None


def _nothing(argument: str) -> tuple[str, ...]:
    return ()


def _tree(argument: str) -> tuple[str, ...]:
    TreeParams.from_text(argument)
    return ()


def _policy(argument: str) -> tuple[str, ...]:
    files = find_policy(Path(argument))
    # Without a table of this machine, that of the machine it was fitted on has to do.
    has_cost = not files.is_acceptance or files.path.with_name(COST_NAME).is_file()
    return () if has_cost else ("cost",)


def _acceptance(argument: str) -> tuple[str, ...]:
    if not find_policy(Path(argument)).is_acceptance:
        raise ValueError(f"{argument!r} must be an acceptance policy: it has no guard or lookups")
    return _policy(argument)


def _cached(argument: str) -> tuple[str, ...]:
    if find_policy(Path(argument)).is_acceptance:
        raise ValueError(f"{argument!r} must be a PPO or DQN policy: others have no cache")
    return ()


def _baseline(argument: str) -> tuple[str, ...]:
    if argument not in BASELINES:
        raise ValueError(f"a baseline must be one of {[*BASELINES, 'all']}, got {argument!r}")
    return BASELINES[argument].needs


KINDS: Mapping[str, Kind] = {
    "generate": Kind("", "transformers' generate with its KV cache", _nothing),
    "plain": Kind("", "one token per cycle, without a draft", _nothing),
    "tree": Kind("T/D/K", "a constant tree", _tree),
    "tuned": Kind("", "the constant tree that was fastest on the other half's questions", _nothing),
    "hindsight": Kind("", "the constant tree that was fastest on these very questions", _nothing),
    "policy": Kind("FOLDER", "a trained policy", _policy),
    "unguarded": Kind("FOLDER", "an acceptance policy without its guard", _acceptance),
    "trees-only": Kind("FOLDER", "an acceptance policy without guard and lookups", _acceptance),
    "uncached": Kind("FOLDER", "a PPO or DQN policy that decides anew at every cycle", _cached),
    "shuffled": Kind("FOLDER", "a trained policy that is shown the states of others", _policy),
    "baseline": Kind("NAME", "a baseline", _baseline),
}
