"""The limit of threads that a pass keeps to where other processes need the cores, too.

Threads that work side by side wait for one another at every step, some 200 times in a pass. Where
one of them has to wait for its core, all do, and two threads may be many times slower than one. The
extension measures these waits (``csrc/common/thread_chooser.h``).
"""

import warnings

import torch

from eaglerl._ext import C

_warned = False


def begin_cycle() -> None:
    """Keep torch's own operators on this thread within the limit, until `end_cycle`."""
    C.begin_cycle(torch.get_num_threads())


def end_cycle() -> None:
    """Give torch its threads back, and warn once if the limit lasts."""
    threads = C.cycle_threads()
    limit = C.end_cycle()
    if 0 < limit < threads and not _warned:
        _warn(limit, threads)


def _warn(limit: int, threads: int) -> None:
    global _warned
    _warned = True
    warnings.warn(
        f"other work keeps the cores of this machine busy: decoding goes on with {limit} of "
        f"{threads} threads, since more would wait for one another, and tries more every few "
        "seconds",
        # The caller of the cycle: cache_owner's guard and contextlib are in between.
        stacklevel=5,
    )
