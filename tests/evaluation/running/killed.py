"""Does some work, again and again, and kills it at random moments: for `test_killed.py`.

    python killed.py TARGET HEAD QUESTIONS OUTPUT KILLS SEED

The work is a comparison and a recording. OUTPUT/compare/whole is made by a run that nothing stops,
OUTPUT/compare/killed by runs of which KILLS are killed, and likewise OUTPUT/record. Each run is a
child of its own, forked from a process that has the model loaded.
"""

import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.evaluation.modes.mode_names import parse_modes
from eaglerl.evaluation.questions.question_files import question_files
from eaglerl.evaluation.running.comparison import compare
from eaglerl.evaluation.running.comparison_options import CompareOptions
from eaglerl.traces.recording import Prompt, RecordOptions, record


def pieces(folder: Path) -> int:
    """How much of the work is done."""
    lines = sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))
    return lines + len(list(folder.glob("*.safetensors")))


def main() -> None:
    target, head, questions, output, kills, seed = sys.argv[1:]
    # One thread: a fork has no other.
    torch.set_num_threads(1)
    decoder = SpeculativeDecoder.from_pretrained(target, head, draft_dtype="float32")
    files, modes = question_files([questions]), parse_modes(["tuned", "tree:4/1/2"])
    options = CompareOptions(max_new_tokens=8, repeats=2, split="all", validation_per_file=1)
    texts = [f"Tell me of {number}." for number in range(80)]
    prompts = [Prompt(tuple(decoder.tokenizer(text).input_ids), "made up") for text in texts]
    recorded = RecordOptions(top_ks=(1, 2), max_depth=2, max_new_tokens=16, slots=2)

    def make_comparison(folder: Path) -> None:
        compare(decoder, target, files, modes, folder, options)

    def make_recording(folder: Path) -> None:
        record(decoder, prompts, folder, options=recorded)

    for work, make in (("compare", make_comparison), ("record", make_recording)):
        print(work, *again_and_again(make, Path(output) / work, int(kills), int(seed)))  # noqa: T201


def again_and_again(
    make: Callable[[Path], None], output: Path, kills: int, seed: int
) -> tuple[int, int]:
    """Do some work as a whole, then killed; how often it died, and the status of the last run."""

    def begin(folder: Path) -> int:
        child = os.fork()
        if child == 0:
            warnings.simplefilter("ignore")
            make(folder)
            os._exit(0)
        return child

    started = time.monotonic()
    os.waitpid(begin(output / "whole"), 0)
    whole = time.monotonic() - started
    every = pieces(output / "whole")
    draw, died, folder = random.Random(seed), 0, output / "killed"
    for _ in range(kills):
        # Together the runs that are killed do less than the whole.
        wanted = pieces(folder) + draw.randrange(every // kills)
        moment = draw.uniform(0, 2 * whole / every)
        died += kill(begin(folder), lambda: pieces(folder) >= wanted, moment)  # noqa: B023
    return died, os.waitpid(begin(folder), 0)[1]


def kill(child: int, ready: Callable[[], bool], moment: float) -> bool:
    """Kill a child some seconds after it is ready; whether it was still at work."""
    while not ready():
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        # Looking costs the child its core; a piece of work takes ten times as long.
        time.sleep(2e-3)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
