"""Policies on disk and their reports: files for inference, checkpoints, statistics."""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from eaglerl.actions import ActionSpace
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.files import AlreadyLockedError, exclusive_file
from eaglerl.json_file import check_json
from eaglerl.ops import PolicyWeights, check_reproduced
from eaglerl.resps.policies.checkpoint_state import PolicyState
from eaglerl.resps.policies.policy_file import (
    check_wanted,
    check_weights,
    read_card,
    read_weights,
    write_policy_folder,
)
from eaglerl.resps.policies.policy_settings import PolicySettings
from eaglerl.resps.policies.policy_statistics import PolicyStatistics
from eaglerl.resps.policies.reward_window import RewardWindow
from eaglerl.runs.checkpoints import CheckpointFolder, resuming

if TYPE_CHECKING:
    from eaglerl.envs.standardize import Standardization
    from eaglerl.resps.policies.sb3_learner import Learner


class Persistence(ABC):
    """The part of a `ReSpSPolicy` that saves, loads, resumes and reports."""

    algorithm: ClassVar[str]
    settings: PolicySettings
    statistics: PolicyStatistics
    _learner: Learner | None
    _checkpoints: CheckpointFolder | None
    _lock: ExitStack | None
    _head_id: str | None
    _model_options: dict[str, Any]
    _training: dict[str, Any]
    _weights: PolicyWeights | None
    _window: RewardWindow

    @abstractmethod
    def __init__(
        self,
        *,
        settings: PolicySettings | None = None,
        head: Eagle3DraftHead | None = None,
        **options: Any,
    ) -> None:
        """Set up; every algorithm takes these by name."""

    @property
    @abstractmethod
    def formulation(self) -> str:
        """What is solved."""

    @property
    @abstractmethod
    def weights(self) -> PolicyWeights:
        """Weights for inference, as of the last update."""

    @property
    @abstractmethod
    def learner(self) -> Learner:
        """The algorithm."""

    @abstractmethod
    def _forget_sequence(self) -> None:
        """Forget the sequence and the current decision."""

    def save(self, path: str | Path) -> None:
        """Write what inference needs into a folder: safetensors and JSON."""
        write_policy_folder(
            path,
            self.weights,
            self.settings,
            algorithm=self.algorithm,
            model=self._model_options,
            head_id=self._head_id,
            training={**self._training, "windows": self.statistics.counts["windows"]},
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        hidden_size: int | None = None,
        actions: ActionSpace | None = None,
        head: Eagle3DraftHead | None = None,
        **options: Any,
    ) -> Self:
        """Read what `save` wrote.

        Args:
            path: the folder.
            hidden_size: the k that it must have; None accepts any.
            actions: the trees that it must have; None accepts any.
            head: the draft head that it will be used with.
            options: see `__init__`; settings come from the folder.

        Raises:
            ValueError: a file is missing or malformed, or the policy is of another algorithm, k,
                actions or head; the message names both.
        """
        card = read_card(path, algorithm=cls.algorithm)
        check_wanted(card, {"hidden_size": hidden_size, "actions": actions})
        known = inspect.signature(cls).parameters.keys() - {"settings", "options"}
        if unknown := card["model"].keys() - known:
            raise ValueError(f"'model' of the card in {str(path)!r} has unknown {sorted(unknown)}")
        # Read first: no policy is made that the files contradict.
        weights = read_weights(path, card["settings"])
        # A head of another width fails here, with a message that says more than a hash.
        policy = cls(settings=card["settings"], head=head, **card["model"], **options)
        check_wanted(card, {"head_id": policy._head_id})
        policy._weights = weights
        policy._head_id = card["head_id"] or policy._head_id
        policy._training = card["training"]
        return policy

    def adopt(
        self,
        model: Any,
        standardization: Standardization | None = None,
        *,
        head_id: str | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Use the actor of a model from `new_model`.

        Args:
            model: the model.
            standardization: of its observations.
            head_id: hash of the draft head whose features they are.
            training: JSON values for the card.

        Raises:
            ValueError: the model computes something besides its layers.
        """
        weights = self._export(model)
        check_reproduced(model, weights)
        self._weights = weights if standardization is None else standardization.fold_into(weights)
        self._learner = None
        self.describe(head_id=head_id, training=training)

    def describe(
        self, *, head_id: str | None = None, training: Mapping[str, Any] | None = None
    ) -> None:
        """Set what the card says about the policy's origin.

        Args:
            head_id: hash of the draft head whose features it learned from.
            training: JSON values.
        """
        self._head_id = head_id or self._head_id
        self._training = dict(training or {})

    def use_weights(self, weights: PolicyWeights) -> None:
        """Use other weights of the same shape, until the policy learns again.

        Raises:
            ValueError: the weights are of another width or of other actions.
        """
        check_weights(weights, self.settings, "the weights")
        self._weights = weights

    def save_checkpoint(self) -> Path:
        """Write a checkpoint now.

        Raises:
            ValueError: the policy has no checkpoint_dir.
            AlreadyLockedError: another process writes checkpoints there.
        """
        tensors, info = self.learner.state()
        info["policy"] = {
            "window": self._window.state(),
            "statistics": self.statistics.state(),
        }
        return self._checkpoint_folder().save(self.statistics.counts["windows"], tensors, info)

    def resume(self) -> bool:
        """Resume from the newest readable checkpoint, at the start of a sequence.

        Returns:
            Whether there was one.

        Raises:
            ValueError: its configuration differs, or there is no checkpoint_dir.
            AlreadyLockedError: another process writes checkpoints there.
        """
        checkpoint = self._checkpoint_folder().newest()
        if checkpoint is None:
            return False
        with resuming(checkpoint):
            self.learner.load_state(checkpoint.tensors, checkpoint.info)
            saved = check_json(checkpoint.info["policy"], PolicyState, "the entry 'policy'")
            self._window.load_state(saved.window)
            self.statistics.load_state(dict(saved.statistics))
        self._weights = None
        self._forget_sequence()
        return True

    def hold_checkpoints(self) -> None:
        """Lock the checkpoints against other processes, until `close`.

        Saving and resuming lock them too. Without a checkpoint_dir this does nothing.

        Raises:
            AlreadyLockedError: another process holds the lock.
        """
        if self._checkpoints is None or self._lock is not None:
            return
        lock = ExitStack()
        try:
            lock.enter_context(exclusive_file(self._checkpoints.path))
        except AlreadyLockedError as error:
            if error.pid != os.getpid():
                raise
            # A policy of this process holds the lock: closing it is up to the caller.
            return
        self._lock = lock

    def get_resume_info(self) -> dict[str, Any]:
        """Return how far the policy is, so that a driver can skip that, and its checkpoint."""
        files = [] if self._checkpoints is None else self._checkpoints.files()
        return {
            "windows": self.statistics.counts["windows"],
            "sequences": self.statistics.counts["sequences"],
            "seed": self.settings.seed,
            "checkpoint": str(files[-1]) if files else None,
        }

    def get_performance_stats(self) -> dict[str, Any]:
        """Return counts, rates and means of what the policy has done."""
        return {
            "formulation": self.formulation,
            **self.statistics.summary(self.settings.actions),
            "tokens": self._window.total_tokens,
            "seconds": self._window.total_seconds,
            "tokens_per_second": self._window.tokens_per_second,
        }

    def _export(self, model: Any) -> PolicyWeights:
        from eaglerl.resps.policies.sb3_learner import actor_weights

        return actor_weights(
            model,
            self.settings.actions.tensor,
            mlp_input="taps" if self.settings.spec.source == "taps" else "features",
            fallback_action=self.settings.fallback_action,
        )

    def _checkpoint_folder(self) -> CheckpointFolder:
        if self._checkpoints is None:
            raise ValueError("the policy has no checkpoint_dir")
        self.hold_checkpoints()
        return self._checkpoints

    def _release_checkpoints(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
