"""Memory of the commands: a process of its own each, and the most that it has had resident."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from eaglerl.packaged_models import DEFAULT_MODEL

#: Runs the command line, and says at the end how many kB were resident at most and how many are
#: pages of files: of the libraries the system maps as many as it has at hand, 170 to 260 MB.
_COMMAND = """
import runpy, sys
try:
    runpy.run_module("eaglerl", run_name="__main__", alter_sys=True)
finally:
    with open("/proc/self/status") as file:
        sizes = dict(line.split(":", 1) for line in file)
    print(*(sizes[name].split()[0] for name in ("VmHWM", "RssFile")), file=sys.stderr)
"""
GENERATE_MB, SERVER_MB = 540, 900  # without and with the pages of files

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the system says nothing of its processes"
)


@pytest.mark.usefixtures("smollm2_path")
def test_generating_a_text() -> None:
    arguments = ["generate", "Hello", "--max-new-tokens", "32"]
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Hello" in done.stdout
    peak, files = map(int, done.stderr.splitlines()[-1].split())
    assert (peak - files) / 1000 < GENERATE_MB


@pytest.mark.usefixtures("smollm2_path")
def test_a_server_that_has_answered() -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "eaglerl", "serve", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
    )
    try:
        address = _address(server)
        body = {
            "model": DEFAULT_MODEL,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 32,
        }
        request = urllib.request.Request(
            f"{address}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert json.load(answer)["choices"][0]["message"]["content"]
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1000 < SERVER_MB
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)


def _address(server: subprocess.Popen) -> str:
    """Read what a server says until it names its address."""
    deadline, said = time.monotonic() + 120, ""
    while time.monotonic() < deadline:
        line = server.stderr.readline()
        said += line
        if found := re.search(r"http://[\d.]+:\d+", line):
            return found[0]
        if not line:
            break
    raise AssertionError(f"the server names no address: {said}")
