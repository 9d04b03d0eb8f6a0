"""What a policy observes: described by its space, made from features or text."""

import numpy as np
import pytest
import torch

from eaglerl.eagle3.policy import CycleState
from eaglerl.envs.observations import (
    TEXT_WIDTH,
    ObservationSpec,
    Observer,
    TextProjection,
    sentence_encoder,
)

from ..traces.tiny import tiny_decoder


def letters(text: str) -> np.ndarray:
    """An embedding that is easy to predict: how often each letter occurs."""
    counts = np.zeros(TEXT_WIDTH, dtype=np.float32)
    for letter in text:
        counts[ord(letter) % TEXT_WIDTH] += 1
    return counts


@pytest.mark.parametrize(("width", "source"), [(64, "features"), (192, "taps"), (384, "context")])
@pytest.mark.parametrize("extras", [(), ("acceptance",), ("position", "confidence")])
def test_the_size_counts_the_extras(width: int, source: str, extras: tuple) -> None:
    more = sum({"acceptance": 1, "position": 1, "confidence": 8}[extra] for extra in extras)
    spec = ObservationSpec(source, width, extras)
    assert spec.size == width + more
    assert ObservationSpec.from_dict(spec.to_dict()) == spec
    assert spec.hidden_size == (None if source == "context" else 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the observation must be an object"),
        ({"source": "features", "width": 4}, "the observation lacks 'extras'"),
        (
            {"source": "smell", "width": 4, "extras": []},
            "'source' of the observation must be one of 'features'",
        ),
        (
            {"source": "features", "width": "4", "extras": []},
            "'width' of the observation must be an integer",
        ),
        ({"source": "taps", "width": 4, "extras": []}, "multiple of 3"),
        ({"source": "context", "width": 4, "extras": []}, "must be 384, got 4"),
        (
            {"source": "features", "width": 4, "extras": "position"},
            "'extras' of the observation must be a list",
        ),
        ({"source": "features", "width": 4, "extras": ["weather"]}, "distinct names"),
    ],
)
def test_malformed_descriptions_are_named(content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObservationSpec.from_dict(content)


def test_features_of_every_shape() -> None:
    observer = Observer(ObservationSpec("features", 5))
    rows = torch.randn(2, 3, 5)
    for given in (rows, rows[1], rows[1, 2], rows.numpy(), rows.to(torch.bfloat16)):
        shown = observer.observe(given)
        last = torch.as_tensor(given).float().reshape(-1, 5)[-1]
        np.testing.assert_array_equal(shown, last.numpy())
        assert shown.dtype == np.float32
    assert observer.last_source == "features"
    assert observer.observe() is None


def test_features_are_reduced_by_the_head_or_as_in_resps() -> None:
    decoder = tiny_decoder()
    width, k = decoder.draft_head.config.hidden_size, decoder.target.hidden_size
    taps = torch.randn(3 * k)
    spec = ObservationSpec("features", width)
    shown = Observer(spec, head=decoder.draft_head).observe(taps)
    with torch.no_grad():
        expected = decoder.draft_head.reduce(taps[None])[0]
    # One row and one vector may be summed in another order.
    np.testing.assert_allclose(shown, expected.numpy(), rtol=1e-5, atol=1e-6)
    mean = Observer(ObservationSpec("features", k), mean_of_blocks=True).observe(taps)
    blocks = taps.numpy().reshape(3, k)
    np.testing.assert_allclose(mean, (blocks[0] + blocks[1] + blocks[2]) / 3, rtol=1e-5, atol=1e-6)
    raw = Observer(ObservationSpec("taps", 3 * k)).observe(taps)
    np.testing.assert_array_equal(raw, taps.numpy())
    with pytest.raises(ValueError, match="give it head"):
        Observer(spec).observe(taps)
    with pytest.raises(ValueError, match=rf"of width {width} or {3 * width}, got 7"):
        Observer(spec, head=decoder.draft_head).observe(torch.zeros(7))
    with pytest.raises(ValueError, match=rf"of width 9, the draft head has {width}"):
        Observer(ObservationSpec("features", 9), head=decoder.draft_head)


def test_text_alone_and_text_in_place_of_features() -> None:
    context = Observer(ObservationSpec("context", TEXT_WIDTH), text_encoder=letters)
    np.testing.assert_array_equal(context.observe(context="abba"), letters("abba"))
    assert context.last_source == "context"
    assert context.observe(hidden_states=torch.zeros(7)) is None
    observer = Observer(ObservationSpec("features", 6), text_encoder=letters, seed=3)
    shown = observer.observe(context="abba")
    again = TextProjection(6, seed=3)(torch.from_numpy(letters("abba"))).numpy()
    np.testing.assert_array_equal(shown, again)
    assert shown.shape == (6,)
    # tanh of something of zero mean and unit variance
    inside = np.arctanh(shown.astype(np.float64))
    assert abs(inside.mean()) < 1e-3
    assert inside.std() == pytest.approx(1, abs=1e-2)
    assert not np.array_equal(shown, TextProjection(6, seed=4)(torch.from_numpy(letters("abba"))))
    assert observer.last_source == "projected_context"
    with pytest.raises(ValueError, match=r"shape \(384,\), got \(3,\)"):
        Observer(ObservationSpec("context", 384), text_encoder=lambda _: np.zeros(3)).observe(
            context="x"
        )


def test_states_of_traces_and_of_live_sessions() -> None:
    spec = ObservationSpec("features", 4, ("position", "acceptance", "confidence"))
    for known in (8, 3):
        confidence = -np.arange(known, dtype=np.float32)
        state = CycleState(torch.ones(4), 1500, None, confidence=lambda shown=confidence: shown)
        shown = Observer(spec).observe_state(state, 2.5)
        # Tokens beyond a small draft vocabulary have next to no probability.
        padding = [-100] * (8 - known)
        np.testing.assert_array_equal(shown, [1, 1, 1, 1, 1.5, 2.5, *confidence, *padding])
    # Before the first draft pass: uniform.
    shown = Observer(spec).observe_state(CycleState(torch.ones(4), 1500, None))
    np.testing.assert_allclose(np.exp(shown[-8:]), 1 / 8, rtol=1e-6)


def test_a_session_s_text_is_read() -> None:
    class Tokenizer:
        def decode(self, ids, skip_special_tokens: bool) -> str:
            assert skip_special_tokens
            return "".join(chr(97 + token) for token in ids)

    decoder = tiny_decoder()
    observer = Observer(
        ObservationSpec("context", TEXT_WIDTH), tokenizer=Tokenizer(), text_encoder=letters
    )
    from eaglerl.eagle3.sampling import GreedyVerifier

    session = decoder.new_session(GreedyVerifier(), 20)
    session.prefill([1, 2, 3])
    text = Tokenizer().decode(session.token_ids, True)
    np.testing.assert_array_equal(observer.observe_state(session.state), letters(text))
    with pytest.raises(ValueError, match="needs a tokenizer"):
        Observer(ObservationSpec("context", TEXT_WIDTH)).observe_state(session.state)


@pytest.mark.slow
def test_sentence_bert() -> None:
    pytest.importorskip("sentence_transformers", reason="the extra text is not installed")
    encode = sentence_encoder()
    first, near, far = (
        encode(text)
        for text in (
            "The cat sits on the mat.",
            "A cat is sitting on a rug.",
            "Interest rates rose by half a percent.",
        )
    )
    assert first.shape == (TEXT_WIDTH,)
    assert first.dtype == np.float32

    def similarity(one: np.ndarray, other: np.ndarray) -> float:
        return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

    assert similarity(first, near) > similarity(first, far) + 0.3
    observer = Observer(ObservationSpec("context", TEXT_WIDTH), text_encoder=encode)
    np.testing.assert_allclose(observer.observe(context="A cat is sitting on a rug."), near)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"eaglerl\[text\]"):
        sentence_encoder()
