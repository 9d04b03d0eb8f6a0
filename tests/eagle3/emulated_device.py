"""A device without hardware: tensors that compute on the CPU and say when the host had to wait.

The tensors report the device "meta", so code under test takes the way that it takes on a GPU. What
would wait for a GPU (reading a value, copying to the host, output sizes that depend on values) is
counted; mixing devices raises, as it does there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
aten = torch.ops.aten
# Their results' sizes, or the result itself, depend on values.
_WAITING = {
    aten._local_scalar_dense,
    aten.item,
    aten.nonzero,
    aten.masked_select,
    aten.is_nonzero,
    aten.equal,
    aten._unique2,
    aten.unique_dim,
    aten.bincount,
    aten.repeat_interleave,
    aten.multinomial,
}
_INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# In inference mode, composite operators such as "to" come as they were called.
_CONVERSIONS = {aten._to_copy, aten.to}
_COPIES = {*_CONVERSIONS, aten.copy_, aten.copy}


def leaves(value: Any) -> list[Any]:
    """What an operator's arguments or results hold; torch's own trees take half of a test's time.

    They are nested in tuples, lists and dictionaries alone.
    """
    if isinstance(value, dict):
        value = tuple(value.values())
    if not isinstance(value, (tuple, list)):
        return [value]
    found: list[Any] = []
    for part in value:
        if isinstance(part, (tuple, list, dict)):
            found += leaves(part)
        else:
            found.append(part)
    return found


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """The same nesting with other leaves."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_map(part, function) for part in value])
    if kind is dict:
        return {name: _map(part, function) for name, part in value.items()}
    # A named tuple or torch.Size.
    assert not isinstance(value, (tuple, list)) or not any(
        isinstance(part, (torch.Tensor, torch.device, tuple, list)) for part in value
    ), kind
    return function(value)


class EmulatedTensor(torch.Tensor):
    """A tensor on the emulated device; `data_on_host` is what it really holds."""

    data_on_host: torch.Tensor

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> EmulatedTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            data.shape,
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=DEVICE,
        )
        tensor.data_on_host = data
        return tensor

    def __repr__(self) -> str:
        return f"EmulatedTensor({self.data_on_host!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on an emulated tensor outside of EmulatedDevice")


class EmulatedDevice(TorchDispatchMode):
    """While it is active, the device "meta" computes.

    Attributes:
        waits: How often each operator made the host wait.
        calls: How often each operator ran on the device.
        recorder: Runs the device's operators instead, see `EmulatedGraph`; None outside of one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.recorder: Callable[..., Any] | None = None

    def move(self, module: nn.Module) -> nn.Module:
        """Puts a module's parameters and buffers on the device, in place."""
        for part in module.modules():
            for name, parameter in list(part._parameters.items()):
                if parameter is not None:
                    moved = EmulatedTensor(parameter.detach())
                    part._parameters[name] = nn.Parameter(moved, requires_grad=False)
            for name, buffer in list(part._buffers.items()):
                if buffer is not None:
                    part._buffers[name] = EmulatedTensor(buffer)
        return module

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors: list[torch.Tensor] = []
        emulated: list[EmulatedTensor] = []
        asked: list[torch.device] = []

        def on_host(leaf: Any) -> Any:
            """An argument as the CPU takes it."""
            if isinstance(leaf, torch.Tensor):
                tensors.append(leaf)
                if isinstance(leaf, EmulatedTensor):
                    emulated.append(leaf)
                    return leaf.data_on_host
            elif isinstance(leaf, torch.device):
                asked.append(leaf)
                return torch.device("cpu")
            return leaf

        unwrapped = _map(args, on_host), _map(kwargs or {}, on_host)
        packet = func.overloadpacket
        on_device = asked[0] == DEVICE if asked else bool(emulated)
        if emulated:
            self.calls[str(packet)] += 1
            self._check_devices(packet, tensors)
            self._count(packet, args, on_device)
        if packet in (aten.copy_, aten.copy):
            on_device = isinstance(args[0], EmulatedTensor)
        held = {id(tensor.data_on_host): tensor for tensor in emulated}
        # Wrappers are ordinary tensors: torch does not let inference tensors be views of them.
        with torch.inference_mode(False), torch.no_grad():
            if self.recorder is not None and on_device:
                # Not even a copy may read the host's memory: it is not that of the replays.
                self._check_devices(None, tensors)
                result = self.recorder(func, *unwrapped)
            else:
                result = func(*unwrapped[0], **unwrapped[1])
            return self._wrap(result, held) if on_device else result

    @staticmethod
    def _wrap(result: Any, held: dict[int, EmulatedTensor]) -> Any:
        def wrap(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return held[id(leaf)] if id(leaf) in held else EmulatedTensor(leaf)

        return _map(result, wrap)

    def _count(self, packet: Any, args: tuple[Any, ...], on_device: bool) -> None:
        waits = packet in _WAITING
        if packet in _INDEXING:
            indices = [index for index in args[1] if index is not None]
            waits = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        if packet in _CONVERSIONS:
            waits = isinstance(args[0], EmulatedTensor) and not on_device
        if packet in (aten.copy_, aten.copy):
            waits = not isinstance(args[0], EmulatedTensor)
        if waits:
            self.waits[str(packet)] += 1

    @staticmethod
    def _check_devices(packet: Any, tensors: list[torch.Tensor]) -> None:
        """Refuse host tensors; copies may have them, unless `packet` is None."""
        if packet in _COPIES:
            return
        strangers = [t for t in tensors if not isinstance(t, EmulatedTensor) and t.dim() > 0]
        if strangers:
            raise RuntimeError(
                f"{packet}: tensors on two devices, {tuple(strangers[0].shape)} is on the host"
            )
