"""The graphs of a session: those of its caches, used for one text after another."""

from __future__ import annotations

from collections.abc import Callable

from eaglerl.eagle3.cache.caches import Caches
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.captured.captured_cycle import CapturedCycle
from eaglerl.eagle3.captured.graphed_calls import Graph
from eaglerl.eagle3.head.draft_runner import DraftRunner
from eaglerl.eagle3.head.module_draft import ModuleDraft
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.verifier import RowVerifier, Verifier


class SessionGraphs:
    """Finds the captured cycle of a session's caches, and makes it at first."""

    def __init__(
        self,
        target: TargetModel,
        verifier: RowVerifier,
        policy_time: TotalTime,
        new_graph: Callable[[], Graph],
    ) -> None:
        """Set up; for the arguments see `make_session_graphs`."""
        self._target, self._verifier, self._policy_time = target, verifier, policy_time
        self._new_graph = new_graph
        self._own: CapturedCycle | None = None

    def of(
        self, caches: Caches | None, draft: DraftRunner | None, cache: KVCache, slot: int
    ) -> CapturedCycle:
        """Return the cycle over these caches.

        Args:
            caches: what holds them, from text to text; None for a session's own.
            draft: the head's runner.
            cache: the target's cache.
            slot: the sequence.
        """
        captured = self._own if caches is None else caches.captured
        if captured is None:
            # A head on a device runs as a module.
            assert isinstance(draft, ModuleDraft)
            captured = CapturedCycle(self._target, draft, cache, slot, self._new_graph)
            if caches is None:
                self._own = captured
            else:
                caches.captured = captured
        captured.use(self._verifier, self._policy_time)
        return captured


def make_session_graphs(
    target: TargetModel,
    verifier: Verifier,
    policy_time: TotalTime,
    new_graph: Callable[[], Graph] | None,
) -> SessionGraphs | None:
    """Return a session's graphs; None if its cycles are not captured.

    Args:
        target: the target.
        verifier: one that reads the text runs on the host, and nothing is captured.
        policy_time: adds up the policy's time.
        new_graph: makes an empty graph; None captures nothing.
    """
    if new_graph is None or not isinstance(verifier, RowVerifier):
        return None
    return SessionGraphs(target, verifier, policy_time, new_graph)
