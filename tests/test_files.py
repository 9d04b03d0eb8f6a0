"""Atomic writing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eaglerl.files import atomic_path


def test_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "table.json"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_failure_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "table.json"
    target.write_text("old")

    def fail_half_way() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "table.json"
    write = (
        "import sys, time; from eaglerl.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); print(temporary, flush=True); time.sleep(600)"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", write, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    leftover = Path(killed.stdout.readline().strip())
    other = tmp_path / ".other.json.12345678.tmp"
    other.touch()
    # As long as it is being written, it is none.
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert leftover.read_text() == "half"
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert leftover.exists()
    with atomic_path(target) as temporary:
        temporary.write_text("newer")
    assert target.read_text() == "newer"
    assert sorted(tmp_path.iterdir()) == [other, target]
