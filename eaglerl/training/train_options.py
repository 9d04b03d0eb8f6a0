"""Options of draft-head training."""

from dataclasses import dataclass

import torch

from eaglerl.training.precision import resolve_dtype

HEAD_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}

# A resumed run may change these: they change neither the training nor its result.
RESUMABLE_CHANGES = (
    "max_minutes",
    "head_dtype",
    "validate_every",
    "validation_rows",
    "checkpoint_minutes",
)

_POSITIVE = (
    "draft_vocab_size",
    "intermediate_size",
    "ttt_steps",
    "batch_tokens",
    "epochs",
    "steps",
    "max_minutes",
    "learning_rate",
    "deep_fraction",
    "validate_every",
    "validation_rows",
    "checkpoint_minutes",
)
_RANGES = {
    "warmup": (0, 0.5, "in 0..0.5"),
    "final_learning_rate": (0, 1, "in 0..1"),
    "deep_fraction": (0, 1, "above 0, at most 1"),
}


@dataclass(frozen=True)
class TrainOptions:
    """How a head is trained; the defaults are those of the shipped head.

    Attributes:
        draft_vocab_size: number of target ids that the draft can propose.
        intermediate_size: width of the draft layer's SwiGLU block; None for the target's.
        ttt_steps: training-time-test steps.
        batch_tokens: draft rows of one optimizer step.
        epochs: passes over the data; ignored if ``steps`` is given.
        steps: number of optimizer steps, or None.
        max_minutes: time budget of the training itself, or None. The schedule follows steps or
            time, whichever is further, so the learning rate has decayed when the time is up. A run
            with a budget cannot be repeated exactly.
        learning_rate: Muon's peak; AdamW's is half of it.
        warmup: fraction of the training in which the learning rate rises.
        final_learning_rate: where it ends, as a fraction of the peak.
        deep_fraction: fraction of the rows that continue after step 0 of training-time test.
        seed: seed of initial weights and order.
        dtype: "float32", "bfloat16" or "auto", see `resolve_dtype`.
        head_dtype: dtype of the saved head.
        initial_head: folder of a head to train further, or None for a new one. Its weights, its
            draft vocabulary and its configuration are kept; ``draft_vocab_size`` must equal its
            own.
        feature_layers: layers whose inputs the head reads; None for those of ``initial_head``, or
            EAGLE's rule.
        validate_every: steps between two validations.
        validation_rows: held-out sequences of a validation during training; the last uses all.
        checkpoint_minutes: time between two checkpoints.
    """

    draft_vocab_size: int = 8192
    intermediate_size: int | None = None
    ttt_steps: int = 4
    batch_tokens: int = 3072
    epochs: float = 4.0
    steps: int | None = None
    max_minutes: float | None = None
    learning_rate: float = 2e-3
    warmup: float = 0.03
    final_learning_rate: float = 0.05
    deep_fraction: float = 1.0
    seed: int = 0
    dtype: str = "auto"
    head_dtype: str = "float16"
    validate_every: int = 50
    validation_rows: int = 96
    checkpoint_minutes: float = 5.0
    initial_head: str | None = None
    feature_layers: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        resolve_dtype(self.dtype)
        if self.head_dtype not in HEAD_DTYPES:
            raise ValueError(
                f"head_dtype must be one of {list(HEAD_DTYPES)}, got {self.head_dtype!r}"
            )
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name, (low, high, wanted) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)}")

    @property
    def head_torch_dtype(self) -> torch.dtype:
        """``head_dtype`` as a torch dtype."""
        return HEAD_DTYPES[self.head_dtype]
