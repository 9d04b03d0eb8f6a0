"""Runs cases that arrive as lines, and answers each with its outcome.

    python worker.py [EXTENSION]

A line holds a kind, a name and a seed, as JSON; the answer is one line of JSON. If there is no
answer, the case has ended the process.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

# Imported before the extension, so that both share one OpenMP pool.
import torch


def load_extension(path: str) -> None:
    """Replace eaglerl's extension by another build of it."""
    import eaglerl

    spec = importlib.util.spec_from_file_location("eaglerl._C", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["eaglerl._C"] = eaglerl._C = module


def main() -> None:
    if len(sys.argv) > 1:
        load_extension(sys.argv[1])
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    answers = sys.stdout
    sys.stdout = sys.stderr
    sys.path.insert(0, str(Path(__file__).parent))
    from arguments import Source
    from natives import NATIVES, run_native
    from objects import DOCUMENTED, OBJECTS
    from operations import OPERATORS, PUBLIC, run

    from eaglerl import ops
    from eaglerl._ext import C

    runners = {
        "public": lambda name, source: run(PUBLIC[name](source), source),
        "operator": lambda name, source: run(OPERATORS[name](source), source),
        "native": run_native,
        "object": lambda name, source: OBJECTS[name](source),
    }
    covered = {
        "public": sorted(PUBLIC),
        "operator": sorted(OPERATORS),
        "native": sorted(NATIVES),
        "object": sorted(OBJECTS),
    }
    present = {
        "public": sorted(set(ops.__all__)),
        "operator": sorted({
            schema.name.split("::")[1]
            for schema in torch._C._jit_get_all_schemas()
            if schema.name.startswith("eaglerl::")
        }),
        "native": sorted(n for n in dir(C) if callable(getattr(C, n)) and not n.startswith("_")),
        "object": [],
    }  # fmt: skip

    def answer(kind: str, name: str, seed: int) -> Any:
        if kind == "list":
            return {"covered": covered, "present": present}
        try:
            return runners[kind](name, Source(f"{name} {seed}"))
        except DOCUMENTED as error:
            return f"refused: {type(error).__name__}: {error}"[:300]
        except BaseException as error:
            return f"undocumented: {type(error).__name__}: {error}"[:2000]

    for line in sys.stdin:
        answers.write(json.dumps(answer(*json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
