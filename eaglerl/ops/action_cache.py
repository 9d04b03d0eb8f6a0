"""The action cache: keeps a policy's decision for several steps, on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops._check import check_memory
from eaglerl.ops.limits import SMALLEST_ACTION

CacheModeName = Literal["fixed", "adaptive", "scheduled"]

WORDS: dict[str, int] = dict(C.cache_words)
RECORD_WORDS: int = C.cache_record_words
RING_WORDS: int = C.cache_ring_words
SKETCH_SIZE: int = C.cache_sketch_size
_LARGEST_STEP = 2**31 - 1
# Of an entry of the ring: the action, then its parameters.
_LEAST_ENTRY = (0, *(SMALLEST_ACTION[name] for name in C.action_columns))


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts of a cache since its slots were last reset.

    Attributes:
        hits: steps that an earlier decision served.
        misses: steps with a new decision.
        fallbacks: decisions whose logits were not finite.
    """

    hits: int
    misses: int
    fallbacks: int

    @property
    def hit_rate(self) -> float:
        """Share of hits in all steps; 0 before the first."""
        steps = self.hits + self.misses
        return self.hits / steps if steps else 0.0


class CacheView(NamedTuple):
    """The attributes of an `ActionCache` that the ops need."""

    mode: int
    state: Tensor
    reference: Tensor | None
    ring: Tensor | None


class ActionCache:
    """A store of every sequence's action, so that the policy need not decide at every step.

    Each slot has a record on the device: a step counter, the interval, the kept action with its
    parameters, and counters. The deciding ops read and update it in their own launch, so the host
    never waits for the device to learn whether a step was a hit.

    Modes:
        fixed: A decision serves ``interval`` steps, the deciding one included; 1 keeps nothing.
        adaptive: A decision serves while the cosine similarity of the features to those of the
            decision is at least ``threshold``, for at most ``interval`` steps. Features that are
            zero or not finite are never similar.
        scheduled: The policy decides for ``horizon`` intervals at once.

    A decision that fell back because a logit was not finite is not kept.

    Attributes:
        mode: number of the mode in native code, see ``eaglerl._C.cache_modes``.
        state: (slots, 16) int32, the records; their words are named in ``WORDS``.
        reference: (slots, reference_size) float32 features of the last decisions; None unless
            adaptive.
        ring: (slots, horizon, 5) int32 decisions; None unless scheduled.
    """

    def __init__(
        self,
        slots: int = 1,
        interval: int = 10,
        mode: CacheModeName = "fixed",
        device: torch.device | str = "cpu",
        *,
        threshold: float = 0.9,
        reference_size: int = SKETCH_SIZE,
        horizon: int = 1,
    ) -> None:
        """Create a cache with empty slots.

        Args:
            slots: number of sequences that are decoded together.
            interval: steps that a decision serves (adaptive: at most; scheduled: each decision).
            mode: "fixed", "adaptive" or "scheduled".
            device: device of the records, which must be that of the features.
            threshold: adaptive: smallest cosine similarity that keeps a decision, in -1..1.
            reference_size: adaptive: width of the compared features. This is the width of g if the
                op computes g anyway, else the size of a sketch of low, mid and high (the default).
            horizon: scheduled: decisions that the policy makes at once.

        Raises:
            ValueError: a value is out of its range.
        """
        if mode not in get_args(CacheModeName):
            raise ValueError(f"mode must be one of {get_args(CacheModeName)}, got {mode!r}")
        for name, value in (
            ("slots", slots),
            ("interval", interval),
            ("reference_size", reference_size),
            ("horizon", horizon),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        if not -1 <= threshold <= 1:
            raise ValueError(f"threshold must be in -1..1, got {threshold!r}")
        if horizon > 1 and mode != "scheduled":
            raise ValueError(f'horizon={horizon} needs mode "scheduled", got {mode!r}')
        if interval * horizon > _LARGEST_STEP:
            raise ValueError(
                f"interval * horizon must be at most {_LARGEST_STEP}, got {interval * horizon}"
            )
        self.mode_name: CacheModeName = mode
        self.mode: int = C.cache_modes[mode]
        self.interval = interval
        self.threshold = float(threshold)
        self.horizon = horizon
        self.state = torch.zeros(slots, RECORD_WORDS, dtype=torch.int32, device=device)
        self.reference: Tensor | None = None
        self.ring: Tensor | None = None
        if mode == "adaptive":
            self.reference = torch.zeros(slots, reference_size, device=device)
        if mode == "scheduled":
            self.ring = torch.zeros(slots, horizon, RING_WORDS, dtype=torch.int32, device=device)
        self._empty = self._empty_record().to(device)
        self.reset()

    @property
    def slots(self) -> int:
        """Number of sequences."""
        return self.state.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the records."""
        return self.state.device

    @property
    def reference_size(self) -> int | None:
        """Width of the compared features; None unless adaptive."""
        return None if self.reference is None else self.reference.shape[1]

    def reset(self, slots: Sequence[int] | Tensor | None = None) -> None:
        """Forget the decisions and the counters of some slots, or of all.

        Args:
            slots: slot numbers. A tensor on a GPU is used unchecked.

        Raises:
            ValueError: a number is outside 0..slots - 1.
        """
        self._check_memory()
        self.state[self._rows(slots)] = self._empty

    def invalidate(self, slots: Sequence[int] | Tensor | None = None) -> None:
        """Make some slots, or all, decide again at their next step. Counters are kept.

        Args:
            slots: as for `reset`.

        Raises:
            ValueError: a number is outside 0..slots - 1.
        """
        self._check_memory()
        self.state[self._rows(slots), WORDS["valid"]] = 0

    def state_dict(self) -> dict[str, Tensor | dict[str, Any]]:
        """Return copies of all tensors, and the settings of the cache."""
        self._check_memory()
        tensors = {"state": self.state, "reference": self.reference, "ring": self.ring}
        copies = {name: tensor.clone() for name, tensor in tensors.items() if tensor is not None}
        return {**copies, "settings": self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            TypeError: it is not a mapping, or an entry is not a tensor of the right dtype.
            ValueError: it comes from a cache with other settings or of another size, or has a
                record that no step can leave. Nothing has changed.
        """
        self._check_memory()
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be what state_dict() gave, got {type(state).__name__}")
        if state.get("settings") != self._settings():
            raise ValueError(
                f"the state must be of a cache with {self._settings()}, got {state.get('settings')}"
            )
        given: dict[str, Any] = {name: state.get(name) for name in ("state", "reference", "ring")}
        for name, tensor in given.items():
            _check_like(name, tensor, getattr(self, name))
        self._check_records(**given)
        for name, tensor in given.items():
            if (own := getattr(self, name)) is not None:
                own.copy_(tensor)

    def _check_records(self, state: Tensor, reference: Tensor | None, ring: Tensor | None) -> None:
        """Check that these are values that steps of this cache can leave.

        Raises:
            ValueError: they are not.
        """
        records = state.cpu()
        fixed = ("interval", "horizon", "threshold")
        wanted = self._empty.cpu()
        words = {name: records[:, WORDS[name]].to(torch.int64) for name in WORDS}
        valid = words["valid"] == 1
        served = words["step"]
        entries = records[:, None, WORDS["action"] : WORDS["action"] + RING_WORDS]
        if ring is not None:
            entries = torch.cat((entries, ring.cpu()), 1)
        norm = records[:, WORDS["reference_norm"]].contiguous().view(torch.float32)
        sound = (words["valid"] == 0) | valid
        for name in fixed:
            sound &= records[:, WORDS[name]] == wanted[WORDS[name]]
        sound &= (served >= 0) & (served <= self.interval * self.horizon)
        sound &= ~valid | (served > 0)
        sound &= ~valid | (entries >= torch.tensor(_LEAST_ENTRY)).all(-1).all(-1)
        sound &= torch.isfinite(norm) & (norm >= 0)
        if reference is not None:
            sound &= torch.isfinite(reference.cpu()).all(-1)
        if not bool(sound.all()):
            slot = int((~sound).nonzero()[0])
            raise ValueError(
                f"state must hold records that steps of a cache with {self._settings()} can leave, "
                f"got in slot {slot} "
                f"{ {name: int(records[slot, word]) for name, word in WORDS.items()} }"
            )

    def stats(self, slots: Sequence[int] | None = None) -> CacheStats:
        """Return the counts over some slots, or all. No other method waits for the device.

        Args:
            slots: as for `reset`.

        Raises:
            ValueError: a number is outside 0..slots - 1.
        """
        self._check_memory()
        columns = [WORDS[name] for name in ("hits", "misses", "fallbacks")]
        # The counters are unsigned.
        counts = self.state[self._rows(slots)].cpu()[:, columns].to(torch.int64) & 0xFFFFFFFF
        return CacheStats(*counts.sum(0).tolist())

    def _rows(self, slots: Sequence[int] | Tensor | None) -> Tensor | slice:
        if slots is None:
            return slice(None)
        if isinstance(slots, Tensor) and slots.device.type != "cpu":
            return slots
        numbers = torch.as_tensor(slots, dtype=torch.int64)
        check_slots(numbers, self.slots)
        return numbers.to(self.device)

    def _check_memory(self) -> None:
        """Check that no storage was resized: torch would write past its end."""
        for name in ("state", "reference", "ring"):
            if (tensor := getattr(self, name)) is not None:
                check_memory(f"{name} of the cache", tensor)
        if self.state.ndim != 2 or self.state.shape[1] != RECORD_WORDS:
            raise ValueError(
                f"state of the cache must be (slots, {RECORD_WORDS}), got {tuple(self.state.shape)}"
            )

    def _settings(self) -> dict[str, Any]:
        return {
            "mode": self.mode_name,
            "interval": self.interval,
            "threshold": self.threshold,
            "horizon": self.horizon,
        }

    def _empty_record(self) -> Tensor:
        record = torch.zeros(RECORD_WORDS, dtype=torch.int32)
        record[WORDS["interval"]] = self.interval
        record[WORDS["horizon"]] = self.horizon
        threshold = torch.tensor([self.threshold], dtype=torch.float32)
        record[WORDS["threshold"]] = threshold.view(torch.int32)[0]
        return record


def check_slots(slots: Tensor, count: int) -> None:
    """Check slot numbers that are on the host.

    Raises:
        ValueError: a number is out of range, or occurs twice.
    """
    if slots.numel() == 0:
        return
    low, high = (int(bound) for bound in slots.aminmax())
    if low < 0 or high >= count:
        raise ValueError(f"slots must lie in 0..{count - 1}, got {low}..{high}")
    if len(slots.unique()) != slots.numel():
        raise ValueError(f"slots must be distinct, got {slots.tolist()}")


def _check_like(name: str, given: Tensor | None, own: Tensor | None) -> None:
    """Check that a tensor of a state has the dtype and shape of the cache's own.

    Raises:
        TypeError: it is not a tensor of that dtype.
        ValueError: it has another shape, or one of the two is missing.
    """
    if given is None or own is None:
        if given is not own:
            kinds = [None if tensor is None else "a tensor" for tensor in (own, given)]
            raise ValueError(f"{name} must be {kinds[0]}, got {kinds[1]}")
        return
    if not isinstance(given, Tensor) or given.dtype != own.dtype:
        kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"{name} must be a {own.dtype} tensor, got {kind}")
    check_memory(name, given)
    if given.shape != own.shape or given.device.type == "meta":
        raise ValueError(
            f"{name} must be {tuple(own.shape)}, got {tuple(given.shape)} on {given.device}"
        )
