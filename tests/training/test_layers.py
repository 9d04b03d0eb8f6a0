"""The hand-written gradients against finite differences, in float64."""

import torch
from torch.autograd import gradcheck

from eaglerl.eagle3.layers.rope import apply_rope
from eaglerl.training.layers import rms_norm, rotate, take_rows
from eaglerl.training.ttt_attention import make_span, ttt_attention


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_rms_norm():
    x, weight = rand(4, 6), rand(6)
    expected = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-3, torch.float64), expected)
    assert gradcheck(lambda x, w: rms_norm(x, w, 1e-3, torch.float64), (x, weight))
    assert gradcheck(lambda w: rms_norm(x.detach(), w, 1e-3, torch.float64), (weight,))


def test_rotate():
    x, angles = rand(3, 2, 8), torch.randn(3, 4, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    torch.testing.assert_close(rotate(x, cos, sin), apply_rope(x, cos, sin))
    assert gradcheck(lambda x: rotate(x, cos, sin), (x,))


def test_take_rows():
    x, rows = rand(5, 3), torch.tensor([4, 0, 2])
    assert torch.equal(take_rows(x, rows), x[rows])
    assert gradcheck(lambda x: take_rows(x, rows), (x,))


def attention_case(steps: int):
    """Two sequences of 4 and 3 keys with the queries at positions 1, 2, 3 and 0."""
    spans = [
        make_span(slice(0, 3), slice(0, 4), torch.tensor([1, 2, 3]), 3, torch.float64),
        make_span(slice(3, 4), slice(4, 7), torch.tensor([0]), 3, torch.float64),
    ]
    own = [rand(4, 2, 8) for _ in range(2 * steps)]
    return (rand(4, 2, 3, 8), rand(7, 2, 8), rand(7, 2, 8)), own, spans


def plain_attention(inputs, own) -> torch.Tensor:
    query, key, value = inputs
    steps = len(own) // 2
    visible = ([0, 1], [0, 1, 2], [0, 1, 2, 3], [4])
    rows = []
    for row, keys in enumerate(visible):
        all_keys = torch.cat([key[keys], *[k[row][None] for k in own[:steps]]])
        all_values = torch.cat([value[keys], *[v[row][None] for v in own[steps:]]])
        scores = torch.einsum("hgd,khd->hgk", query[row], all_keys) / 8**0.5
        rows.append(torch.einsum("hgk,khd->hgd", scores.softmax(-1), all_values).flatten())
    return torch.stack(rows)


def test_ttt_attention_is_one_softmax_over_both_kinds_of_keys():
    for steps in range(4):
        inputs, own, spans = attention_case(steps)
        out = ttt_attention(*inputs, spans, own[:steps], own[steps:])
        expected = plain_attention(inputs, own)
        torch.testing.assert_close(out, expected)
        grad = torch.randn_like(out)
        got = torch.autograd.grad(out, (*inputs, *own), grad)
        wanted = torch.autograd.grad(expected, (*inputs, *own), grad)
        torch.testing.assert_close(got, wanted)
