"""The requests of a server: their slots and their texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from eaglerl.eagle3.tree.prompt_lookup import ContextLookup


class KnownRequest:
    """A request.

    Attributes:
        slot: its slot in the policy.
        text: its text, whose earlier passages are looked up.
    """

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.text = ContextLookup()


class KnownRequests:
    """Gives requests slots, and keeps an index of each one's text."""

    def __init__(self, slots: int) -> None:
        self._free = list(range(slots - 1, -1, -1))
        self._known: dict[str, KnownRequest] = {}

    def get(self, name: str) -> KnownRequest | None:
        """Return a request that has a slot."""
        return self._known.get(name)

    def join(self, name: str) -> KnownRequest | None:
        """Give a new request a slot; None if there is none left."""
        if not self._free:
            return None
        request = self._known[name] = KnownRequest(self._free.pop())
        return request

    def leave_all_but(self, names: Iterable[str]) -> list[str]:
        """Take the slots of all requests that are not among these; return their names."""
        gone = [*self._known.keys() - {*names}]
        for name in gone:
            self._free.append(self._known.pop(name).slot)
        return gone


def update_text(request: KnownRequest, token_ids: Any, length: int, new: list[int]) -> None:
    """Bring the index of a request's text up to date.

    Args:
        request: the request.
        token_ids: int32 (capacity,) array of the engine.
        length: tokens in it that are the text.
        new: tokens after these that the engine has not written yet.
    """
    if len(request.text) > length:
        # The engine has taken tokens back: another text under the same name.
        request.text = ContextLookup()
    request.text.extend(token_ids[len(request.text) : length].tolist())
    request.text.extend(new)
