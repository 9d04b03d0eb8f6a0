"""The policies and verifiers in use: one that remembers its text serves one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable

from eaglerl.eagle3.policy import TreePolicy
from eaglerl.eagle3.verifier import Verifier

# Object id -> a token of the sequence that uses the object, and the object itself, so that its id
# cannot be reused. Single operations on a dict are atomic. A lock would deadlock: a session that is
# garbage collected ends its use at any moment, even in a thread that holds the lock.
_IN_USE: dict[int, tuple[object, TreePolicy | Verifier]] = {}


def begin_use(policy: TreePolicy) -> tuple[TreePolicy, Callable[[], None]]:
    """Take a policy for one sequence.

    Args:
        policy: the policy.

    Returns:
        The policy, or a fork of it if another sequence uses it; and a function that ends the use.

    Raises:
        ValueError: another sequence uses the policy, and it has no method `fork`.
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
    # A policy without memory returns itself: it serves any number of sequences.
    return (policy, _nothing) if forked is policy else begin_use(forked)


def use_verifier(verifier: Verifier) -> Callable[[], None]:
    """Take a verifier for one sequence.

    Args:
        verifier: the verifier.

    Returns:
        A function that ends the use.

    Raises:
        ValueError: another sequence uses it, and it tracks that sequence's text.
    """
    if not getattr(verifier, "reads_text", False):
        return _nothing
    token, key = object(), id(verifier)
    if _IN_USE.setdefault(key, (token, verifier))[0] is not token:
        raise ValueError(
            f"the verifier, a {type(verifier).__name__}, keeps track of the text of another "
            "session that has not ended: give each session a verifier of its own"
        )
    return lambda: _end_use(key, token)


def _end_use(key: int, token: object) -> None:
    found = _IN_USE.get(key)
    if found is not None and found[0] is token:
        del _IN_USE[key]


def _nothing() -> None:
    pass
