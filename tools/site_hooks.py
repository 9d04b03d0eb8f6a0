"""Hooks of mkdocs: the site also shows the repository's own Markdown files.

The documents link to README, model cards, examples and the like by relative paths, as GitHub
expects. These files lie outside of ``docs/``, so they are added to the site under their path in the
repository, and the links between them and ``docs/`` are rewritten.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# Files that the site shows besides docs/. README.md becomes its first page.
OUTSIDE = ("*.md", "LICENSE", "models/*/README.md", "models/*/*.png", "questions/README.md",
           "examples/*")  # fmt: skip

_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside of ``docs/``."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                name = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page from paths in the repository to paths in the site."""
    path = Path(page.file.abs_src_path or DOCS)
    parts = _FENCE.split(markdown)
    # Every second part is a fenced block.
    parts[::2] = [rewrite_links(part, path, page.file.src_uri) for part in parts[::2]]
    return "".join(parts)


def rewrite_links(text: str, path: Path, uri: str) -> str:
    """Rewrite the relative links of Markdown for the site.

    Args:
        text: the Markdown.
        path: the file that it comes from.
        uri: place of that file in the site, relative to the site's root.
    """

    def rewrite(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if re.match(r"[a-z]+:", target):
            return match[0]
        linked = Path(os.path.normpath(path.parent / target))
        if linked == ROOT / "examples":
            linked = linked / "README.md"
        if not linked.is_relative_to(ROOT) or not linked.exists():
            return match[0]  # mkdocs reports it.
        base = DOCS if linked.is_relative_to(DOCS) else ROOT
        relative = os.path.relpath(linked.relative_to(base), Path(uri).parent)
        return f"]({Path(relative).as_posix()}{anchor})"

    return _LINK.sub(rewrite, text)
