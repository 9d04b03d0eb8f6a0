"""Muon against torch's own, which always iterates in bfloat16."""

import pytest
import torch

from eaglerl.training.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_steps_are_those_of_torch(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape, generator=generator))
    theirs = torch.nn.Parameter(ours.detach().clone())
    optimizer = Muon([ours], lr=0.01, weight_decay=0.1, dtype=torch.bfloat16)
    reference = torch.optim.Muon(
        [theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
    # In bfloat16 the order of operations may round differently: 2^-8 of an update of about 0.01.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    assert optimizer.state_dict()["state"].keys() == reference.state_dict()["state"].keys()
    state, wanted = (o.state_dict()["state"][0] for o in (optimizer, reference))
    assert torch.equal(state["momentum_buffer"], wanted["momentum_buffer"])


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_the_iteration_keeps_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = u.T @ orthogonalize(matrix).double() @ v.T
    # float32 rounding leaves this much off the diagonal.
    torch.testing.assert_close(values, values.diagonal().diag(), rtol=0, atol=1e-4)
    assert values.diagonal().min() > 0.6
    assert values.diagonal().max() < 1.3


def test_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"matrices must have 2 dimensions, got \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1, weight_decay=0.0)
