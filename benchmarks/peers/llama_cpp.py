"""llama.cpp in the comparison: its build, llama-server and llama-bench."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

from peer_environments import converters, make_folder, run
from peer_process import Child

#: The package that carries llama.cpp's source.
PACKAGE = "llama_cpp_python-0.3.36"
_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
)
_TILES = Path("ggml/src/ggml-cpu/amx/mmq.cpp")
_PROGRAMS = ("llama-server", "llama-bench")
_MARKER = "complete"
_CONTEXT = 4096
_START_SECONDS, _ANSWER_SECONDS = 120.0, 600.0


def source(folder: Path) -> Path:
    """Return llama.cpp's source; download and unpack it first if need be."""
    return make_folder(folder / PACKAGE, _download) / "vendor" / "llama.cpp"


def _download(to: Path) -> None:
    name, version = PACKAGE.rsplit("-", 1)
    package = name.replace("_", "-")
    to.mkdir()
    command: list[str | Path] = [converters(to.parent) / "python", "-m", "pip", "download"]
    command += ["--quiet", "--no-deps", "--no-binary", package, f"{package}=={version}"]
    run(command, cwd=to)
    archive = to / f"{PACKAGE}.tar.gz"
    with tarfile.open(archive) as content:
        content.extractall(to, filter="data")
    for entry in (to / PACKAGE).iterdir():
        entry.rename(to / entry.name)
    (to / PACKAGE).rmdir()
    archive.unlink()
    keep_tile_config(to / "vendor" / "llama.cpp" / _TILES)


def keep_tile_config(file: Path) -> None:
    """Make llama.cpp keep the AMX tile configuration that it writes on the stack.

    GCC 12 takes _tile_loadconfig for a read of 8 bytes and drops the stores to the other 56, so
    that the first product ends with a segmentation fault. The added line reads all of them.

    Raises:
        RuntimeError: the source is another than expected.
    """
    text = file.read_text(encoding="utf-8")
    call = "    _tile_loadconfig(&tc);\n"
    if text.count(call) != 1:
        raise RuntimeError(f"{file} must load one tile configuration")
    text = text.replace(call, f'    __asm__ volatile("" ::"m"(tc));\n{call}')
    file.write_text(text, encoding="utf-8")


def build(folder: Path) -> Path:
    """Return the folder with llama-server and llama-bench; build them first if need be.

    On two cores this takes half an hour; an interrupted build goes on where it was.
    """
    made = folder / "llama.cpp"
    if not (made / _MARKER).is_file():
        tools = converters(folder)
        configure: list[str | Path] = [tools / "cmake", "-G", "Ninja", "-S", source(folder)]
        run([*configure, "-B", made, f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", *_FLAGS])
        run([tools / "cmake", "--build", made, "--target", *_PROGRAMS])
        (made / _MARKER).touch()
    return made / "bin"


class LlamaServer:
    """A llama-server with one model and one way to draft, on a free port of this machine."""

    def __init__(
        self, name: str, program: Path, model: Path, options: list[str], threads: int, log: Path
    ) -> None:
        """Remember how to start it; `renew` starts it.

        Args:
            name: what messages call it.
            program: llama-server.
            model: a GGUF file.
            options: further arguments.
            threads: for prompts and for decoding.
            log: file for its stderr.
        """
        self._name, self._log = name, log
        self._command = [program, "-m", model, "-t", threads, "-tb", threads, "-np", 1]
        self._command += ["-c", _CONTEXT, "--host", "127.0.0.1", *options]
        # No answer may profit from the one before: neither a prefix that is kept in the slot (see
        # `decode`) nor one in the host's memory.
        self._command += ["--cache-ram", 0]
        self._child: Child | None = None
        self._port = 0

    def renew(self) -> None:
        """Start it, or start it again: its n-gram types remember earlier answers.

        Raises:
            RuntimeError: it ended, or does not answer.
        """
        self.close()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        command = [*map(str, self._command), "--port", str(self._port)]
        self._child = Child(self._name, command, self._log)
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            if self._child.process.poll() is not None:
                raise self._child.ended()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._name} was not ready after {_START_SECONDS:.0f} s")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            return self._request("GET", "/health", None)[0] == 200
        except OSError:
            return False

    def decode(self, prompt: list[int], count: int) -> dict[str, Any]:
        """Decode greedily; times are the server's own.

        Raises:
            RuntimeError: the server ended, or answers something else.
        """
        assert self._child is not None, "renew comes first"
        try:
            content = self._complete(prompt, count)
        except (OSError, http.client.HTTPException):
            if self._child.process.poll() is not None:
                raise self._child.ended() from None
            raise
        return read_completion(json.loads(content), len(prompt), count)

    def cycles(self, prompt: list[int], count: int) -> tuple[list[int], list[int]]:
        """Decode greedily, past tokens that end a text.

        Returns:
            The new tokens, and how many drafted tokens each cycle accepted.

        Raises:
            RuntimeError: the server answers something else.
        """
        content = self._complete(
            prompt, count, ignore_eos=True, stream=True, timings_per_token=True
        )
        return read_cycles(content.decode())

    def _complete(self, prompt: list[int], count: int, **more: bool) -> bytes:
        """Return the answer to a greedy request with further options."""
        task: dict[str, Any] = {
            "prompt": prompt,
            "n_predict": count,
            "temperature": 0,
            "top_k": 1,
            "cache_prompt": False,
            "return_tokens": True,
            **more,
        }
        status, content = self._request("POST", "/completion", task)
        if status != 200:
            raise RuntimeError(f"{self._name} answered with status {status}: {content[:500]!r}")
        return content

    def _request(self, method: str, path: str, body: object) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_SECONDS)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def close(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.close()
            self._child = None


def read_completion(answer: dict[str, Any], prompt_rows: int, count: int) -> dict[str, Any]:
    """Return an answer of ``/completion`` as the comparison keeps it.

    Args:
        answer: the server's JSON object.
        prompt_rows: tokens of the prompt.
        count: tokens that were asked for.

    Raises:
        RuntimeError: a part of the prompt came from a cache, or there are no tokens.
    """
    timings = answer["timings"]
    if timings["prompt_n"] != prompt_rows:
        raise RuntimeError(
            f"llama-server read {timings['prompt_n']} of the prompt's {prompt_rows} tokens"
        )
    # A draft that is accepted as a whole may pass the limit.
    tokens = answer["tokens"]
    if not tokens:
        raise RuntimeError(f"llama-server returned no tokens: {answer}")
    return {
        "tokens": tokens[:count],
        "generated": timings["predicted_n"],
        "prompt_tokens": 1,
        "prompt_seconds": timings["prompt_ms"] / 1e3,
        "decode_seconds": timings["predicted_ms"] / 1e3,
        "drafted": timings.get("draft_n", 0),
        "accepted": timings.get("draft_n_accepted", 0),
    }


def read_cycles(stream: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a stream with times per token, and what each cycle accepted.

    The tokens of a cycle come one by one, all with the numbers of drafted and accepted tokens after
    it.
    """
    tokens: list[int] = []
    counts = [(0, 0)]
    for line in stream.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            tokens += event["tokens"]
            timings = event["timings"]
            now = (timings.get("draft_n", 0), timings.get("draft_n_accepted", 0))
            if now[0] > counts[-1][0]:
                counts.append(now)
    return tokens, [after - before for (_, before), (_, after) in itertools.pairwise(counts)]


def bench_passes(program: Path, model: Path, rows: int, repeats: int, threads: int) -> list[float]:
    """Return the seconds of passes over rows of a prompt, as llama-bench measures them.

    The last row alone has logits; the first pass, which warms up, is left out by llama-bench.
    """
    command = [program, "-m", model, "-p", rows, "-n", 0, "-r", repeats, "-t", threads]
    done = subprocess.run(
        [*map(str, command), "-o", "json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{program} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    (record,) = json.loads(done.stdout)
    return [nanoseconds / 1e9 for nanoseconds in record["samples_ns"]]
