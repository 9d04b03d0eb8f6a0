"""Atomic writing."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eaglerl.files import (
    AlreadyLockedError,
    atomic_path,
    exclusive_file,
    exclusive_folder,
    link_or_copy,
)

from .lock_holder import lock_holder


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


def test_a_second_writer_is_told_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    with lock_holder("exclusive_folder", folder) as first:
        for path in (folder, "run", tmp_path / "link", tmp_path / "run" / ".." / "run"):
            with pytest.raises(AlreadyLockedError) as refused, exclusive_folder(path):
                pass
            assert f"the folder {str(path)!r}" in str(refused.value)
            assert f"pid {first.pid})" in str(refused.value)
            assert refused.value.pid == first.pid
    with exclusive_folder(folder):
        assert [file.name for file in folder.iterdir()] == [".lock"]
    assert not list(folder.iterdir())


def test_a_link_to_a_file_has_its_lock(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "link.jsonl").symlink_to(tmp_path / "a" / "rows.jsonl")
    refused = pytest.raises(AlreadyLockedError, match=r"link\.jsonl")
    with lock_holder("exclusive_file", tmp_path / "a" / "rows.jsonl"):
        with refused, exclusive_file(tmp_path / "b" / "link.jsonl"):
            pass
        with exclusive_file(tmp_path / "a" / "other.jsonl"):
            pass
    assert not list((tmp_path / "a").iterdir())


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with lock_holder("exclusive_folder", tmp_path) as first:
        first.kill()
        first.wait()
        assert (tmp_path / ".lock").read_text().startswith(f"{first.pid} ")
        with exclusive_folder(tmp_path):
            assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} ")
    assert not list(tmp_path.iterdir())


def test_who_waits_gets_it_next(tmp_path: Path) -> None:
    said: list[str] = []
    with lock_holder("exclusive_folder", tmp_path) as first:

        def waiting(sentence: str) -> None:
            said.append(sentence)
            assert first.stdin is not None
            first.stdin.close()

        with exclusive_folder(tmp_path, waiting=waiting):
            assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} ")
        first.stdin = None
    assert [f"pid {first.pid}" in sentence for sentence in said] == [True]


def test_no_two_of_many_hold_it_at_once(tmp_path: Path) -> None:
    # Each adds 1 by reading and writing: without a lock some are lost.
    count = (
        "import sys, pathlib; from eaglerl.files import exclusive_file\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "for _ in range(200):\n"
        "    with exclusive_file(path, waiting=lambda by: None):\n"
        "        path.write_text(str(int(path.read_text()) + 1))"
    )
    total = tmp_path / "total"
    total.write_text("0")
    counters = [subprocess.Popen([sys.executable, "-c", count, str(total)]) for _ in range(4)]
    assert [counter.wait() for counter in counters] == [0] * 4
    assert total.read_text() == "800"


def test_threads_of_one_process_are_two_writers(tmp_path: Path) -> None:
    with exclusive_folder(tmp_path), ThreadPoolExecutor(1) as pool:
        found = pool.submit(exclusive_folder(tmp_path).__enter__).exception()
    assert isinstance(found, AlreadyLockedError)
    assert found.pid == os.getpid()


class TestLinkOrCopy:
    def test_a_second_name(self, tmp_path: Path) -> None:
        source, link, path = (tmp_path / name for name in ("source", "link", "path"))
        source.write_text("text")
        source.chmod(0o600)
        link.symlink_to(source)
        path.write_text("old")
        # Again, too: renaming one name of a file to another one of it does nothing.
        for _ in range(2):
            link_or_copy(link, path)
            assert not path.is_symlink()
            assert path.samefile(source)
            assert source.stat().st_mode & 0o777 == 0o600
            assert sorted(tmp_path.iterdir()) == sorted([source, link, path])

    def test_a_copy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source, path = tmp_path / "source", tmp_path / "path"
        source.write_text("text")

        def link(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr("os.link", link)
        link_or_copy(source, path)
        assert path.read_text() == "text"
        assert not path.samefile(source)
        assert sorted(tmp_path.iterdir()) == sorted([source, path])

    def test_no_source(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            link_or_copy(tmp_path / "none", tmp_path / "path")
        assert list(tmp_path.iterdir()) == []
