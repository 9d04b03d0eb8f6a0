"""The weights of a policy that chooses the draft tree, checked once on construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from eaglerl._renamed import renamed_arguments, renamed_fields
from eaglerl.files import exclusive_folder
from eaglerl.ops import _policy_sb3 as sb3
from eaglerl.ops._policy_checks import check_policy_weights, read_actions
from eaglerl.ops._policy_fields import MlpInput, PolicyFields
from eaglerl.ops._policy_files import read_policy, write_policy
from eaglerl.ops._policy_modules import read_modules


@renamed_fields(bins="actions")
@dataclass(frozen=True, eq=False)
class PolicyWeights(PolicyFields):
    """FC reduction, policy MLP and the parameters of every action.

    For a token's features ``x``, [low | mid | high] of width 3k, a policy computes

    - ``x`` divided, chunk by chunk, by its root mean square and multiplied by ``norm_weight``
      (``norm_chunks`` 3: EAGLE-3.1's ``fc_norm``; 1: speculators' ``norm_before_fc``; 0: neither);
    - the reduced features ``g = x fc_weight^T + fc_bias`` (EAGLE-3, section 3.1);
    - the logits ``z``, an MLP of ``g``: the actor of stable-baselines3's ``MlpPolicy``.

    Without ``fc_weight`` the MLP reads what ``mlp_input`` says: reduced features that were computed
    elsewhere, or ``x`` itself (a policy trained on it, or a folded one, see `fold`).

    Attributes:
        hidden_weights: one (out, in) matrix for each hidden layer, at least one.
        hidden_biases: one (out,) float32 vector for each.
        output_weight: (horizon * A, in) matrix of the logits.
        output_bias: (horizon * A,) float32.
        actions: (A, 3) int32: total_tokens, depth and top_k of every action; or (A, 4) with
            lookup_tokens, 0 to 64.
        fc_weight: (h, 3k), or None.
        fc_bias: (h,) float32, or None.
        norm_weight: (3k,) float32, or None for ones.
        norm_chunks: number of chunks of ``x`` with a norm each: 0, 1 or 3.
        eps: added to a chunk's mean square.
        activation: activation after each hidden layer.
        mlp_input: "features" for g, "taps" for ``x``.
        horizon: decisions that one call makes for the cache's scheduled mode; 1 otherwise.
        fallback_action: the action to take if a logit is not finite.

    All matrices have one dtype: float32, bfloat16 or float16; float64 for the reference only.

    Raises:
        TypeError: a field has the wrong type or dtype.
        ValueError: shapes or devices do not fit each other, a value is not finite, or a setting is
            unknown. The message names the field.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_policy_weights(self)

    @classmethod
    def unchecked(cls, **fields: object) -> PolicyWeights:
        """Make a policy from all of its fields, which the caller has checked."""
        weights = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(weights, name, value)
        return weights

    @classmethod
    @renamed_arguments(bins="actions")
    def from_modules(
        cls,
        mlp: nn.Sequential | Sequence[nn.Module],
        actions: Tensor | Sequence[Sequence[int]],
        *,
        fc: nn.Linear | None = None,
        norms: Sequence[nn.Module] = (),
        mlp_input: MlpInput = "features",
        horizon: int = 1,
        fallback_action: int = 0,
    ) -> PolicyWeights:
        """Copy the weights of modules; matrices get the dtype of the first.

        Args:
            mlp: Linear layers with one kind of activation (Tanh, ReLU or SiLU) between them.
            actions: (A, 3) total_tokens, depth and top_k of every action, or (A, 4) with
                lookup_tokens.
            fc: the draft head's reduction from 3k to h.
            norms: the head's ``fc_norm`` (three modules with ``weight`` and ``eps``) or
                ``input_norm`` (one); empty for none.
            mlp_input: what the MLP reads if there is no ``fc``.
            horizon: decisions that one call makes.
            fallback_action: the action to take if a logit is not finite.

        Raises:
            TypeError: ``actions`` are not integers.
            ValueError: ``mlp`` has other layers, something does not fit, or a module in evaluation
                mode computes something other than its weights say (a hook, a subclass, another
                kind of norm).
        """
        fields = read_modules(
            list(mlp),
            actions,
            fc=fc,
            norms=norms,
            mlp_input=mlp_input,
            horizon=horizon,
            fallback_action=fallback_action,
        )
        return cls(**fields)

    @classmethod
    @renamed_arguments(bins="actions")
    def from_sb3(
        cls,
        model: object,
        actions: Tensor | Sequence[Sequence[int]],
        *,
        fc: nn.Linear | None = None,
        norms: Sequence[nn.Module] = (),
        mlp_input: MlpInput = "features",
        fallback_action: int = 0,
        vec_normalize: object | None = None,
    ) -> PolicyWeights:
        """Copy the actor of a stable-baselines3 model with ``MlpPolicy``.

        The greedy action is that of ``model.predict(observation, deterministic=True)``. This is
        checked on random observations of several scales: actions may differ only where their scores
        are equal up to rounding. A ``MultiDiscrete([A] * horizon)`` action space gives a policy
        with that horizon. The model and all random states are left unchanged.

        Args:
            model: ``PPO`` or ``A2C`` (``mlp_extractor.policy_net`` and ``action_net``), or ``DQN``
                (``q_net``).
            actions: see `from_modules`.
            fc: see `from_modules`.
            norms: see `from_modules`.
            mlp_input: what the model's observations are, if there is no ``fc``.
            fallback_action: the action to take if a logit is not finite.
            vec_normalize: the ``VecNormalize`` whose observations the model was trained on; its
                statistics are folded into the first layer. Its clipping cannot be folded: if
                observations can be more than ``clip_obs`` standard deviations from the mean, a
                warning says so.

        Raises:
            ValueError: the policy is of another kind, its action space does not fit ``actions``,
                or it computes something besides its layers (the message says on what share of the
                observations). Or it was trained with a ``VecNormalize`` that is not given, or with
                one that clips common observations.
        """
        layers = sb3.read_layers(model)
        actions = read_actions(actions)
        horizon = sb3.read_horizon(model, len(actions))
        sb3.check_observations(model, layers[0])
        sb3.check_normalization(model, vec_normalize)
        mlp = cls.from_modules(
            layers, actions, mlp_input=mlp_input, horizon=horizon, fallback_action=fallback_action
        )
        plain = mlp
        if vec_normalize is not None:
            mlp = sb3.fold_normalization(mlp, vec_normalize)
        sb3.check_reproduced(model, mlp, vec_normalize, plain)
        if fc is None and not norms:
            return mlp
        whole = cls.from_modules(
            layers, actions, fc=fc, norms=norms, mlp_input=mlp_input, horizon=horizon,
            fallback_action=fallback_action,
        )  # fmt: skip
        return replace(whole, hidden_weights=mlp.hidden_weights, hidden_biases=mlp.hidden_biases)

    def fold(self) -> PolicyWeights:
        """Multiply the FC into the first hidden layer, for use if g itself is not needed.

        Both are linear: ``W1 (Wfc (n * x) + b) + b1`` is ``(W1 Wfc diag(n)) x + (W1 b + b1)``, for
        normalised features x and the norms' weight n. The chunks' scales depend on x and stay.
        Products are computed in float64 and rounded to the weights' dtype.

        Returns:
            Weights whose MLP reads x.

        Raises:
            ValueError: the weights have no ``fc_weight``.
        """
        if self.fc_weight is None:
            raise ValueError("fold() needs weights with fc_weight; these have none")
        first = self.hidden_weights[0].double()
        product = first @ self.fc_weight.double()
        if self.norm_weight is not None:
            product = product * self.norm_weight.double()
        bias = self.hidden_biases[0].double()
        if self.fc_bias is not None:
            bias = bias + first @ self.fc_bias.double()
        return replace(
            self,
            hidden_weights=(product.to(self.dtype), *self.hidden_weights[1:]),
            hidden_biases=(bias.to(self.hidden_biases[0].dtype), *self.hidden_biases[1:]),
            fc_weight=None,
            fc_bias=None,
            norm_weight=None,
            mlp_input="taps",
        )

    def save_pretrained(self, path: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder, each atomically.

        Raises:
            AlreadyLockedError: another process is writing into the folder.
        """
        with exclusive_folder(path):
            self.write_into(Path(path))

    def write_into(self, folder: Path) -> None:
        """Write into an existing folder, whose lock the caller holds; see `save_pretrained`."""
        write_policy(folder, self.tensors(), self)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: torch.device | str = "cpu"
    ) -> PolicyWeights:
        """Read a policy that `save_pretrained` wrote.

        Raises:
            ValueError: a file is missing, malformed or of another format, or the weights do not
                fit. The message names the file or the folder, and the field.
        """
        fields = read_policy(path)
        try:
            weights = cls(**fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the policy in {str(path)!r} cannot be used: {error}") from error
        return weights if torch.device(device).type == "cpu" else weights.to(device)
