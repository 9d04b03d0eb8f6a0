"""What the engine's thread works on, and why it refuses or ends work."""

from __future__ import annotations

from abc import ABC, abstractmethod


class BusyError(Exception):
    """The server is at a limit; the message says which."""


class StoppedError(Exception):
    """The engine is stopping."""


class WithdrawnError(Exception):
    """The client has gone, or has cancelled the task."""


class Task(ABC):
    """A decoding task. All methods but the constructor run on the engine's thread."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether the task has a step to run now."""

    @property
    def weight(self) -> int:
        """How many sequences' share of the time the task gets."""
        return 1

    @abstractmethod
    def advance(self) -> bool:
        """Read a part of a prompt or run one cycle; return whether that was the last step."""

    @abstractmethod
    def close(self, error: Exception | None) -> None:
        """Release what the task holds; called exactly once.

        Args:
            error: why the task ends early; None if it has finished.
        """
