"""Writes the tables of `docs/device-model.md`, or says whether they are those of the model.

python benchmarks/device_model/model_page.py          # exit status 1 if the page has other figures
python benchmarks/device_model/model_page.py --write
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from decision_tables import DECISION_TABLES  # noqa: E402
from model_summary import summary  # noqa: E402
from target_tables import TARGET_TABLES  # noqa: E402

PAGE = HERE.parents[1] / "docs" / "device-model.md"
TABLES = {**DECISION_TABLES, **TARGET_TABLES, "summary": summary}
_PART = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return a page with all of its tables computed.

    Raises:
        ValueError: it lacks a table, or has an unknown one.
    """
    names = [name for _, name, _ in _PART.findall(text)]
    if sorted(names) != sorted(TABLES):
        raise ValueError(f"the page must have the tables {sorted(TABLES)}, got {sorted(names)}")
    return _PART.sub(lambda part: f"{part[1]}{TABLES[part[2]]()}\n{part[3]}", text)


def main() -> None:
    """Write or compare the page."""
    text = PAGE.read_text(encoding="utf-8")
    new = filled(text)
    if "--write" in sys.argv[1:]:
        PAGE.write_text(new, encoding="utf-8")
    elif new != text:
        sys.exit(f"{PAGE} has other figures than the model: run it with --write")


if __name__ == "__main__":
    main()
