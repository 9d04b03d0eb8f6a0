"""The runners of the comparison: engine, weights, and how tokens are drafted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

#: Constant trees, ``total_tokens/depth/top_k``.
TREES = ("5/3/2", "6/2/4", "8/3/3", "12/4/4", "16/4/4")
PRECISIONS = ("native", "int8", "bfloat16", "float32")
GGUF_TYPES = ("Q4_1", "Q8_0", "F32")

# Arguments of llama-server by the name of the runner. An n-gram type runs with its defaults and,
# since those wait for 12 tokens to repeat, as prompt lookup is set up elsewhere: 3 tokens that
# repeat, 5 drafted. ngram-cache has no settings, and in this release does not read a prompt that is
# shorter than an earlier request's text. EAGLE-3 drafts 3 tokens by default.
_NGRAM_MAPS = ("ngram-simple", "ngram-map-k", "ngram-map-k4v")
LLAMA_DRAFTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "ngram-cache": ("--spec-type", "ngram-cache"),
    "ngram-mod": ("--spec-type", "ngram-mod"),
    "ngram-mod-3/5": (
        *("--spec-type", "ngram-mod", "--spec-ngram-mod-n-match", "3"),
        *("--spec-ngram-mod-n-min", "1", "--spec-ngram-mod-n-max", "5"),
    ),
    **{name: ("--spec-type", name) for name in _NGRAM_MAPS},
    **{
        f"{name}-3/5": (
            *("--spec-type", name, f"--spec-{name}-size-n", "3", f"--spec-{name}-size-m", "5"),
        )
        for name in _NGRAM_MAPS
    },
    "eagle3": ("--spec-type", "draft-eagle3"),
    "eagle3-1": ("--spec-type", "draft-eagle3", "--spec-draft-n-max", "1"),
    "eagle3-5-p0.5": (
        *("--spec-type", "draft-eagle3", "--spec-draft-n-max", "5"),
        *("--spec-draft-p-min", "0.5"),
    ),
}


@dataclass(frozen=True)
class Runner:
    """A way to decode.

    Attributes:
        engine: "eaglerl", "llama.cpp" or "OpenVINO".
        weights: precision or type of the weights, as the engine names it.
        drafts: "plain", or how tokens are drafted.
    """

    engine: str
    weights: str
    drafts: str

    @property
    def name(self) -> str:
        """Engine, weights and drafts."""
        return f"{self.engine} {self.weights} {self.drafts}"

    @property
    def is_tree(self) -> bool:
        """Whether it drafts one constant tree."""
        return self.engine == "eaglerl" and self.drafts in TREES


def all_runners() -> list[Runner]:
    """Return every runner, in the order of the table."""
    runners = [
        Runner("eaglerl", precision, drafts)
        for precision in PRECISIONS
        for drafts in ("plain", *TREES, "policy")
    ]
    runners += [
        Runner("llama.cpp", kind, drafts)
        for kind in GGUF_TYPES
        for drafts in LLAMA_DRAFTS
        # F32 is there for the ratio of plain decoding and for the texts.
        if kind != "F32" or drafts == "plain"
    ]
    runners += [Runner("OpenVINO", weights, "plain") for weights in ("f32", "default")]
    runners += [Runner("OpenVINO", weights, "plain") for weights in ("int8", "int4")]
    return [*runners, Runner("OpenVINO", "int8", "lookup")]


def choose_runners(globs: Sequence[str]) -> list[Runner]:
    """Return the runners whose names fit one of the globs; all without a glob.

    Raises:
        ValueError: a glob fits none.
    """
    runners = all_runners()
    for glob in globs:
        if not any(fnmatchcase(runner.name, glob) for runner in runners):
            names = "\n  ".join(runner.name for runner in runners)
            raise ValueError(f"only must fit a runner, {glob!r} fits none of\n  {names}")
    return [
        runner
        for runner in runners
        if not globs or any(fnmatchcase(runner.name, glob) for glob in globs)
    ]


def in_turn(runners: Sequence[Runner], turn: int) -> list[Runner]:
    """Return the runners in the order of one turn: it rotates by one from turn to turn."""
    shift = turn % len(runners) if runners else 0
    return [*runners[shift:], *runners[:shift]]
