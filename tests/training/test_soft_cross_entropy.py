"""Soft cross-entropy against autograd of its definition, in float64."""

import pytest
import torch

from eaglerl.training.soft_cross_entropy import (
    BLOCK_ROWS,
    GROUP_BLOCKS,
    Teacher,
    soft_cross_entropy,
)


def make_case(rows: int, teacher_rows: int, vocab: int = 11, width: int = 5):
    hidden = torch.randn(rows, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocab, width, dtype=torch.float64, requires_grad=True)
    probabilities = torch.softmax(3 * torch.randn(teacher_rows, vocab, dtype=torch.float64), -1)
    draft_ids = probabilities.argmax(-1)
    draft_ids[::4] = -1
    index = torch.randint(teacher_rows, (rows,))
    return hidden, weight, Teacher(probabilities, draft_ids), index, torch.rand(rows).double()


# One block, a ragged last block, more than one group.
@pytest.mark.parametrize("rows", [1, 7, BLOCK_ROWS + 3, BLOCK_ROWS * GROUP_BLOCKS + BLOCK_ROWS + 1])
def test_loss_and_gradients(rows):
    hidden, weight, teacher, index, row_weights = make_case(rows, teacher_rows=9)
    total, losses, correct = soft_cross_entropy(hidden, weight, teacher, index, row_weights)
    logits = hidden @ weight.T
    expected = -(teacher.probabilities[index] * torch.log_softmax(logits, -1)).sum(-1)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(total, (expected * row_weights).sum())
    assert torch.equal(correct, logits.argmax(-1) == teacher.draft_ids[index])
    wanted = torch.autograd.grad(3 * (expected * row_weights).sum(), (hidden, weight))
    got = torch.autograd.grad(3 * total, (hidden, weight))
    torch.testing.assert_close(got, wanted)


def test_without_gradients_it_gives_the_same():
    hidden, weight, teacher, index, row_weights = make_case(5, teacher_rows=4)
    with_gradient = soft_cross_entropy(hidden, weight, teacher, index, row_weights)
    with torch.no_grad():
        without = soft_cross_entropy(hidden, weight, teacher, index, row_weights)
    for one, other in zip(with_gradient, without, strict=True):
        assert torch.equal(one, other)


def test_confident_logits_neither_overflow_nor_vanish():
    hidden = torch.tensor([[400.0], [-400.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    teacher = Teacher(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    total, losses, correct = soft_cross_entropy(
        hidden, weight, teacher, torch.tensor([0, 0]), torch.ones(2)
    )
    assert losses.tolist() == [0.0, 800.0]
    assert correct.tolist() == [True, False]
    total.backward()
    # The gradient by z is (0, 0) and (-1, 1).
    assert hidden.grad.tolist() == [[0.0], [-2.0]]


def test_bfloat16_is_as_near_as_its_eight_bits_allow():
    hidden, weight, teacher, index, row_weights = make_case(300, teacher_rows=9, vocab=64)
    exact = soft_cross_entropy(hidden, weight, teacher, index, row_weights)[0]
    exact_gradients = torch.autograd.grad(exact, (hidden, weight))
    master = weight.detach().float().requires_grad_()
    low = hidden.detach().bfloat16().requires_grad_()
    teacher = Teacher(teacher.probabilities.bfloat16(), teacher.draft_ids)
    total = soft_cross_entropy(low, master, teacher, index, row_weights)[0]
    gradients = torch.autograd.grad(total, (low, master))
    assert gradients[1].dtype == torch.float32
    # Each of the rounded factors is off by up to 2^-9.
    assert abs(total.item() / exact.item() - 1) < 2**-8
    for got, wanted in zip(gradients, exact_gradients, strict=True):
        assert float((got.double() - wanted).norm() / wanted.norm()) < 2**-6
