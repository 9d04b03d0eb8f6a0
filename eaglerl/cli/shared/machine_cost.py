"""The cost table of this machine, measured once and kept in the user's cache.

A table belongs to a machine, a number of threads, a target, a head and its precision. If any of
them changes, another table is used.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eaglerl.cli.shared.options import encode
from eaglerl.cli.shared.terminal import progress_bar, say
from eaglerl.files import cache_root, exclusive_file

if TYPE_CHECKING:
    from eaglerl.cost.cost_table import CostTable
    from eaglerl.eagle3 import SpeculativeDecoder

_PROMPT = "Write a long story about a lighthouse keeper and the sea."


def kept_cost_path(decoder: SpeculativeDecoder) -> Path:
    """Return where the table for this decoder on this machine is kept, even if there is none yet.

    The decoder must have a draft head.
    """
    import torch

    from eaglerl.eagle3.head.packed_draft import products_dtype
    from eaglerl.evaluation.running.processor import describe_machine
    from eaglerl.fingerprints import head_id, target_id

    assert decoder.draft_head is not None
    assert decoder.draft_runner is not None
    parts = [
        describe_machine(),
        target_id(decoder.target),
        head_id(decoder.draft_head),
        products_dtype(decoder.draft_runner),
    ]
    # Added only where it differs, so that tables measured before are found.
    if decoder.target.precision != "float32":
        parts.append(decoder.target.precision)
    if decoder.target.weights != "stored":
        parts.append(decoder.target.weights)
    if decoder.target.kv_cache_dtype is not torch.float32:
        parts.append(f"KV cache in {decoder.target.kv_cache_dtype}")
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache_root() / "costs" / f"{name}.json"


def measure_cost(decoder: SpeculativeDecoder, output: Path, **options: Any) -> CostTable:
    """Measure the table with a progress bar, write it, and print its error.

    Args:
        decoder: the decoder to measure.
        output: JSON file for the table; its folder is made.
        options: further arguments of `eaglerl.cost.measure_cost.calibrate`.

    Raises:
        ValueError: see `calibrate`.
        AlreadyLockedError: another process is measuring the same table.
    """
    from eaglerl.cost.cost_check import why_doubtful
    from eaglerl.cost.measure_cost import calibrate
    from eaglerl.evaluation.running.processor import describe_machine

    assert decoder.tokenizer is not None, "it is loaded from its folder"
    chat = decoder.tokenizer.chat_template is not None
    # Two processes that measure at once would also disturb each other.
    with exclusive_file(output), progress_bar() as show:
        table = calibrate(
            decoder,
            encode(decoder, _PROMPT, chat=chat)[0].tolist(),
            machine=describe_machine(),
            progress=lambda done: show("measuring", done),
            again=lambda why: say(f"{why}: the machine is busy, measuring more"),
            **options,
        )
        table.to_json(output)
    error = table.error
    assert error is not None  # `calibrate` measures it
    say(
        f"{output}: {table.samples} cycles; half of the kinds within {100 * error.median:.1f} %, "
        f"all within {100 * error.worst:.1f} %; total time {100 * error.total:+.1f} %"
    )
    if (why := why_doubtful(error)) is not None:
        say(
            f"warning: {why}: something else ran meanwhile; measure again when the machine is "
            "idle (eaglerl calibrate), or use the policy auto, which needs no table"
        )
    return table


def machine_cost(cost: Path | None, decoder: SpeculativeDecoder) -> CostTable | None:
    """Return the table in the file, else the one measured on this machine, else None.

    Raises:
        ValueError: the file holds no cost table.
    """
    from eaglerl.cost.cost_table import CostTable

    if cost is not None:
        return CostTable.from_json(cost)
    kept = kept_cost_path(decoder)
    try:
        return CostTable.from_json(kept)
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"{error}; it is ignored", stacklevel=2)
        return None
