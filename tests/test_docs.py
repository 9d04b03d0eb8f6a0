"""The documentation site builds without a warning, and what is missing or broken is found."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

griffe = pytest.importorskip("griffe", reason="needs the extra docs")
pytest.importorskip("mkdocs", reason="needs the extra docs")

ROOT = Path(__file__).resolve().parents[1]
NAMES = runpy.run_path(str(ROOT / "tools" / "check_public_names.py"))


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)],
        cwd=config.parent,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


def test_every_public_name_has_a_docstring_and_a_page() -> None:
    assert NAMES["missing"](ROOT, "eaglerl", ROOT / "docs" / "reference") == []


def test_undocumented_names_are_found(tmp_path: Path) -> None:
    package = tmp_path / "sample"
    package.mkdir()
    (package / "__init__.py").write_text(
        '"""A package."""\nfrom sample.parts import A, b\n\n__all__ = ["A", "b", "c"]\n'
    )
    (package / "parts.py").write_text(
        'class Base:\n    def told(self):\n        """Documented here."""\n\n\n'
        'class A(Base):\n    """Documented."""\n    def told(self): ...\n'
        "    def silent(self): ...\n\n\n"
        "def b(): ...\n"
    )
    assert NAMES["missing"](tmp_path, "sample", tmp_path) == [
        "no docstring: sample.A.silent",
        "no docstring: sample.b",
        "no docstring: sample.c (is not defined)",
        "no page in the reference: sample",
    ]
    (tmp_path / "sample.md").write_text("# `sample`\n\n::: sample\n")
    assert len(NAMES["missing"](tmp_path, "sample", tmp_path)) == 3


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    result = build(ROOT / "mkdocs.yml", tmp_path / "site")
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    reference = (tmp_path / "site" / "reference" / "eagle3.html").read_text(encoding="utf-8")
    assert 'id="eaglerl.eagle3.SpeculativeDecoder.generate"' in reference
    page = (tmp_path / "site" / "architecture.html").read_text(encoding="utf-8")
    assert '<pre class="mermaid">' in page
    first = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="policies.html"' in first
    assert 'src="images/live-view.png"' in first


BROKEN_LINKS = """# Page

[no file](nowhere.md), [no file outside of docs](../elsewhere.md), [no heading](#nothing),
[no heading of another file](../README.md#nothing-there)
"""


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (BROKEN_LINKS, ["nowhere.md", "elsewhere.md", "'#nothing'", "#nothing-there"]),
        ("::: eaglerl.nothing\n", ["eaglerl.nothing"]),
    ],
    ids=["links", "names"],
)
def test_what_is_broken_fails_the_build(tmp_path: Path, text: str, messages: list[str]) -> None:
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "page.md").write_text(text, encoding="utf-8")
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\nhooks: [{ROOT / 'tools/site_hooks.py'}]\n"
        "nav: [page.md]\nplugins: [search, mkdocstrings]\n"
        "validation: {nav: {omitted_files: ignore}}\n",
        encoding="utf-8",
    )
    result = build(config, tmp_path / "site")
    assert result.returncode != 0
    for message in messages:
        assert message in result.stderr
