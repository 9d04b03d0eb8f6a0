"""vLLM with eaglerl's plugin beside vLLM alone: plain, fixed lengths, and lengths by batch size.

    python benchmarks/peers/compare_vllm.py FOLDER [--dtype bfloat16] [--concurrency 1,8,16]

FOLDER gets vLLM in an environment of its own, the model, the head, and a folder for every run. An
interrupted run goes on where it was. All modes answer the same groups of questions in turns, in an
order that rotates: greedily, up to an end token, as many at once as the concurrency says. The
lengths by batch size are the best fixed ones of other questions, measured at the beginning.

All modes with speculation share one engine, which is told before each group where the lengths come
from: two equal engines differ by up to 10 % for as long as they run, more than the modes do. Plain
decoding takes turns between two engines.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from compare_peers import read_prompts
from peer_environments import environment
from peer_environments import run as run_command
from peer_process import Worker
from peer_records import code_digest
from rich.console import Console
from rich.progress import track
from server_processes import VLLM

from eaglerl.eagle3 import Eagle3DraftHead
from eaglerl.eagle3.head.export_head import export_head
from eaglerl.evaluation.running.processor import processor_name
from eaglerl.files import exclusive_folder
from eaglerl.prepare import default_draft_path, prepare_model
from eaglerl.ratio_intervals import ratio_interval

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PLAIN, SCHEDULE, PLUGIN, FORCED = "plain", "by batch size", "eaglerl", "eaglerl, forced"
_CONTEXT = 1024
_FORCED = 3  # length of the chains that the plugin is told to choose
_Measured = dict[tuple[int, int, str], dict[str, Any]]


def fixed(length: int) -> str:
    """Return the name of a mode with chains of one length."""
    return f"k = {length}"


def options_of(model: Path, dtype: str, most: int, head: Path | None, longest: int) -> dict:
    """Return the options of an engine.

    Args:
        model: folder of the target.
        dtype: of the target and the head.
        most: most requests at once.
        head: folder of the head; None to decode plainly.
        longest: longest chain.
    """
    options: dict[str, Any] = {
        "model": str(model), "dtype": dtype, "max_model_len": _CONTEXT, "max_num_seqs": most,
        "enable_prefix_caching": False, "generation_config": "vllm", "disable_log_stats": False,
        "num_gpu_blocks_override": most * (_CONTEXT // 128 + 1) + 1,
    }  # fmt: skip
    if head is None:
        return options
    speculative = {"method": "eagle3", "model": str(head), "num_speculative_tokens": longest}
    # In vLLM, asynchronous scheduling is off on the CPU with speculative decoding.
    return options | {
        "speculative_config": speculative, "async_scheduling": False,
        "additional_config": {"eaglerl": {"policy": "auto"}},
    }  # fmt: skip


@dataclass
class Mode:
    """A way to decode.

    Attributes:
        workers: engines that take turns.
        choice: what they are told, see `vllm_worker.choose`; None for nothing.
    """

    workers: list[Worker]
    choice: dict[str, Any] | None = None

    def decode(self, turn: int, prompts: list[list[int]], count: int) -> dict[str, Any]:
        """Decode greedily.

        Args:
            turn: says which engine's turn it is.
            prompts: token ids.
            count: most new tokens.
        """
        told = {} if self.choice is None else {"choice": self.choice}
        sampling = {"temperature": 0.0, "max_tokens": count}
        worker = self.workers[turn % len(self.workers)]
        return worker.ask(prompts=prompts, sampling=sampling, **told)


def modes_of(
    plain: list[Worker], drafting: Worker, lengths: Sequence[int], most: int, forced: bool
) -> dict[str, Mode]:
    """Return all modes but the lengths by batch size.

    Args:
        plain: engines without a head.
        drafting: the engine with one.
        lengths: fixed lengths.
        most: most requests at once.
        forced: whether the plugin is told to choose a chain of three as well.
    """
    modes = {PLAIN: Mode(plain)}
    for length in lengths:
        modes[fixed(length)] = Mode([drafting], {"lengths": [length] * most, "policy": None})
    modes[PLUGIN] = Mode([drafting], {"lengths": None, "policy": "auto"})
    if forced:
        # Chains as vLLM's own, chosen by the plugin.
        modes[FORCED] = Mode([drafting], {"lengths": [_FORCED] * most, "policy": "fixed"})
    return modes


def start(folder: Path, name: str, options: dict[str, Any], threads: int) -> Worker:
    """Start an engine."""
    programs = environment(folder / "vllm", VLLM, ["torchvision", "torchaudio", "torchcodec"])
    # vLLM finds the plugin by what its installation says.
    plugin = ["--no-deps", "--no-build-isolation", "--editable", ROOT / "plugins" / "vllm"]
    run_command([programs / "python", "-m", "pip", "--quiet", "install", *plugin])
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads),
        "LD_PRELOAD": str(programs.parent / "lib" / "libiomp5.so"),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    settings = [f"{name}={value}" for name, value in variables.items()]
    command = ["env", *settings, programs / "python", HERE / "vllm_worker.py", json.dumps(options)]
    return Worker(f"vLLM, {name}", command, folder / "logs" / f"vllm-{name}.log")


@contextmanager
def started(folder: Path, console: Console, threads: int, **options: Any) -> Iterator[Any]:
    """Start two engines without a head and one with it; end them at the end."""
    with ExitStack() as stack:
        workers = []
        for name, head in (("plain-1", None), ("plain-2", None), ("drafting", options["head"])):
            console.print(f"starting vLLM, {name}")
            workers.append(start(folder, name, options_of(**options | {"head": head}), threads))
            stack.callback(workers[-1].close)
        yield workers[:2], workers[2]


def warm_up(modes: dict[str, Mode], prompts: list[list[int]]) -> None:
    """Let every engine of every mode answer some prompts."""
    for mode in modes.values():
        for turn in range(len(mode.workers)):
            for part in (prompts[:1], prompts):
                mode.decode(turn, part, 64)


def measure(
    modes: dict[str, Mode], groups: dict[int, list[list[list[int]]]], measured: _Measured,
    path: Path, count: int,
) -> None:  # fmt: skip
    """Let all modes answer all groups in turns, and keep each result as soon as it is there."""
    turns = [(number, index) for number in groups for index in range(len(groups[number]))]
    for number, index in track(turns, description="groups"):
        names = [*modes]
        for mode in names[index % len(names) :] + names[: index % len(names)]:
            if (number, index, mode) in measured:
                continue
            group = groups[number][index]
            tokens, seconds = [], 0.0
            # Never more at once than the concurrency.
            for begin in range(0, len(group), number):
                answer = modes[mode].decode(index, group[begin : begin + number], count)
                tokens += answer["tokens"]
                seconds += answer["seconds"]
            record = {
                "concurrency": number, "group": index, "mode": mode, "seconds": seconds,
                "tokens": sum(map(len, tokens)),
                "texts": [hashlib.sha256(str(each).encode()).hexdigest()[:12] for each in tokens],
            }  # fmt: skip
            measured[number, index, mode] = record
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def read_measured(path: Path) -> _Measured:
    """Return what an earlier call has measured."""
    if not path.exists():
        return {}
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(each["concurrency"], each["group"], each["mode"]): each for each in records}


def speeds(measured: _Measured, number: int) -> dict[str, np.ndarray]:
    """Return (groups, 2) tokens and seconds of each mode."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (concurrency, _, mode), record in sorted(measured.items()):
        if concurrency == number:
            found[mode].append((record["tokens"], record["seconds"]))
    return {mode: np.array(pairs) for mode, pairs in found.items()}


def best_length(measured: _Measured, number: int, lengths: Sequence[int]) -> int:
    """Return the best fixed length at a concurrency; 0 for none."""
    rates = {
        mode: pairs[:, 0].sum() / pairs[:, 1].sum()
        for mode, pairs in speeds(measured, number).items()
    }
    return max((0, *lengths), key=lambda length: rates[fixed(length) if length else PLAIN])


def table(measured: _Measured, numbers: Sequence[int]) -> str:
    """Return tokens per second, and the plugin over every mode, as Markdown."""
    modes = list(dict.fromkeys(mode for _, _, mode in measured))
    lines = ["| | " + " | ".join(f"{number} at once" for number in numbers) + " |"]
    lines += ["|---" * (1 + len(numbers)) + "|"]
    known = {number: speeds(measured, number) for number in numbers}
    for mode in modes:
        rates = [known[n][mode][:, 0].sum() / known[n][mode][:, 1].sum() for n in numbers]
        lines.append(f"| {mode}, tokens/s | " + " | ".join(f"{rate:.1f}" for rate in rates) + " |")
    pairs = [(PLUGIN, mode) for mode in modes if mode not in (PLUGIN, FORCED)]
    if FORCED in modes:
        pairs.append((FORCED, fixed(_FORCED)))
    for mine, other in pairs:
        cells = []
        for number in numbers:
            interval = ratio_interval(np.hstack([known[number][mine], known[number][other]]))
            cells.append(f"{interval.ratio:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
        lines.append(f"| {mine} over {other} | " + " | ".join(cells) + " |")
    for mode in modes:
        if mode != PLAIN:
            same = (_same_texts(measured, number, mode) for number in numbers)
            lines.append(f"| texts of {mode} equal to plain | " + " | ".join(same) + " |")
    return "\n".join(lines) + "\n"


def _same_texts(measured: _Measured, number: int, mode: str) -> str:
    mine, plain = (
        [text for key in sorted(measured) if (key[0], key[2]) == (number, each)
         for text in measured[key]["texts"]] for each in (mode, PLAIN)
    )  # fmt: skip
    return f"{sum(a == b for a, b in zip(mine, plain, strict=True))} of {len(plain)}"


def groups_of(prompts: list[list[int]], numbers: dict[int, int], fewest: int) -> dict:
    """Return groups of questions for every concurrency, each of them at least `fewest`.

    Args:
        prompts: questions.
        numbers: concurrencies, and how many questions of each.
        fewest: fewest questions of a group.
    """
    groups = {}
    for number, count in numbers.items():
        size, most = max(fewest, number), min(count, len(prompts))
        groups[number] = [prompts[i : i + size] for i in range(0, most - size + 1, size)]
    return groups


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for vLLM and the runs.")],
    questions: Annotated[
        list[Path] | None, typer.Option(help="Question files or folders; the samples by default.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    concurrency: Annotated[str, typer.Option(help="Requests at once.")] = "1,8,16",
    count: Annotated[str, typer.Option(help="Most questions, of each concurrency.")] = "95,95,95",
    group: Annotated[int, typer.Option(help="Fewest questions of a turn.", min=1)] = 4,
    lengths: Annotated[str, typer.Option(help="Fixed lengths.")] = "1,2,3,5",
    longest: Annotated[int, typer.Option(help="Longest chain of the plugin.", min=1)] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=2)] = 128,
    forced: Annotated[bool, typer.Option(help="Also a chain of 3 through the plugin.")] = True,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    run: Annotated[str, typer.Option(help="Name of the run; one that exists is resumed.")] = "vllm",
) -> None:
    """Measure all modes and print the table."""
    console, folder = Console(), folder.resolve()
    numbers = sorted({int(part) for part in concurrency.split(",")})
    counts = dict(zip(numbers, map(int, count.split(",")), strict=True))
    chosen = {int(part) for part in lengths.split(",")}
    # The forced chain of three is compared with vLLM's own.
    chosen = sorted(chosen | {_FORCED} if forced else chosen)
    model = prepare_model(cache_dir=folder / "float32", float32=True)
    head = folder / "head-vllm"
    if not head.exists():
        export_head(Eagle3DraftHead.from_pretrained(default_draft_path()), head, "vllm")
    paths = questions or [ROOT / "questions"]
    test = _questions(paths, "test", model, max_new_tokens)
    others = _questions(paths, "train", model, max_new_tokens)[: 2 * max(numbers)]
    settings = {
        "processor": processor_name(), "eaglerl": code_digest(), "dtype": dtype, "longest": longest,
        "threads": threads, "max_new_tokens": max_new_tokens, "group": group,
    }  # fmt: skip
    common = {
        "model": model, "head": head, "dtype": dtype, "most": max(numbers), "longest": longest
    }  # fmt: skip
    (folder / run).mkdir(parents=True, exist_ok=True)
    with exclusive_folder(folder / run):
        _keep_settings(folder / run / "settings.json", settings)
        before = read_measured(folder / run / "before.jsonl")
        measured = read_measured(folder / run / "measured.jsonl")
        with started(folder, console, threads, **common) as (plain, drafting):
            modes = modes_of(plain, drafting, chosen, max(numbers), forced)
            warm_up(modes, others[:8])
            measure(
                {PLAIN: modes[PLAIN]} | {fixed(length): modes[fixed(length)] for length in chosen},
                groups_of(others, {n: 2 * n for n in numbers}, 1), before,
                folder / run / "before.jsonl", max_new_tokens,
            )  # fmt: skip
            schedule = schedule_of(before, numbers, chosen)
            console.print("lengths of the batch sizes:", schedule)
            modes[SCHEDULE] = Mode([drafting], {"lengths": schedule, "policy": None})
            measure(
                modes, groups_of(test, counts, group), measured, folder / run / "measured.jsonl",
                max_new_tokens,
            )  # fmt: skip
        text = table(measured, numbers)
        (folder / run / "table.md").write_text(text, encoding="utf-8")
    sys.stdout.write(f"{processor_name()}, {threads} threads, {dtype}\n\n{text}")


def schedule_of(measured: _Measured, numbers: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Return a length for every batch size: the best fixed one of the next concurrency."""
    schedule: list[int] = []
    for number in numbers:
        schedule += [best_length(measured, number, lengths)] * (number - len(schedule))
    return schedule


def _questions(paths: list[Path], split: str, model: Path, count: int) -> list[list[int]]:
    """Return prompts in an order that does not depend on their files."""
    prompts = read_prompts(paths, split, None, model, count).values()
    fitting = [ids for ids in prompts if len(ids) + count <= _CONTEXT]
    return sorted(fitting, key=lambda ids: hashlib.sha256(str(ids).encode()).hexdigest())


def _keep_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write what a run's measurements have in common.

    Raises:
        typer.BadParameter: the run was begun with other settings.
    """
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise typer.BadParameter(f"{path} has other settings: choose another --run")
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
