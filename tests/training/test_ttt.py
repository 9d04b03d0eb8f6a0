"""Training-time test against incremental drafting with the head's own methods, in float64."""

import math

import pytest
import torch

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead, RMSNorm
from eaglerl.eagle3.layers.rope import rope_tables
from eaglerl.training.batches import FeatureSequence, pack
from eaglerl.training.ttt import TrainingTimeTest

from .tiny import VOCAB, WIDTH, tiny_head, tiny_sequence

STEPS = 4


class CachedAttention:
    """Attention of one row at a time over a growing cache, written out."""

    def __init__(self, group: int) -> None:
        self.group = group
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        self.keys.append(key)
        self.values.append(value)
        outputs = []
        for head in range(query.shape[0]):
            keys = torch.stack([k[head // self.group] for k in self.keys])
            values = torch.stack([v[head // self.group] for v in self.values])
            weights = torch.softmax(keys @ query[head] / math.sqrt(query.shape[-1]), 0)
            outputs.append(weights @ values)
        return torch.stack(outputs)


def drafted_logits(
    head: Eagle3DraftHead, sequence: FeatureSequence, row: int, steps: int
) -> list[torch.Tensor]:
    """Logits of each step when drafting from real features of rows 0..row, forced ids after it.

    This is decoding (EAGLE-3's extend, then one drafted token at a time), not training.
    """
    config = head.config
    tables = rope_tables(config.head_dim, config.rope_parameters, 64, max_position_embeddings=64)
    cos, sin = (table.to(head.fc.weight.dtype) for table in tables)
    attention = CachedAttention(config.num_attention_heads // config.num_key_value_heads)
    for position in range(row + 1):
        feature = head.reduce(sequence.features[position])
        embedding = head.embed(sequence.token_ids[position + 1])
        output = head.midlayer(embedding, feature, cos[position], sin[position], attention)
    logits = [head.logits(output)]
    for step in range(1, steps):
        embedding = head.embed(sequence.token_ids[row + 1 + step])
        place = row + step
        output = head.midlayer(embedding, head.feedback(output), cos[place], sin[place], attention)
        logits.append(head.logits(output))
    return logits


def reference(
    head: Eagle3DraftHead,
    lm_head: torch.Tensor,
    sequences: list[FeatureSequence],
    decay: float = 0.8,
) -> tuple[torch.Tensor, list[torch.Tensor], list[list[bool]]]:
    """Loss, mean losses and hits of each step, from the definition."""
    kept = head.draft_to_target
    losses: list[list[torch.Tensor]] = [[] for _ in range(STEPS)]
    hits: list[list[bool]] = []
    for sequence in sequences:
        ids, length = sequence.token_ids, len(sequence.token_ids)
        for row in range(sequence.prompt_length - 1, length - 2):
            steps = min(STEPS, length - 2 - row)
            hits.append([])
            for step, logits in enumerate(drafted_logits(head, sequence, row, steps)):
                teacher = sequence.final_hidden[row + step + 1] @ lm_head.T
                written = int(ids[row + step + 2])
                best = int(kept[teacher[kept].argmax()])
                if written not in kept and teacher[written] > teacher[best]:
                    hits[-1].append(False)
                    continue
                probabilities = torch.softmax(teacher[kept], 0)
                losses[step].append(-(probabilities * torch.log_softmax(logits, 0)).sum())
                hits[-1].append(int(kept[logits.argmax()]) == best)
    means = [torch.stack(part).mean() for part in losses]
    return sum(decay**step * mean for step, mean in enumerate(means)), means, hits


@pytest.fixture(autouse=True)
def _norms_in_float64(monkeypatch) -> None:
    """The head's RMSNorm computes in fp32 whatever its input; the reference must not."""

    def forward(self: RMSNorm, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    monkeypatch.setattr(RMSNorm, "forward", forward)


@pytest.fixture
def lm_head() -> torch.Tensor:
    return torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(5)).double()


@pytest.fixture
def sequences() -> list[FeatureSequence]:
    # The third has fewer draft rows than there are steps, the last a prompt of one token.
    sizes = ((5, 9), (3, 12), (6, 3), (1, 6))
    return [tiny_sequence(*size, seed=seed) for seed, size in enumerate(sizes)]


def test_loss_and_gradients_are_those_of_forced_drafting(lm_head, sequences):
    expected_head, head = tiny_head(), tiny_head()
    expected, means, hits = reference(expected_head, lm_head, sequences)
    result = TrainingTimeTest(head, lm_head, steps=STEPS, dtype=torch.float64)(
        pack(sequences, STEPS)
    )
    torch.testing.assert_close(result.loss, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.step_losses, torch.stack(means), rtol=1e-9, atol=1e-9)
    assert result.counted.sum(1).tolist() == [len(row) for row in hits]
    got = [row[: len(hit)].tolist() for row, hit in zip(result.correct, hits, strict=True)]
    assert got == hits
    expected.backward()
    result.loss.backward()
    for (name, parameter), wanted in zip(
        head.named_parameters(), expected_head.parameters(), strict=True
    ):
        torch.testing.assert_close(
            parameter.grad, wanted.grad, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_bfloat16_products_are_near_the_exact_ones(lm_head, sequences):
    exact_head, head = tiny_head(), tiny_head(torch.float32)
    exact = TrainingTimeTest(exact_head, lm_head, steps=STEPS, dtype=torch.float64)(
        pack(sequences, STEPS)
    )
    result = TrainingTimeTest(head, lm_head.float(), steps=STEPS, dtype=torch.bfloat16)(
        pack(sequences, STEPS)
    )
    # Eight bits in every factor, over four steps that build on each other.
    assert abs(result.loss.item() / exact.loss.item() - 1) < 0.02
    exact.loss.backward()
    result.loss.backward()
    for wanted, parameter in zip(exact_head.parameters(), head.parameters(), strict=True):
        assert parameter.grad.dtype == torch.float32
        cosine = torch.cosine_similarity(
            parameter.grad.double().flatten(), wanted.grad.flatten(), dim=0
        )
        assert cosine.item() > 0.98


def test_without_pruning_and_without_fc_norm(lm_head, sequences):
    changes = {"draft_vocab_size": VOCAB, "fc_norm": False}
    head = tiny_head(**changes)
    result = TrainingTimeTest(head, lm_head, steps=1, dtype=torch.float64)(pack(sequences, 1))
    losses = []
    for sequence in sequences:
        for row in range(sequence.prompt_length - 1, len(sequence.token_ids) - 2):
            (logits,) = drafted_logits(head, sequence, row, 1)
            teacher = torch.softmax(sequence.final_hidden[row + 1] @ lm_head.T, 0)
            losses.append(-(teacher * torch.log_softmax(logits, 0)).sum())
    torch.testing.assert_close(result.loss, torch.stack(losses).mean(), rtol=1e-9, atol=1e-9)


def test_a_fraction_of_the_rows_goes_deeper(lm_head, sequences):
    head = tiny_head()
    ttt = TrainingTimeTest(head, lm_head, steps=STEPS, dtype=torch.float64)
    batch = pack(sequences, STEPS)
    whole = ttt(batch)
    part = ttt(batch, deep_fraction=0.5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(part.counted[:, 0], whole.counted[:, 0])
    deep = part.counted[:, 1]
    assert 0 < deep.sum() < whole.counted[:, 1].sum()
    # The rows that continue are computed as in the whole batch.
    assert torch.equal(part.counted[deep], whole.counted[deep])
    assert torch.equal(part.correct[deep], whole.correct[deep])
    torch.testing.assert_close(part.step_losses[0], whole.step_losses[0])


def test_a_sequence_does_not_see_its_neighbours(lm_head, sequences):
    # With the whole vocabulary every counted row is in the mean.
    head = tiny_head(draft_vocab_size=VOCAB)
    ttt = TrainingTimeTest(head, lm_head, steps=1, dtype=torch.float64)
    together = ttt(pack(sequences, 1))
    alone = [ttt(pack([sequence], 1)) for sequence in sequences]
    assert torch.equal(together.correct, torch.cat([result.correct for result in alone]))
    total = sum(result.loss * result.counted.sum() for result in alone)
    torch.testing.assert_close(together.loss, total / together.counted.sum())


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_before_residual": True},
        {"norm_output": False},
        {"norm_feedback": True},
        {"norm_before_fc": True, "fc_norm": False},
    ],
)
def test_other_kinds_of_heads_are_refused(lm_head, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        TrainingTimeTest(tiny_head(**changes), lm_head, steps=1)
