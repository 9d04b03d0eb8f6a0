"""The draft head and its runners against a float64 reference."""

import pytest
import torch

from eaglerl.eagle3.head import packed_draft
from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.make_draft_runner import make_draft_runner
from eaglerl.eagle3.head.module_draft import ModuleDraft
from eaglerl.eagle3.head.packed_draft import PackedDraft
from eaglerl.eagle3.layers.linear import is_supported

from ..heads import DRAFT_VOCAB, VOCAB, Row, make_config, make_head, reference_pass

# fp32 sums of up to 96 products, chained over a few rows: measured 6e-6 at most.
FP32 = {"rtol": 0, "atol": 2e-5}
VARIANTS = {
    "plain": {},
    "fc_norm": {"fc_norm": True},
    "norm_before_fc": {"norm_before_fc": True},
    "norm_before_residual": {"norm_before_residual": True},
    "no_final_norm": {"norm_output": False},
    "norm_feedback": {"norm_feedback": True},
    "all_heads_alike": {"num_key_value_heads": 4},
    "whole_vocabulary": {"draft_vocab_size": VOCAB},
    "narrow_target": {"target_hidden_size": 20, "fc_norm": True},
    "qk_norm": {"qk_norm": True},
    "window": {"sliding_window": 5, "qk_norm": True},
    # Drafted rows leave the window of their own descendants.
    "narrow_window": {"sliding_window": 2},
    "window_of_one": {"sliding_window": 1},
    "wide_window": {"sliding_window": 12},
    "speculators_defaults": {
        "sliding_window": 7,
        "norm_before_fc": True,
        "norm_feedback": True,
        "norm_before_residual": True,
    },
    "other_rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
}
RUNNERS = {"module": ModuleDraft, "packed": PackedDraft}


def make_features(rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, 3 * width, generator=torch.Generator().manual_seed(rows))


def make_tokens(rows: int) -> torch.Tensor:
    return torch.randint(VOCAB, (rows,), generator=torch.Generator().manual_seed(rows + 1))


def stable_rows(tokens: torch.Tensor, features: torch.Tensor) -> list[Row]:
    return [Row(int(token), t, list(range(t + 1)), features[t]) for t, token in enumerate(tokens)]


class Tree:
    """A tree of fixed width that grows by one round at a time, for runner and reference."""

    def __init__(self, width: int, rows: list[Row], words: int = 1) -> None:
        self.width, self.words, self.rows = width, words, rows
        self.length = len(rows)
        self.round = 0

    def grow(self) -> tuple[torch.Tensor, list[int], torch.Tensor]:
        """Returns tokens (K,), parent rows of the round before, and the mask (K, words)."""
        tokens = make_tokens(self.width + self.round)[: self.width]
        parents = [(3 * rank + self.round) % self.width for rank in range(self.width)]
        bits = torch.zeros(self.width, 64 * self.words, dtype=torch.bool)
        for rank in range(self.width):
            scratch = self.round * self.width + rank
            parent = self.length - 1
            seen = list(range(self.length))
            if self.round:
                parent = self.length + scratch - rank - self.width + parents[rank]
                seen = list(self.rows[parent].visible)
            seen.append(self.length + scratch)
            position = self.length + self.round
            self.rows.append(Row(int(tokens[rank]), position, seen, parent=parent))
            bits[rank, [row - self.length for row in seen if row >= self.length]] = True
        self.round += 1
        return tokens, parents, pack_bits(bits)


def pack_bits(bits: torch.Tensor) -> torch.Tensor:
    """(K, 64 W) bool to (K, W) int64, little endian."""
    rows = []
    for row in bits.view(len(bits), -1, 64).tolist():
        words = [sum(bit << j for j, bit in enumerate(word)) for word in row]
        rows.append([word - 2**64 if word >= 2**63 else word for word in words])
    return torch.tensor(rows)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_runner_equals_reference(runner: str, variant: str) -> None:
    """Prompt in two parts, three rounds of a tree, then rows that overwrite its scratch rows."""
    head = make_head(make_config(**VARIANTS[variant]))
    draft = RUNNERS[runner](head, capacity=40)
    tokens, features = make_tokens(11), make_features(11, head.config.feature_hidden_size)
    rows = stable_rows(tokens[:9], features)

    draft.extend(tokens[:6], features[:6])
    hidden, logits = draft.extend(tokens[6:9], features[6:9])
    tree = Tree(3, rows)
    results = [(hidden[None], logits[None])]
    hidden = hidden.expand(3, -1)
    for round_index in range(3):
        token_ids, parents, mask = tree.grow()
        hidden, logits = draft.expand(token_ids, hidden[parents], round_index, mask)
        results.append((hidden, logits))
    expected_hidden, expected_logits = reference_pass(head, rows)
    torch.testing.assert_close(
        torch.cat([h for h, _ in results]).double(), expected_hidden[8:], **FP32
    )
    torch.testing.assert_close(
        torch.cat([logit for _, logit in results]).double(), expected_logits[8:], **FP32
    )

    hidden, logits = draft.extend(tokens[9:], features[9:])
    expected_hidden, expected_logits = reference_pass(head, stable_rows(tokens, features))
    torch.testing.assert_close(hidden.double(), expected_hidden[-1], **FP32)
    torch.testing.assert_close(logits.double(), expected_logits[-1], **FP32)
    assert draft.lengths == [11]


@pytest.mark.parametrize("runner", RUNNERS)
def test_wide_tree_has_masks_of_several_words(runner: str) -> None:
    head = make_head(make_config())
    draft = RUNNERS[runner](head, capacity=160)
    tokens, features = make_tokens(5), make_features(5, 32)
    rows = stable_rows(tokens, features)
    hidden, _ = draft.extend(tokens, features)
    hidden = hidden.expand(40, -1)
    tree = Tree(40, rows, words=2)
    for round_index in range(3):
        token_ids, parents, mask = tree.grow()
        hidden, logits = draft.expand(token_ids, hidden[parents], round_index, mask)
    _, expected = reference_pass(head, rows)
    torch.testing.assert_close(logits.double(), expected[-40:], **FP32)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("window", [1, 3, 20, 50, 90])
def test_long_texts_in_a_window(runner: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 32 rows, in a slot that is not the first, then wide rounds of several words."""
    monkeypatch.setattr(packed_draft, "_CHUNK_ROWS", 32)
    head = make_head(make_config(sliding_window=window))
    draft = RUNNERS[runner](head, capacity=200, slots=2)
    tokens, features = make_tokens(75), make_features(75, 32)
    rows = stable_rows(tokens, features)
    draft.extend(make_tokens(9), make_features(9, 32), slot=0)
    draft.extend(tokens[:70], features[:70], slot=1)
    hidden, first = draft.extend(tokens[70:], features[70:], slot=1)
    hidden = hidden.expand(40, -1)
    tree = Tree(40, rows, words=2)
    for round_index in range(3):
        token_ids, parents, mask = tree.grow()
        hidden, logits = draft.expand(token_ids, hidden[parents], round_index, mask, slot=1)
    _, expected = reference_pass(head, rows)
    torch.testing.assert_close(first.double(), expected[74], **FP32)
    torch.testing.assert_close(logits.double(), expected[-40:], **FP32)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_low_precision_stays_close(dtype: str) -> None:
    """bf16 keeps 8 bits of a product's inputs, int8 7: a few per cent after the whole layer."""
    if not is_supported(dtype):
        pytest.skip(f"this CPU has no {dtype} products")
    head = make_head(make_config(fc_norm=True))
    exact = ModuleDraft(head, capacity=20)
    draft = PackedDraft(head, capacity=20, dtype=dtype)
    tokens, features = make_tokens(12), make_features(12, 32)
    _, expected = exact.extend(tokens, features)
    _, logits = draft.extend(tokens, features)
    bound = {"bfloat16": 0.03, "int8": 0.06}[dtype]
    assert 0 < (logits - expected).norm() / expected.norm() < bound


@pytest.mark.parametrize("runner", RUNNERS)
def test_cache_equals_fresh_prefill(runner: str) -> None:
    """60 random cycles of drafting and extending leave what one prefill would have written."""
    head = make_head(make_config())
    generator = torch.Generator().manual_seed(3)
    draft = RUNNERS[runner](head, capacity=300, slots=2)
    tokens, features = [], []
    for _ in range(60):
        rows = int(torch.randint(1, 4, (), generator=generator))
        tokens.append(torch.randint(VOCAB, (rows,), generator=generator))
        features.append(torch.randn(rows, 96, generator=generator))
        hidden, _ = draft.extend(tokens[-1], features[-1], slot=1)
        width = int(torch.randint(1, 5, (), generator=generator))
        hidden = hidden.expand(width, -1)
        for round_index in range(int(torch.randint(0, 3, (), generator=generator))):
            mask = torch.full((width, 1), 2 ** ((round_index + 1) * width) - 1)
            scratch = torch.randint(VOCAB, (width,), generator=generator)
            hidden, _ = draft.expand(scratch, hidden, round_index, mask, slot=1)
    length = draft.lengths[1]
    fresh = RUNNERS[runner](head, capacity=300)
    fresh.extend(torch.cat(tokens), torch.cat(features))
    assert draft.lengths == [0, length]
    # Products of other row counts sum in another order; nothing else may differ.
    torch.testing.assert_close(
        draft.cache.data[1, :, :, :, :length], fresh.cache.data[0, :, :, :, :length], **FP32
    )
    assert not draft.cache.data[0].any()


def test_long_prompt_runs_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    head = make_head(make_config(fc_norm=True))
    tokens, features = make_tokens(23), make_features(23, 32)
    whole = PackedDraft(head, capacity=30)
    expected = whole.extend(tokens, features)
    monkeypatch.setattr(packed_draft, "_CHUNK_ROWS", 5)
    chunked = PackedDraft(head, capacity=30)
    result = chunked.extend(tokens, features)
    torch.testing.assert_close(result, expected, **FP32)
    torch.testing.assert_close(chunked.cache.data, whole.cache.data, **FP32)
    assert chunked.lengths == [23]


def test_truncate_reset_and_resize() -> None:
    head = make_head(make_config())
    draft = PackedDraft(head, capacity=12)
    tokens, features = make_tokens(10), make_features(10, 32)
    expected = draft.extend(tokens, features)
    draft.truncate(4)
    torch.testing.assert_close(draft.extend(tokens[4:], features[4:]), expected, **FP32)
    draft.reset()
    assert draft.lengths == [0]
    draft.resize(30)
    assert draft.lengths == [0]
    assert draft.cache.capacity == 30
    torch.testing.assert_close(draft.extend(tokens, features), expected, **FP32)
    draft.extend(tokens, features)
    assert draft.lengths == [20]


@pytest.mark.parametrize("runner", RUNNERS)
def test_wrong_calls_change_nothing(runner: str) -> None:
    head = make_head(make_config())
    draft = RUNNERS[runner](head, capacity=8)
    tokens, features = make_tokens(6), make_features(6, 32)
    mask = torch.tensor([[1], [2]])
    with pytest.raises(ValueError, match="stable rows"):
        draft.expand(tokens[:2], torch.randn(2, 32), 0, mask)
    draft.extend(tokens, features)
    before = draft.cache.data.clone()
    unknown = torch.tensor([VOCAB])
    for message, call in {
        "token_ids must lie": lambda: draft.extend(unknown, features[:1]),
        "int64": lambda: draft.extend(tokens[:1].int(), features[:1]),
        "features": lambda: draft.extend(tokens[:1], features[:1, :-1]),
        "holds 8 rows": lambda: draft.extend(tokens[:3], features[:3]),
        "hidden": lambda: draft.expand(tokens[:2], torch.randn(2, 31), 0, mask),
        "mask": lambda: draft.expand(tokens[:2], torch.randn(2, 32), 0, mask[:1]),
        "cannot take 4": lambda: draft.expand(tokens[:2], torch.randn(2, 32), 1, mask),
        "length": lambda: draft.truncate(7),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    assert draft.lengths == [6]
    assert torch.equal(draft.cache.data, before)


def test_packed_draft_refuses_unknown_tokens_in_a_tree() -> None:
    draft = PackedDraft(make_head(make_config()), capacity=8)
    draft.extend(make_tokens(2), make_features(2, 32))
    with pytest.raises(ValueError, match="index"):
        draft.expand(torch.tensor([VOCAB]), torch.randn(1, 32), 0, torch.tensor([[1]]))


def test_runners_need_an_embedding_table() -> None:
    head = Eagle3DraftHead(make_config())
    with pytest.raises(ValueError, match="embed_tokens"):
        make_draft_runner(head, capacity=8)
    with pytest.raises(ValueError, match="embed_tokens"):
        head.embed(torch.tensor([0]))
    with pytest.raises(ValueError, match="embed_tokens must have shape"):
        head.set_embed_tokens(torch.zeros(VOCAB, 31))


def test_packed_draft_refuses_odd_head_dims() -> None:
    with pytest.raises(ValueError, match="head_dim"):
        PackedDraft(make_head(make_config(head_dim=12)), capacity=8)


def test_make_draft_runner_runs_an_unpackable_head_as_a_module_and_says_so() -> None:
    head = make_head(make_config(head_dim=12))
    with pytest.warns(UserWarning, match="unpacked.*head_dim"):
        assert isinstance(make_draft_runner(head, capacity=8), ModuleDraft)
    with pytest.raises(ValueError, match="head_dim"):
        make_draft_runner(head, capacity=8, dtype="float32")


def test_make_draft_runner_chooses_int8_on_the_cpu() -> None:
    runner = make_draft_runner(make_head(make_config()), capacity=8)
    assert isinstance(runner, PackedDraft)
    assert isinstance(runner, CachedDraft)
    assert runner.dtype == "int8"
    assert runner.draft_vocab_size == DRAFT_VOCAB
    assert (
        make_draft_runner(make_head(make_config()), capacity=8, dtype="float32").dtype == "float32"
    )


def test_draft_vocabulary_maps() -> None:
    head = Eagle3DraftHead(make_config(draft_vocab_size=3))
    head.set_draft_vocabulary(torch.tensor([50, 4, 9]))
    assert head.draft_to_target.tolist() == [4, 9, 50]
    assert head.d2t.tolist() == [4, 8, 48]
    assert head.t2d.nonzero().flatten().tolist() == [4, 9, 50]
    for ids in ([1, 2], [1, 1, 2], [1, 2, VOCAB], [-1, 2, 3], [1, 2, 3, 3]):
        with pytest.raises(ValueError, match="target_ids"):
            head.set_draft_vocabulary(torch.tensor(ids))
    assert head.draft_to_target.tolist() == [4, 9, 50]
    whole = Eagle3DraftHead(make_config(draft_vocab_size=VOCAB))
    assert whole.draft_to_target is None
    with pytest.raises(ValueError, match="target_ids"):
        whole.set_draft_vocabulary(torch.arange(VOCAB))


def test_embedding_table_is_not_copied() -> None:
    table = torch.randn(VOCAB, 32)
    head = Eagle3DraftHead(make_config(), embed_tokens=table)
    assert head.embed_tokens.data_ptr() == table.data_ptr()
    assert "embed_tokens" not in head.state_dict()
    assert not head.embed_tokens.requires_grad


def test_module_is_differentiable() -> None:
    head = make_head(make_config(fc_norm=True)).double()
    config = head.config
    features = torch.randn(3, 96, dtype=torch.float64, requires_grad=True)

    def run(features: torch.Tensor) -> torch.Tensor:
        cos, sin = torch.ones(3, 8).double(), torch.zeros(3, 8).double()
        groups = config.num_attention_heads // config.num_key_value_heads
        output = head.midlayer(
            head.embed(torch.tensor([1, 2, 3])),
            head.reduce(features),
            cos,
            sin,
            lambda q, k, v: q * k.repeat_interleave(groups, -2) + v.repeat_interleave(groups, -2),
        )
        return head.logits(head.feedback(output))

    assert torch.autograd.gradcheck(run, (features,), fast_mode=True)
