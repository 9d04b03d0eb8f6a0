"""Which dtype matrix products run in."""

import pytest
import torch

from eaglerl.training import precision
from eaglerl.training.precision import resolve_dtype


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_follows_the_cpu(monkeypatch, supported, dtype):
    monkeypatch.setattr(precision, "_cpu_multiplies_bfloat16", lambda: supported)
    assert resolve_dtype("auto") == dtype
    assert resolve_dtype("float32") == torch.float32
    assert resolve_dtype("bfloat16") == torch.bfloat16


def test_a_torch_without_the_probes_means_float32(monkeypatch):
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, probe, raising=False)
    assert resolve_dtype("auto") == torch.float32


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="int8"):
        resolve_dtype("int8")
