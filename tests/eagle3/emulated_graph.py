"""CUDA graphs of the emulated device: the same operators, on the same tensors, with no host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

from .emulated_device import EmulatedDevice, leaves

Result = TypeVar("Result")


class _Step(NamedTuple):
    """An operator: its arguments, and those of its results that are no views of them.

    The results come with their places among all results.
    """

    function: Any
    args: Any
    kwargs: Any
    made: list[tuple[int, torch.Tensor]]


class EmulatedGraph:
    """A recorded call. As with CUDA, capturing it has no effect, and addresses do not change.

    What a graph cannot do raises while it is captured: waiting for the device, and reading the
    host's memory.
    """

    skips = False

    def __init__(self, mode: EmulatedDevice) -> None:
        self._mode = mode
        self._steps: list[_Step] = []
        # Of the steps behind the first ones, which compute it; None for no condition.
        self._condition: tuple[int, torch.Tensor] | None = None
        # By address: memory that was there before, and what it held.
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._made: set[int] = set()

    def capture(
        self, call: Callable[[], Result], condition: Callable[[], torch.Tensor] | None = None
    ) -> Result:
        assert self._mode.recorder is None, "a capture within a capture"
        waits = self._mode.waits.total()
        self._mode.recorder = self._record
        try:
            if condition is not None and self.skips:
                held = condition()
                assert held.dtype == torch.bool
                assert held.dim() == 0
                self._condition = len(self._steps), held.data_on_host
            result = call()
        finally:
            self._mode.recorder = None
        assert self._mode.waits.total() == waits, self._mode.waits
        for memory, content in self._before.values():
            memory.copy_(content)
        self._before.clear()
        return result

    def replay(self) -> None:
        # The steps are of the host's tensors: the mode would have nothing to say about them.
        with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
            for place, step in enumerate(self._steps):
                if self._condition is not None:
                    begin, held = self._condition
                    if place == begin and not held:
                        self._mode.calls["skipped"] += 1
                        return
                found = leaves(step.function(*step.args, **step.kwargs))
                for at, kept in step.made:
                    assert kept.shape == found[at].shape, f"{step.function}: sizes depend on values"
                    kept.copy_(found[at])

    def _record(self, function: Any, args: Any, kwargs: Any) -> Any:
        written = [*_written(function, args, kwargs)]
        for tensor in written:
            address = _address(tensor)
            if address not in self._made and address not in self._before:
                memory = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                self._before[address] = memory, memory.clone()
        result = function(*args, **kwargs)
        made = _made_by(result, (args, kwargs))
        self._made |= {_address(tensor) for _, tensor in made}
        # A view stays what it is: most operators are views.
        if made or written:
            self._steps.append(_Step(function, args, kwargs, made))
        return result


class SkippingGraph(EmulatedGraph):
    """A graph with a conditional node."""

    skips = True


def _made_by(result: Any, given: Any) -> list[tuple[int, torch.Tensor]]:
    known = {_address(tensor) for tensor in _tensors(given)}
    return [
        (place, leaf)
        for place, leaf in enumerate(leaves(result))
        if isinstance(leaf, torch.Tensor) and _address(leaf) not in known
    ]


def _written(function: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    for place, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from _tensors(given)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor)]


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
