"""The time of one warp of a compiled kernel, by the latencies of its instructions.

An instruction begins when its operands are there and, if it reads or writes memory, behind the
barrier before it: the compiler is taken to have moved all loads as far ahead as barriers allow.
Where it has not, the time is longer than either bound. The low bound is the longer of this chain
and of starting every instruction once; the high one is the chain and one and a half starts each.
What one multiprocessor reads alone comes at its rate, load after load, each behind the bytes that
were asked for before it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from assumptions import Range

_REGISTER = re.compile(r"%[a-z]+\d+")
_INSTRUCTION = re.compile(r"(?:@!?(%p\d+) )?([a-z][a-z0-9_]*(?:\.[a-z0-9_:]+)*)\s*(.*);")
_LABEL = re.compile(r"(\$L__BB\d+_\d+):")
_ELSEWHERE = Range(0.0, 0.0)  # for bytes that are counted elsewhere
_NO_RESULT = ("st", "bar", "bra", "ret", "red", "membar", "fence")


@dataclass(frozen=True)
class Instruction:
    """An instruction of PTX.

    Attributes:
        name: such as "ld.global.b32".
        results: registers that it writes.
        operands: registers that it reads.
        target: label of a branch, else "".
        text: what stands behind the name.
    """

    name: str
    results: tuple[str, ...]
    operands: tuple[str, ...]
    target: str = ""
    text: str = ""

    @property
    def size(self) -> int:
        """Bytes that a thread reads or writes, whether or not a condition holds it back."""
        numbers = re.search(r"\.v(\d)", self.name)
        bits = re.search(r"\.[bfsu](\d+)$", self.name)
        return int(numbers[1] if numbers else 1) * int(bits[1] if bits else 0) // 8

    @property
    def kind(self) -> str:
        """The kind of its latency, see ``assumptions.LATENCIES``."""
        base, *rest = self.name.split(".")
        if base in ("ld", "st") and rest[0] in ("global", "shared"):
            return "shared" if rest[0] == "shared" else "load"
        special = ("ex2", "sqrt", "rsqrt", "rcp", "tanh")
        for kind, names in (
            ("barrier", ("bar",)), ("atomic", ("atom", "red")), ("shuffle", ("shfl", "redux")),
            ("special", special), ("division", ("div", "rem")),
        ):  # fmt: skip
            if base in names:
                return "special" if kind == "division" and rest[-1] == "f32" else kind
        return "arithmetic"


@dataclass(frozen=True)
class Chain:
    """A warp's longest chain of instructions that wait for each other.

    Attributes:
        cycles: from the first instruction to the last result.
        counts: how many instructions of each kind were run.
    """

    cycles: float
    counts: Mapping[str, int]

    @property
    def instructions(self) -> int:
        """How many instructions were run."""
        return sum(self.counts.values())


def read_ptx(ptx: str) -> list[str | Instruction]:
    """Return the labels and instructions of a kernel, in their order."""
    found: list[str | Instruction] = []
    for raw in ptx[ptx.index("{") :].splitlines():
        line = raw.split("//")[0].strip()
        if match := _LABEL.match(line):
            found.append(match[1])
        elif (match := _INSTRUCTION.match(line)) and not line.startswith((".", "{")):
            found.append(_instruction(match))
    return found


def _instruction(match: re.Match[str]) -> Instruction:
    condition, name, rest = match.groups()
    operands = [condition] if condition else []
    base = name.split(".")[0]
    if base == "bra":
        return Instruction(name, (), tuple(operands), rest.strip(), rest)
    if base in _NO_RESULT:
        return Instruction(name, (), (*operands, *_REGISTER.findall(rest)), "", rest)
    group = re.match(r"\{[^}]*\}|[^,]*", rest)
    first = group[0] if group else ""
    results = tuple(_REGISTER.findall(first))
    # A result that a condition may leave as it was depends on what it was.
    kept = results if condition else ()
    sources = _REGISTER.findall(rest[len(first) :])
    return Instruction(name, results, (*operands, *kept, *sources), "", rest)


Code = Sequence[str | Instruction]


def run(
    code: Code, taken: Sequence[bool] = (), *, lenient: bool = False
) -> Iterator[tuple[Instruction, bool]]:
    """Yield the instructions in the order in which they run, and whether each is in a loop.

    Args:
        code: see `read_ptx`.
        taken: of the conditional branches that are no loop's, in the order in which they are
            reached; False where none is given.
        lenient: whether to take such a branch for a loop's, too, if it does not count from one
            constant to another.

    Raises:
        ValueError: how often a loop runs is not a constant.
    """
    places = {line: at for at, line in enumerate(code) if isinstance(line, str)}
    branches = list(taken)
    counts = _loops(code, places, lenient)
    ends = {places[code[at].target]: at for at in counts}
    at, turns = 0, dict[int, int]()
    while at < len(code):
        line = code[at]
        if isinstance(line, str):
            if at in ends:
                turns.setdefault(ends[at], counts[ends[at]])
            at += 1
            continue
        yield line, any(begin < at <= end for begin, end in ends.items())
        if line.name == "ret":
            return
        at += 1
        if not line.target:
            continue
        place = places[line.target]
        if at - 1 in counts:
            turns[at - 1] -= 1
            at = place if turns[at - 1] else at
        elif line.name == "bra.uni" or (branches.pop(0) if branches else False):
            at = place


def _loops(code: Code, places: Mapping[str, int], lenient: bool) -> dict[int, int]:
    """Return how often loops run, by the places of their branches back; see `run`."""
    counts = {}
    for at, line in enumerate(code):
        if isinstance(line, Instruction) and line.operands and places.get(line.target, at) < at:
            try:
                counts[at] = trips(code, places[line.target], at)
            except ValueError:
                if not lenient:
                    raise
    return counts


def trips(code: Code, begin: int, end: int) -> int:
    """Return how often a loop runs whose counter goes from one constant to another.

    Args:
        code: see `read_ptx`.
        begin: place of its label.
        end: place of the branch back.

    Raises:
        ValueError: it has no such counter.
    """
    branch = code[end]
    assert isinstance(branch, Instruction)
    body = [line for line in code[begin:end] if isinstance(line, Instruction)]
    before = [line for line in code[:begin] if isinstance(line, Instruction)]
    test = next((line for line in body if line.results == branch.operands), None)
    if test is None or test.text.count(", ") != 2:
        raise ValueError(f"a loop must count from a constant, got {branch.operands}")
    counter, limit = test.text.split(", ")[1:]
    step = next((line for line in body if line.results == (counter,)), None)
    # The sum may have a register of its own, from which the counter is set behind the test.
    late = step is not None and step.name[:3] == "mov"
    if late:
        step = next((line for line in body if line.results == step.operands), None)
    parts = [] if step is None else step.text.split(", ")
    first = _constant(before, counter)
    width = _constant(before, parts[2]) if len(parts) == 3 and step.name[:3] == "add" else None
    end = _constant(before, limit)
    if first is None or width is None or end is None or parts[1] != counter:
        raise ValueError(f"a loop must count from a constant, got {test.name} {test.text}")
    value = first - width if late else first
    compared, count = test.name.split(".")[1], 0
    while True:
        count += 1
        value += width
        if value == end or (compared == "lt" and value > end):
            return count


def _constant(code: Sequence[Instruction], text: str) -> int | None:
    """Return a number, or what a register was last set to, or None if that is no constant."""
    if not text.startswith("%"):
        return int(text)
    last = next((line for line in reversed(code) if text in line.results), None)
    if last is None or last.name[:3] != "mov" or last.text.count(", ") != 1:
        return None
    return _constant(code, last.text.split(", ")[1])


def longest_chain(
    steps: Iterable[tuple[Instruction, bool]],
    latencies: Mapping[str, float],
    cycles_per_byte: float = 0.0,
) -> Chain:
    """Return the longest chain of instructions that wait for each other.

    Args:
        steps: see `run`.
        latencies: cycles by kind.
        cycles_per_byte: cycles that a byte of each of the program's threads takes; 0 if what it
            reads is counted elsewhere.
    """
    ready: dict[str, float] = {}
    counts: Counter[str] = Counter()
    behind = begun = end = delivered = 0.0
    for step, repeated in steps:
        kind = step.kind
        counts[kind] += 1
        start = max((ready.get(name, 0.0) for name in step.operands), default=0.0)
        if kind == "barrier":
            # All warps stand there once what they read and wrote before it has begun.
            behind = max(begun, start, behind) + latencies[kind]
            end = max(end, behind)
            continue
        if kind in ("load", "shared", "atomic"):
            start = max(start, behind)
            begun = max(begun, start)
        if kind == "load" and step.results and cycles_per_byte:
            delivered = max(delivered, start) + cycles_per_byte * step.size
            start = delivered
        wait = latencies["repeated load" if kind == "load" and repeated else kind]
        done = start + (wait if step.results else 1.0)
        ready.update(dict.fromkeys(step.results, done))
        end = max(end, done)
    return Chain(end, counts)


def warp_cycles(
    steps: Sequence[tuple[Instruction, bool]],
    latencies: Mapping[str, Range],
    sharing: int,
    reading: Range = _ELSEWHERE,
) -> Range:
    """Return the least and the most cycles of a warp, see the module.

    Args:
        steps: see `run`.
        latencies: ranges of cycles by kind.
        sharing: warps of the program that share a scheduler.
        reading: cycles that a byte of each of the program's threads takes.
    """
    least, most = ({kind: cycles[i] for kind, cycles in latencies.items()} for i in (0, 1))
    low = longest_chain(steps, least, reading.low)
    high = longest_chain(steps, most, reading.high)
    starts = sharing * low.instructions
    # Instructions of 64 bits, about half of them, are two of the hardware's.
    return Range(max(low.cycles, starts), high.cycles + 1.5 * starts)
