"""Modes that answer prompts in turn, so that a machine's changing speed meets all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from rich.console import Console
from rich.rule import Rule

from eaglerl.cli.shared.options import encode
from eaglerl.cli.shared.streaming import text_streamer
from eaglerl.cli.shared.terminal import busy

if TYPE_CHECKING:
    from transformers import TextStreamer

    from eaglerl.eagle3 import (
        GenerateOutput,
        SpeculativeDecoder,
        StepResult,
        TreeParams,
        TreePolicy,
    )

    Modes: TypeAlias = dict[str, TreeParams | TreePolicy | None]

_WARM_UP_TOKENS = 8


@dataclass
class Measured:
    """The answers of a mode.

    Attributes:
        tokens: new tokens of every answer.
        seconds: their seconds, the prompt included.
        cycles: number of all its cycles.
        accepted: tokens that all its cycles emitted.
        last_cycles: the cycles of its last answer.
        differs: whether one of its answers differs from that of the first mode.
    """

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cycles: int = 0
    accepted: int = 0
    last_cycles: Sequence[StepResult] = ()
    differs: bool = False

    def add(self, run: GenerateOutput) -> None:
        """Add an answer."""
        self.tokens.append(run.statistics.new_tokens)
        self.seconds.append(run.statistics.seconds)
        self.last_cycles = run.statistics.cycles
        self.cycles += len(self.last_cycles)
        self.accepted += sum(cycle.accepted + 1 for cycle in self.last_cycles)

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second, prompts included."""
        return sum(self.tokens) / sum(self.seconds)

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per cycle."""
        return self.accepted / max(self.cycles, 1)

    def figures(self) -> dict[str, float]:
        """Return the figures for JSON."""
        return {
            "tokens_per_second": self.tokens_per_second,
            "mean_acceptance_length": self.mean_acceptance_length,
            "num_cycles": self.cycles,
            "new_tokens": sum(self.tokens),
            "seconds": sum(self.seconds),
        }


def take_turns(
    decoder: SpeculativeDecoder,
    prompts: Sequence[str],
    modes: Modes,
    *,
    rounds: int,
    max_new_tokens: int,
    shown: str,
    console: Console,
) -> dict[str, Measured]:
    """Let all modes answer all prompts, several times over, in an order that rotates.

    Args:
        decoder: the decoder.
        prompts: the prompts.
        modes: constant trees and policies by their names.
        rounds: how often each mode answers each prompt.
        max_new_tokens: most tokens of an answer.
        shown: the mode whose first answers are printed.
        console: where to.

    Returns:
        What each mode has reached. The first mode's answers are those to be equal to.
    """
    from eaglerl.eagle3.prompt_inputs import all_read

    measured = {name: Measured() for name in modes}
    names, first = list(modes), next(iter(modes))
    for turn in range(rounds * len(prompts)):
        prompt = prompts[turn % len(prompts)]
        ids = all_read(encode(decoder, prompt))
        answers = {}
        # The last mode is the first one at first, so that there is something to read at once.
        start = (turn - 1) % len(names)
        for name in names[start:] + names[:start]:
            generate = partial(decoder.generate, ids, modes[name], max_new_tokens=max_new_tokens)
            if name == shown and turn < len(prompts):
                console.print()
                console.print(Rule(prompt, style="green", align="left"))
                run = generate(streamer=_green_streamer(decoder, console))
                console.print()
            else:
                with busy(f"{name}, answer {turn + 1} of {rounds * len(prompts)}"):
                    run = generate()
            measured[name].add(run)
            answers[name] = run.sequences.tolist()
        for name, answer in answers.items():
            measured[name].differs |= answer != answers[first]
    return measured


def _green_streamer(decoder: SpeculativeDecoder, console: Console) -> TextStreamer:
    def write(text: str) -> None:
        console.out(text, style="green", end="", highlight=False)

    return text_streamer(decoder.tokenizer, write)


def warm_up(
    decoder: SpeculativeDecoder, prompts: Sequence[str], modes: Modes, max_new_tokens: int
) -> None:
    """Decode a few tokens with every mode, and let the caches grow to their full size."""
    from eaglerl.eagle3.prompt_inputs import all_read
    from eaglerl.eagle3.sampling import make_verifier

    with busy("warming up"):
        inputs = [encode(decoder, prompt) for prompt in prompts]
        longest = max(ids.shape[1] for ids in inputs) + max_new_tokens
        # Growing the caches later would be timed as part of the first answer.
        room = min(longest, decoder.target.max_positions)
        decoder.new_session(make_verifier(0.0, 1.0, 0, None, "cpu"), room).close()
        for mode in modes.values():
            decoder.generate(all_read(inputs[0]), mode, max_new_tokens=_WARM_UP_TOKENS)


def gain_over(mode: Measured, other: Measured) -> str:
    """Return the ratio of two speeds as text, with its 95 % interval over the answers."""
    import numpy as np

    from eaglerl.ratio_intervals import ratio_interval

    sums = np.array([mode.tokens, mode.seconds, other.tokens, other.seconds], dtype=float).T
    found = ratio_interval(sums)
    if math.isnan(found.low):
        return f"{found.ratio:.2f}"
    return f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f} over {found.questions} answers)"
