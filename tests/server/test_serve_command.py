"""`eaglerl serve` as a process: it says where it is, answers, and ends at SIGTERM or Ctrl-C."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.cli.serve_command import served_name
from eaglerl.cost import OnlineCost
from eaglerl.server.run import is_local, listen, run_server

from .tiny import PATIENCE, tiny_folders, tiny_service

EAGLERL = [sys.executable, "-c", "from eaglerl.cli import main; main()"]


def test_it_serves_until_it_is_terminated_and_keeps_what_it_learned(tmp_path: Path) -> None:
    target, head = tiny_folders(tmp_path)
    arguments = ["--model", str(target), "--draft", str(head), "--port", "0"]
    process = subprocess.Popen(
        [*EAGLERL, "serve", *arguments, "--draft-dtype", "float32"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"EAGLERL_CACHE": str(tmp_path / "cache")},
    )
    try:
        told = ""
        while "live view:" not in told:
            line = process.stderr.readline()
            assert line, told
            told += line
        address = re.search(r"live view: (http://127\.0\.0\.1:\d+)/", told)[1]
        assert httpx.get(f"{address}/", timeout=PATIENCE).status_code == 200
        request = {"model": "tiny", "prompt": "on and on", "max_tokens": 900, "stream": True}
        url = f"{address}/v1/completions"
        with httpx.stream("POST", url, json=request, timeout=PATIENCE) as response:
            lines = (line for line in response.iter_lines() if line)
            assert json.loads(next(lines).removeprefix("data: "))["model"] == "tiny"
            process.terminate()
            # It ended within the cycle that was at work, or was done already.
            last = list(lines)[-1]
        assert "server_stopping" in last or last == "data: [DONE]"
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read().splitlines()[-1] == "stopped"
    finally:
        process.kill()
        process.wait()
    (kept,) = (tmp_path / "cache" / "costs").iterdir()
    assert OnlineCost.from_json(kept).cycles > 0


def test_ctrl_c_ends_it_as_well() -> None:
    def interrupt_later(address: str) -> None:
        def interrupt() -> None:
            httpx.get(f"{address}/", timeout=PATIENCE)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()

    before = signal.getsignal(signal.SIGTERM)
    run_server(tiny_service(), port=0, on_ready=interrupt_later)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--mode", "plain", "--tree", "4,1,4"], 2, "--mode"),
        (["--port", "70000"], 2, "--port"),
        (["--model", "/nowhere", "--port", "0"], 1, "--model must be one of"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, sentence: str) -> None:
    result = CliRunner().invoke(app, ["serve", *arguments], env={"TERM": "dumb"})
    assert result.exit_code == code
    assert sentence in result.stderr


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.4", False),
        ("example.org", False),
    ],
)
def test_which_addresses_are_this_machine_alone(host: str, local: bool) -> None:
    assert is_local(host) is local


def test_a_model_is_called_like_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my-model"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    for written in (".", "./", "~", "inner/..", str(folder), f"{folder}/"):
        assert served_name(written) == "my-model"
    assert served_name("../linked") == "linked"
    assert served_name("smollm2-135m-instruct") == "smollm2-135m-instruct"


def test_an_address_in_use_is_told_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        # A model that is not there is not what it complains about: it has not looked for one.
        arguments = ["serve", "--port", port, "--model", "/nowhere"]
        result = CliRunner().invoke(app, arguments, env={"TERM": "dumb"})
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in result.stderr
    assert "/nowhere" not in result.stderr


@pytest.mark.parametrize("host", ["256.0.0.1", "no such host", "x" * 70 + ".example", "\ud800"])
def test_an_address_that_is_none_is_told_in_a_sentence(host: str) -> None:
    with pytest.raises(OSError, match="cannot listen on"):
        listen(host, 0)
