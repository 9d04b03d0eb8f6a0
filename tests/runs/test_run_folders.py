"""Run folders: broken checkpoints are skipped, files of earlier releases are read."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eaglerl.runs.checkpoints import HEAD_FORMAT, CheckpointFolder, read_checkpoint
from eaglerl.runs.extras import TRAIN_LIBRARIES, new_figure
from eaglerl.runs.head_run import HeadRun
from eaglerl.runs.policy_run import PolicyRun
from eaglerl.runs.run_log import RunLog


def save(run: HeadRun | PolicyRun, step: int) -> Path:
    return run.checkpoints.save(step, {"weight": torch.full((64,), float(step))}, {"seconds": 1.0})


@pytest.fixture(params=["head", "policy"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> HeadRun | PolicyRun:
    return HeadRun(tmp_path) if request.param == "head" else PolicyRun(tmp_path, {"seed": 0})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_a_truncated_checkpoint_is_skipped_with_a_warning(run: HeadRun | PolicyRun) -> None:
    for step in (3, 7):
        save(run, step)
    truncate(run.checkpoints.files()[-1])
    with pytest.warns(UserWarning, match=r"skipped a broken checkpoint: .*step-0+7\.safetensors"):
        checkpoint = run.checkpoints.newest()
    assert checkpoint is not None
    assert checkpoint.step == 3
    assert torch.equal(checkpoint.tensors["weight"], torch.full((64,), 3.0))


def test_what_is_saved_after_a_broken_checkpoint_stays(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, {}, keep=1)
    folder.save(7, {"weight": torch.ones(64)}, {})
    truncate(folder.files()[-1])
    path = folder.save(5, {"weight": torch.ones(64)}, {})
    assert path.exists()


def test_the_files_of_earlier_runs_are_read(tmp_path: Path) -> None:
    head, policy = tmp_path / "step-00000012.safetensors", tmp_path / "step-0000000012.safetensors"
    tensors = {"weight": torch.arange(4.0)}
    save_file(tensors, head, metadata={"info": json.dumps({"seconds": 2.5})})
    header = {
        "format": "eaglerl-policy-checkpoint",
        "version": 1,
        "step": 12,
        "configuration": {"seed": 3},
        "info": {"records": []},
    }
    save_file(tensors, policy, metadata={"header": json.dumps(header)})
    read = read_checkpoint(head, HEAD_FORMAT)
    assert (read.step, read.info, read.configuration) == (12, {"seconds": 2.5}, {})
    read = read_checkpoint(policy)
    assert (read.step, read.info, read.configuration) == (12, {"records": []}, {"seed": 3})
    # Each kind sees only its own files.
    assert CheckpointFolder(tmp_path, {}, form=HEAD_FORMAT).files() == [head]
    assert CheckpointFolder(tmp_path, {}).files() == [policy]


@pytest.mark.parametrize("library", TRAIN_LIBRARIES)
def test_a_missing_library_names_its_extra(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == library else found(name)
    )
    message = rf"training needs {library}: install the extra with pip install 'eaglerl\[train\]'"
    with pytest.raises(ImportError, match=message):
        PolicyRun(tmp_path, {})
    with pytest.raises(ImportError, match=message):
        HeadRun(tmp_path).open_logs(0)
    with pytest.raises(ImportError, match=message):
        new_figure(1, 1) if library == "matplotlib" else RunLog(tmp_path)
