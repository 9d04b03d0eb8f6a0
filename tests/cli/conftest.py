"""A cache folder of their own for commands, which keep there what they measure and learn."""

from pathlib import Path

import pytest

from eaglerl.files import cache_root


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, but for the models of the user's own."""
    models = cache_root() / "models"
    models.mkdir(parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "models").symlink_to(models)
    monkeypatch.setenv("EAGLERL_CACHE", str(folder))
    return folder
