"""Check that every public name has a docstring and a place in the reference.

A name is public if it is in the ``__all__`` of a package, or is a method or property of a public
class. A method may inherit its docstring. `make docs` calls this before it builds the site:

    python tools/check_public_names.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"


def public_packages(package: griffe.Module) -> Iterator[griffe.Module]:
    """Yield a package and those below it whose ``__all__`` names something."""
    if package.exports and package.is_init_module:
        yield package
    for name, module in package.modules.items():
        if not name.startswith("_") and not module.is_alias:
            yield from public_packages(module)


def undocumented_names(package: griffe.Module) -> Iterator[str]:
    """Yield the public names of a package that have no docstring, or that lead nowhere."""
    for name in map(str, package.exports or ()):
        path = f"{package.path}.{name}"
        if name not in package.members:
            yield f"{path} (is not defined)"
            continue
        member = package.members[name]
        try:
            target = member.final_target if member.is_alias else member
        except griffe.AliasResolutionError:
            yield f"{path} (cannot be resolved)"
            continue
        if not target.has_docstring:
            yield path
        if target.is_class:
            yield from (f"{path}.{method}" for method in undocumented_methods(target))


def undocumented_methods(cls: griffe.Class) -> Iterator[str]:
    """Yield the public methods and properties of a class without a docstring, own or inherited."""
    for name, member in cls.members.items():
        if name.startswith("_") or member.is_alias:
            continue
        if not (member.is_function or "property" in member.labels) or member.has_docstring:
            continue
        bases = cls.mro()
        if not any(name in base.members and base.members[name].has_docstring for base in bases):
            yield name


def missing_pages(packages: list[griffe.Module], reference: Path) -> Iterator[str]:
    """Yield the public packages that no page of the reference shows."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in reference.glob("*.md"))
    shown = {line.removeprefix("::: ").strip() for line in pages.splitlines() if line[:4] == "::: "}
    for package in packages:
        if package.path not in shown:
            yield package.path


def missing(root: Path, name: str, reference: Path) -> list[str]:
    """Return a line for every public name without a docstring and every package without a page.

    Args:
        root: the folder that holds the package.
        name: the package.
        reference: the folder of the reference's pages.
    """
    package = griffe.load(name, search_paths=[root], resolve_aliases=True)
    packages = list(public_packages(package))
    undocumented = [name for package in packages for name in undocumented_names(package)]
    return [
        *(f"no docstring: {name}" for name in undocumented),
        *(f"no page in the reference: {name}" for name in missing_pages(packages, reference)),
    ]


def main() -> int:
    """Print what is missing and return the exit code."""
    lines = missing(ROOT, "eaglerl", REFERENCE)
    sys.stderr.writelines(f"{line}\n" for line in lines)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
