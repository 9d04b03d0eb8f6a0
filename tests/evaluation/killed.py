"""Runs a comparison, again and again, and kills it at random moments: for `test_killed.py`.

    python killed.py TARGET HEAD QUESTIONS OUTPUT KILLS SEED

OUTPUT/whole is a comparison that nothing stops, OUTPUT/killed one that is killed KILLS times. Each
is made by a child of its own, forked from a process that has the model loaded.
"""

import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.evaluation.compare import compare
from eaglerl.evaluation.modes import parse_modes
from eaglerl.evaluation.options import CompareOptions
from eaglerl.evaluation.questions import question_files


def main() -> None:
    target, head, questions, output, kills, seed = sys.argv[1:]
    # One thread: a fork has no other.
    torch.set_num_threads(1)
    decoder = SpeculativeDecoder.from_pretrained(target, head, draft_dtype="float32")
    files, modes = question_files([questions]), parse_modes(["tuned", "tree:4/1/2"])
    options = CompareOptions(max_new_tokens=8, repeats=2, split="all", validation_per_file=1)

    def begin(folder: Path) -> int:
        child = os.fork()
        if child == 0:
            warnings.simplefilter("ignore")
            compare(decoder, target, files, modes, folder, options)
            os._exit(0)
        return child

    started = time.monotonic()
    os.waitpid(begin(Path(output) / "whole"), 0)
    whole = time.monotonic() - started
    draw, died = random.Random(int(seed)), 0
    for _ in range(int(kills)):
        child = begin(Path(output) / "killed")
        # The first half of a run is spent on what comes before the decoding.
        time.sleep(draw.uniform(0, whole / 2 + whole / int(kills)))
        os.kill(child, signal.SIGKILL)
        died += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    status = os.waitpid(begin(Path(output) / "killed"), 0)[1]
    print(died, status)  # noqa: T201


if __name__ == "__main__":
    main()
