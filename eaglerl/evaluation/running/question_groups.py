"""The order in which modes take turns: with one question, or with a group of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from eaglerl.evaluation.modes.mode_names import ModeSpec
from eaglerl.evaluation.questions.question_files import Question


@dataclass(frozen=True)
class Task:
    """What a mode decodes without a break.

    Attributes:
        questions: one, or several that are decoded at once.
        group: index of the group; None if modes take turns with single questions.
        repeat: index of the repeat.
        mode: the mode.
        place: index among the modes that decode these questions one after another.
    """

    questions: tuple[Question, ...]
    group: int | None
    repeat: int
    mode: ModeSpec
    place: int


def check_groups(questions: int, group: int | None, concurrencies: Iterable[int]) -> None:
    """Check that there are enough questions for the modes that decode several at once.

    Args:
        questions: number of questions.
        group: fewest questions of a group; None for single questions.
        concurrencies: questions at once, of every mode.

    Raises:
        ValueError: a group has fewer questions than a mode decodes at once.
    """
    most = max(concurrencies)
    if most == 1:
        return
    if group is None or group < most:
        raise ValueError(
            f"group must be at least the largest concurrency, {most}, got {group}: fewer questions "
            "are never at work at once"
        )
    if questions < group:
        raise ValueError(
            f"groups of at least {group} questions need as many questions, got {questions}: add "
            "questions, or use a smaller --group"
        )


def question_groups(questions: Sequence[Question], group: int | None) -> list[tuple[Question, ...]]:
    """Divide questions into as many groups of at least `group` as there can be.

    Each takes questions of every file, since those that follow one another go to different groups.
    Within a group they are ordered by the hash of their prompt: otherwise all long prompts of one
    file would come together. Without `group`, every question is one.
    """
    if group is None:
        return [(question,) for question in questions]
    count = max(len(questions) // group, 1)
    return [
        tuple(sorted(questions[index::count], key=lambda question: question.prompt_id))
        for index in range(count)
    ]


def tasks(
    questions: Sequence[Question],
    modes: Sequence[ModeSpec],
    repeats: int,
    group: int | None,
    done: Iterable[tuple[str, int, str]],
) -> Iterator[Task]:
    """Yield what is still to be decoded, in the order of decoding.

    Args:
        questions: questions of the comparison.
        modes: modes of this process.
        repeats: number of repeats.
        group: fewest questions of a group; None for single questions.
        done: keys of the records that are there.
    """
    done = set(done)
    groups = question_groups(questions, group)
    for repeat in range(repeats):
        for index, asked in enumerate(groups):
            order = in_turn(modes, index, repeat, None if group is None else len(groups))
            place = 0
            for mode in order:
                missing = tuple(q for q in asked if (q.id, repeat, mode.label) not in done)
                each = [(q,) for q in missing] if mode.concurrency == 1 else [missing]
                for some in each if missing else ():
                    yield Task(some, None if group is None else index, repeat, mode, place)
                place += bool(missing)


def in_turn(
    modes: Sequence[ModeSpec], index: int, repeat: int, groups: int | None = None
) -> list[ModeSpec]:
    """Order the modes for a question or a group.

    For single questions the order is rotated by the question's index, and reversed in odd repeats.
    Groups are few and take minutes: every second one has the reverse of the order before it, so
    that a machine that slows down steadily hits all modes alike; pairs of them rotate once around.
    """
    if groups is None:
        shift, turns_back = (index + repeat) % len(modes), repeat % 2
    else:
        pairs = (groups + 1) // 2
        shift, turns_back = index // 2 * len(modes) // pairs, index + repeat
    turned = [*modes[shift:], *modes[:shift]]
    return turned[::-1] if turns_back % 2 else turned
