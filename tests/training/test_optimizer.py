"""Optimizer groups, its state on disk, and the schedule."""

import pytest
import torch

from eaglerl.training.optimizer import DraftOptimizer, learning_rate_scale

from .tiny import tiny_head


def give_gradients(head, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_the_state_survives_a_round_trip():
    head, copy = tiny_head(torch.float32), tiny_head(torch.float32)
    optimizer = DraftOptimizer(head)
    for seed in range(3):
        give_gradients(head, seed)
        optimizer.step(0.5)
    copy.load_state_dict(head.state_dict())
    restored = DraftOptimizer(copy)
    restored.load_state_tensors({k: v.clone() for k, v in optimizer.state_tensors().items()})
    for each, its_optimizer in ((head, optimizer), (copy, restored)):
        give_gradients(each, 9)
        its_optimizer.step(1.0)
    for one, other in zip(head.parameters(), copy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_matrices_get_orthogonal_steps_and_the_output_layer_does_not():
    head = tiny_head(torch.float32)
    before = {name: value.detach().clone() for name, value in head.named_parameters()}
    give_gradients(head, 0)
    DraftOptimizer(head, learning_rate=1e-2, weight_decay=0.0).step(1.0)

    def spread(name: str) -> float:
        """Largest singular value of a step, relative to the smallest."""
        values = torch.linalg.svdvals(before[name] - head.get_parameter(name).detach())
        return float(values[0] / values[-1])

    # Muon's Newton-Schulz iteration leaves singular values between about 0.7 and 1.2.
    assert spread("midlayer.mlp.gate_proj.weight") < 2
    assert spread("lm_head.weight") > 3


def test_gradients_are_clipped_and_cleared():
    head = tiny_head(torch.float32)
    give_gradients(head, 0)
    expected = torch.cat([p.grad.flatten() for p in head.parameters()]).norm()
    assert DraftOptimizer(head).step(0.0) == pytest.approx(float(expected), rel=1e-5)
    assert all(parameter.grad is None for parameter in head.parameters())


def test_the_learning_rate_rises_and_falls_linearly():
    scales = [learning_rate_scale(p, warmup=0.1, final=0.05) for p in (0.05, 0.1, 0.55, 1.0, 1.5)]
    assert scales == pytest.approx([0.5, 1.0, 0.525, 0.05, 0.05])
    assert learning_rate_scale(0.0, warmup=0.0, final=0.1) == 1.0
