"""A process that reads what others damaged: ``python -m tests.fuzz.worker``, a line a file.

It takes lines of JSON, ``{"kind": ..., "folder": ...}``, and answers each with what came of it. Its
memory is bounded, so that a file that fills the machine ends in a MemoryError.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path

from .file_kinds import KINDS

#: Beyond what the libraries take; the largest file that is read as a whole has 64 MB.
_MORE_BYTES = 1 << 30


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + _MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _answer(request: dict[str, str]) -> dict[str, object]:
    begin = time.process_time()
    result: dict[str, object] = {"error": None, "text": ""}
    try:
        KINDS[request["kind"]].read(Path(request["folder"]))
    except BaseException as error:
        result = {
            "error": type(error).__name__,
            # A target's folder without weights is transformers' own OSError, as documented.
            "expected": isinstance(error, OSError if request["kind"] == "target" else ValueError)
            or (isinstance(error, ValueError) and not isinstance(error, UnicodeError)),
            "text": str(error),
        }
    return result | {"seconds": time.process_time() - begin}


def main() -> None:
    """Read requests until there are no more."""
    warnings.simplefilter("ignore")
    # What libraries print is not for whoever asks.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    first = True
    for line in sys.stdin:
        if first:
            # Warm: what is imported at the first use is there.
            for kind, folder in json.loads(line).items():
                KINDS[kind].read(Path(folder))
            _bound_memory()
            first, answer = False, {}
        else:
            answer = _answer(json.loads(line))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
