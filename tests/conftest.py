"""Fixtures that every test may use."""

import os
import random
from pathlib import Path

# Before anything imports huggingface_hub, which reads it once: tests never ask the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch

from eaglerl.prepare import prepare_model


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Start every test from the same random state, whichever tests ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """Folder of SmolLM2-135M-Instruct in fp32, converted on first use."""
    return prepare_model()
