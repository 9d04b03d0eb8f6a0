"""What all routes share: the decoder, modes, engine, limits, and the encoding of prompts."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import torch

from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3 import NO_DRAFT, BatchPolicy, DecoderBatch, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.cache.prefix_cache import BLOCK_ROWS
from eaglerl.fingerprints import target_id
from eaglerl.server.admission import Admission
from eaglerl.server.batch_size import default_prefix_tokens, default_tokens
from eaglerl.server.engine import Engine
from eaglerl.server.errors import ApiError
from eaglerl.server.metrics import Metrics
from eaglerl.server.modes import Mode, Modes
from eaglerl.server.shared_batch import SharedBatch
from eaglerl.server.text import TokenTexts

_MODE_SEPARATOR = ":"


@dataclass(frozen=True)
class Limits:
    """Limits on what clients may ask for.

    Attributes:
        max_body_bytes: largest body of a request.
        max_prompt_tokens: longest prompt; None for the target's context length.
        default_max_tokens: longest answer of a request that sets no limit.
        queue_size: most requests that wait.
        max_batch: most answers that are decoded together.
        max_tokens_in_flight: most tokens of these answers together, prompts included, if each is as
            long as it may become; None for as many as 4 GiB of caches hold, and at least the
            target's context.
        prefix_cache_tokens: most tokens of earlier prompts and answers that are kept for prompts
            that begin with them; 0 for none, None for as many as 1 GiB of caches hold.
        live_sessions: most live sessions at a time, each with its own caches.
        live_max_tokens: longest text of a live session, prompt included.
        live_idle_seconds: time after which a paused live session is closed.
    """

    max_body_bytes: int = 1 << 20
    max_prompt_tokens: int | None = None
    default_max_tokens: int = 512
    queue_size: int = 32
    max_batch: int = 16
    max_tokens_in_flight: int | None = None
    prefix_cache_tokens: int | None = None
    live_sessions: int = 2
    live_max_tokens: int = 2048
    live_idle_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "default_max_tokens", "live_max_tokens", "max_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_prompt_tokens", "max_tokens_in_flight"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.prefix_cache_tokens is not None and 0 != self.prefix_cache_tokens < BLOCK_ROWS:
            raise ValueError(
                f"prefix_cache_tokens must be 0 or at least {BLOCK_ROWS}, got "
                f"{self.prefix_cache_tokens}"
            )
        if not self.live_idle_seconds > 0:
            raise ValueError(f"live_idle_seconds must be positive, got {self.live_idle_seconds}")


class Service:
    """A decoder with everything that its routes need.

    Attributes:
        decoder: the decoder.
        tokenizer: its tokenizer.
        model_name: name of the model in the API.
        modes: modes of drafting.
        limits: limits of requests.
        batch: the batch that all requests share; None on a device, where there are no batches.
        engine: runs the decoding.
        metrics: metrics of the server.
        token_texts: texts of single tokens.
        fingerprint: changes with anything that may change the answer to the same seed.
    """

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        modes: Modes,
        *,
        model_name: str,
        limits: Limits | None = None,
        cost: CostTable | None = None,
        new_joint_policy: Callable[[], BatchPolicy] | None = None,
    ) -> None:
        """Set up; nothing runs yet.

        Args:
            decoder: a decoder with a tokenizer.
            modes: modes of drafting.
            model_name: name of the model in the API, without a colon.
            limits: limits of requests.
            cost: cost table of this machine, for the metrics.
            new_joint_policy: makes the policy that decides for all answers of the modes that are
                `Mode.joint`; None for one that begins without knowledge.

        Raises:
            ValueError: there is no tokenizer, the name is empty or has a colon, or the batch has
                more slots than the joint policy can decide for.
        """
        if decoder.tokenizer is None:
            raise ValueError("decoder must have a tokenizer")
        if not model_name or _MODE_SEPARATOR in model_name:
            raise ValueError(f"model_name must be a name without a colon, got {model_name!r}")
        self.decoder = decoder
        self.tokenizer = decoder.tokenizer
        self.modes = modes
        self.model_name = model_name
        self.limits = limits or Limits()
        self._new_joint_policy = new_joint_policy
        self.most_tokens = self.limits.max_tokens_in_flight or default_tokens(decoder)
        self.batch = SharedBatch(self._new_batch) if decoder.target.device.type == "cpu" else None
        admission = Admission(
            queue_size=self.limits.queue_size,
            max_batch=self.limits.max_batch,
            max_tokens=self.most_tokens,
        )
        self.engine = Engine(admission, live_sessions=self.limits.live_sessions, batch=self.batch)
        self.metrics = Metrics(model_name, {mode.name for mode in modes}, cost)
        engine = self.engine
        self.metrics.watch(
            lambda: {**engine.load, "answers": engine.answers, "usage": engine.usage}
        )
        self.token_texts = TokenTexts(decoder.tokenizer)
        self.fingerprint = _fingerprint(decoder)
        # Every call changes and restores settings of the tokenizer, so calls must not overlap.
        self._encoding = threading.Lock()

    def find_mode(self, model: str | None, mode: str | None, parameter: str = "mode") -> Mode:
        """Return the mode that a request asks for.

        Args:
            model: the model's name, or NAME:MODE.
            mode: the mode, if it has a field of its own.
            parameter: name of that field.

        Raises:
            ApiError: 404 for another model, 400 for an unknown mode or for two different modes.
        """
        name, _, suffix = (model or self.model_name).partition(_MODE_SEPARATOR)
        if name != self.model_name:
            message = f"model must be {self.model_name} or {self.model_name}:MODE"
            raise ApiError(404, message, code="model_not_found", parameter="model")
        if suffix and mode and suffix != mode:
            message = f"{parameter} and the suffix of model name two different modes"
            raise ApiError(400, message, code="invalid_value", parameter=parameter)
        try:
            return self.modes.get(mode or suffix or self.modes.default)
        except ValueError as error:
            parameter = parameter if mode else "model"
            raise ApiError(400, str(error), code="mode_not_found", parameter=parameter) from error

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Encode a conversation in the target's chat template, up to the start of the answer.

        Raises:
            ApiError: there is no chat template, or it refuses the conversation.
        """
        if self.tokenizer.chat_template is None:
            message = "the model has no chat template; use /v1/completions with plain text"
            raise ApiError(400, message, code="no_chat_template", parameter="messages")
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            message = f"the model's chat template refuses the messages: {error}"
            raise ApiError(400, message, code="invalid_value", parameter="messages") from error
        assert isinstance(text, str)  # One conversation, not tokenized.
        return self._encode(text, add_special_tokens=False)

    def encode_text(self, text: str) -> list[int]:
        """Encode plain text."""
        return self._encode(text, add_special_tokens=True)

    def check_prompt(self, prompt_ids: Sequence[int], parameter: str) -> None:
        """Check that a prompt can be decoded.

        Raises:
            ApiError: 400 if it is empty or has unknown ids, 413 if it is too long.
        """
        room = self.decoder.target.max_positions - 1
        most = min(room, self.limits.max_prompt_tokens or room)
        if not prompt_ids:
            message = f"{parameter} must hold at least one token"
            raise ApiError(400, message, code="invalid_value", parameter=parameter)
        if len(prompt_ids) > most:
            message = f"{parameter} has {len(prompt_ids)} tokens, at most {most} are allowed"
            raise ApiError(413, message, code="context_length_exceeded", parameter=parameter)
        vocabulary = self.decoder.target.vocab_size
        if not all(0 <= token < vocabulary for token in prompt_ids):
            message = f"{parameter} must hold token ids of 0 to {vocabulary - 1}"
            raise ApiError(400, message, code="invalid_value", parameter=parameter)

    def reserved(self, prompt_ids: Sequence[int], max_new_tokens: int) -> int:
        """Return the tokens of an answer that is as long as it may become, prompt included."""
        return min(len(prompt_ids) + max_new_tokens, self.decoder.target.max_positions)

    def check_length(self, prompt_ids: Sequence[int], max_new_tokens: int) -> None:
        """Check that an answer can ever be decoded.

        Raises:
            ApiError: 413 if it needs more room than there is for all answers together.
        """
        if self.reserved(prompt_ids, max_new_tokens) > self.most_tokens:
            message = (
                f"the prompt has {len(prompt_ids)} tokens; with max_tokens={max_new_tokens} that "
                f"is more than the {self.most_tokens} of all answers together"
            )
            raise ApiError(413, message, code="context_length_exceeded", parameter="max_tokens")

    def read_token(self, text: str) -> int:
        """Parse a key of ``logit_bias`` as a token id.

        Raises:
            ApiError: 400 if it is not a token id.
        """
        vocabulary = self.decoder.target.vocab_size
        token = int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
        if not 0 <= token < vocabulary:
            message = f"logit_bias must have token ids of 0 to {vocabulary - 1} for keys"
            raise ApiError(400, message, code="invalid_value", parameter="logit_bias")
        return token

    def _new_batch(self) -> DecoderBatch:
        policy: BatchPolicy | TreeParams | Literal["auto"] = NO_DRAFT
        if any(mode.joint for mode in self.modes):
            policy = "auto" if self._new_joint_policy is None else self._new_joint_policy()
        kept = self.limits.prefix_cache_tokens
        if kept is None:
            kept = default_prefix_tokens(self.decoder)
        return self.decoder.start_batch(
            slots=self.limits.max_batch,
            max_length=self.most_tokens,
            policy=policy,
            prefix_tokens=kept,
        )

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        with self._encoding:
            return self.tokenizer(text, add_special_tokens=add_special_tokens).input_ids


def _fingerprint(decoder: SpeculativeDecoder) -> str:
    """Return a fingerprint of the target and of the versions; drafts change no answer."""
    target = decoder.target
    arithmetic = (target.precision, target.kv_cache_dtype)
    parts = (target_id(target), *arithmetic, torch.__version__, version("eaglerl"))
    return "fp_" + hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=5).hexdigest()
