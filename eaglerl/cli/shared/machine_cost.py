"""The cost table of this machine, which is measured once and kept in the user's cache.

A table belongs to a machine, a number of threads, a target, a head and its precision: with others
it is not found.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eaglerl.cli.shared.options import encode
from eaglerl.cli.shared.terminal import notes, progress_bar
from eaglerl.files import AlreadyLockedError, cache_root, exclusive_file

if TYPE_CHECKING:
    from eaglerl.cost.cost_table import CostTable
    from eaglerl.eagle3 import SpeculativeDecoder
    from eaglerl.policies.policy_folder import PolicyFiles

_PROMPT = "Write a long story about a lighthouse keeper and the sea."


def kept_cost_path(decoder: SpeculativeDecoder) -> Path:
    """Where the table for this decoder on this machine is kept, whether or not it is there yet."""
    from eaglerl.eagle3.head.packed_draft import products_dtype
    from eaglerl.evaluation.running.processor import describe_machine
    from eaglerl.fingerprints import head_id, target_id

    parts = (
        describe_machine(),
        target_id(decoder.target),
        head_id(decoder.head),
        products_dtype(decoder.draft),
    )
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache_root() / "costs" / f"{name}.json"


def measure_cost(decoder: SpeculativeDecoder, output: Path, **options: Any) -> CostTable:
    """Measure the table, with a progress bar, write it and tell how good it is.

    Args:
        decoder: what is measured.
        output: JSON file for the table; its folder is made.
        options: further arguments of `eaglerl.cost.measure_cost.calibrate`.

    Raises:
        ValueError: see there.
        AlreadyLockedError: another process is measuring it.
    """
    from eaglerl.cost.measure_cost import calibrate
    from eaglerl.evaluation.running.processor import describe_machine

    chat = decoder.tokenizer.chat_template is not None
    # Two that measure at once would also disturb each other.
    with exclusive_file(output), progress_bar() as show:
        table = calibrate(
            decoder,
            encode(decoder, _PROMPT, chat=chat)[0].tolist(),
            machine=describe_machine(),
            progress=lambda done: show("measuring", done),
            again=lambda why: _tell(f"{why}: measuring more, for the machine is busy"),
            **options,
        )
        table.to_json(output)
    error = table.error
    notes().print(
        f"{output}: {table.samples} cycles; half of the kinds within {100 * error.median:.1f} %, "
        f"all within {100 * error.worst:.1f} %; total time {100 * error.total:+.1f} %",
        markup=False,
        soft_wrap=True,
    )
    return table


def machine_cost(cost: Path | None, decoder: SpeculativeDecoder) -> CostTable | None:
    """The table that policies decide by: the file given, else the one kept for this machine.

    Without either it is None, for the table beside each policy; `tell_unmeasured` says so.

    Raises:
        ValueError: the file given is no table.
    """
    from eaglerl.cost.cost_table import CostTable

    if cost is not None:
        return CostTable.from_json(cost)
    kept = kept_cost_path(decoder)
    try:
        return CostTable.from_json(kept) if kept.is_file() else None
    except ValueError as error:
        warnings.warn(f"{error}; it counts as not measured", stacklevel=2)
        return None


def tell_unmeasured() -> None:
    """Say that policies decide by tables which may be another machine's."""
    notes().print(
        "note: no cost table of this machine is kept (`eaglerl calibrate` makes one); a policy "
        "that weighs costs decides by the table that lies beside it",
        soft_wrap=True,
    )


def measured_cost(
    cost: Path | None, decoder: SpeculativeDecoder, policy: PolicyFiles
) -> CostTable | None:
    """The table for one policy; this machine is measured first, if there is none of it.

    Returns:
        The file given, else the one kept for this machine, else the policy's own if it is of this
        machine, else a new one; the policy's own, whatever its machine, where this one is too busy
        to be measured. None for a policy that needs none.

    Raises:
        ValueError: a file is no table, or the machine is too busy and there is no other.
    """
    from eaglerl.cost.cost_table import CostTable
    from eaglerl.evaluation.running.processor import describe_machine
    from eaglerl.policies.policy_folder import COST_NAME

    if not policy.is_acceptance:
        return None
    table = machine_cost(cost, decoder)
    if table is not None:
        return table
    beside = policy.path.with_name(COST_NAME)
    own = CostTable.from_json(beside) if beside.is_file() else None
    if own is not None and own.machine == describe_machine():
        return own
    kept = kept_cost_path(decoder)
    notes().print("measuring what a cycle costs on this machine, once ...", soft_wrap=True)
    try:
        return measure_cost(decoder, kept)
    except AlreadyLockedError:
        with exclusive_file(kept, waiting=_tell):
            pass
    except ValueError as error:
        if own is None:
            raise
        _tell(f"note: {error}. Until then the policy decides by the table that lies beside it")
        return own
    # What the other process has measured, if it got to the end.
    return measured_cost(cost, decoder, policy)


def _tell(sentence: str) -> None:
    notes().print(sentence, markup=False, soft_wrap=True)
