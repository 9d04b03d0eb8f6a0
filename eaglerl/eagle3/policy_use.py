"""Who uses a policy: a sequence has it for itself, since policies remember what they have seen."""

from __future__ import annotations

from collections.abc import Callable

from eaglerl.eagle3.params import TreePolicy

# By the policy's id: a token of the sequence that uses it, and the policy, so that no other gets
# its id. Single operations on a dict need no lock, which garbage collection could not take anyway.
_IN_USE: dict[int, tuple[object, TreePolicy]] = {}


def begin_use(policy: TreePolicy) -> tuple[TreePolicy, Callable[[], None]]:
    """Take a policy for one sequence.

    Args:
        policy: what decides.

    Returns:
        The policy, or a fork of it where another sequence has it; and what ends the use.

    Raises:
        ValueError: another sequence has the policy, and it has no method `fork`.
    """
    token, key = object(), id(policy)
    if _IN_USE.setdefault(key, (token, policy))[0] is token:
        return policy, lambda: _end_use(key, token)
    fork = getattr(policy, "fork", None)
    if fork is None:
        raise ValueError(
            f"the policy, a {type(policy).__name__}, is in use by another generation that has not "
            "ended: give each a policy of its own, close() the other generation, or give the "
            "policy a method fork() that returns one for another sequence"
        )
    forked = fork()
    # A policy that remembers nothing serves any number of sequences.
    return (policy, _nothing) if forked is policy else begin_use(forked)


def _end_use(key: int, token: object) -> None:
    found = _IN_USE.get(key)
    if found is not None and found[0] is token:
        del _IN_USE[key]


def _nothing() -> None:
    pass
