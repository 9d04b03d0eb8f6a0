"""Running modules without side effects."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run modules in evaluation mode and restore their modes and all random states afterwards.

    Args:
        modules: the modules; their submodules are included.
    """
    every = [part for module in modules for part in module.modules()]
    training = [part.training for part in every]
    devices = {p.device for module in every for p in module.parameters(recurse=False)}
    numbers, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([d for d in devices if d.type == "cuda"]), torch.no_grad():
            for part in every:
                part.training = False
            yield
    finally:
        random.setstate(numbers)
        np.random.set_state(arrays)
        for part, mode in zip(every, training, strict=True):
            part.training = mode
