"""Run mypy over the package; fail if a part of it has more errors than it may have.

    python tools/check_types.py

pyproject.toml lists the parts that still have errors, in ``[tool.eaglerl.type-errors]``; the others
must have none. If a part has fewer than listed, a message asks to lower the list, but that is not a
failure, because another release of a library may bring other types.
"""

import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_ERROR = re.compile(r"^eaglerl[/\\]([^/\\:]+?)(?:\.pyi?)?[/\\:].*: error: ", re.MULTILINE)


def count_errors(report: str) -> Counter[str]:
    """Count the errors of mypy's report by the part of the package in which they lie."""
    return Counter(_ERROR.findall(report))


def too_many(found: Counter[str], allowed: dict[str, int]) -> dict[str, str]:
    """Return a sentence for each part that has more errors than listed."""
    return {
        part: f"eaglerl.{part}: {found[part]} type errors, at most {allowed.get(part, 0)} allowed"
        for part in sorted(found)
        if found[part] > allowed.get(part, 0)
    }


def to_be_lowered(found: Counter[str], allowed: dict[str, int]) -> list[str]:
    """Return a sentence for each part that has fewer errors than listed."""
    return [
        f"eaglerl.{part}: {found[part]} type errors, {allowed[part]} in pyproject.toml: lower that"
        for part in sorted(allowed)
        if found[part] < allowed[part]
    ]


def main() -> int:
    """Run mypy, print the errors of parts that have too many, and return the exit status."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        allowed = tomllib.load(file)["tool"]["eaglerl"]["type-errors"]
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "-p", "eaglerl"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1):
        sys.stderr.write(result.stdout + result.stderr)
        return result.returncode
    found = count_errors(result.stdout)
    failed = too_many(found, allowed)
    lines = [line for line in result.stdout.splitlines() if set(_ERROR.findall(line)) & {*failed}]
    lines += [*failed.values(), *to_be_lowered(found, allowed)]
    lines.append(f"types: {found.total()} errors, {sum(allowed.values())} allowed")
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
