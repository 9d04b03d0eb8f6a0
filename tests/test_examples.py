"""The documents agree with the code: examples run, commands, options, files and links are there.

A Python block is executed in a namespace of its own; after a comment ``<!-- continues -->`` it goes
on with that of the block before. Of commands only the arguments are read.
"""

from __future__ import annotations

import functools
import re
import shlex
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from eaglerl.cli.app import app
from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.prepare import DEFAULT_MODEL, default_draft_path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CONTINUES = "<!-- continues -->"
# What `eaglerl serve` listens at; an example that asks there gets a server.
SERVED_AT = "http://127.0.0.1:8000"
SHELLS = ("", "sh", "bash", "console")
COMMANDS = typer.main.get_command(app).commands
# click's UsageError, wherever this release of typer keeps it.
UsageError = typer.BadParameter.__mro__[1]


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: number of its first line.
        language: what follows the fence; empty for none.
        text: its lines.
        continues: whether it goes on with the block before.
    """

    line: int
    language: str
    text: str
    continues: bool = False


def read_blocks(text: str) -> tuple[list[Block], str]:
    """The fenced blocks of a document, and what stands outside of them."""
    blocks: list[Block] = []
    outside: list[str] = []
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        if not line.startswith("```"):
            outside.append(line)
            continue
        inside: list[str] = []
        for _, following in lines:
            if following.startswith("```"):
                break
            inside.append(following)
        else:
            raise ValueError(f"the block in line {number} has no end")
        before = next((text for text in reversed(outside) if text.strip()), "")
        language = line.removeprefix("```").strip()
        blocks.append(Block(number + 1, language, "\n".join(inside), before.strip() == CONTINUES))
        # What stood before this block says nothing about the next one.
        outside.append(f"<!-- block in line {number} -->")
    return blocks, "\n".join(outside)


def python_examples(text: str) -> list[list[Block]]:
    """The Python blocks, those that continue each other together."""
    examples: list[list[Block]] = []
    for block in read_blocks(text)[0]:
        if block.language != "python":
            continue
        if not block.continues:
            examples.append([block])
        elif examples:
            examples[-1].append(block)
        else:
            raise ValueError(f"the block in line {block.line} continues nothing")
    return examples


def shell_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines of blocks without a language or of a shell's, continued ones as one."""
    for block in read_blocks(text)[0]:
        if block.language not in SHELLS:
            continue
        parts: list[str] = []
        for number, line in enumerate(block.text.splitlines(), start=block.line):
            parts.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                yield number, "".join(parts)
                parts = []


def inline_code(text: str) -> list[str]:
    """Code within sentences and tables, in one line each."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", read_blocks(text)[1])]


def eaglerl_calls(text: str) -> list[tuple[int, list[str]]]:
    """Line and words of every call of the command line in a shell's blocks."""
    calls = []
    for number, line in shell_lines(text):
        # Variables may be set before it.
        if re.match(r"\s*(\w+=\S*\s+)*eaglerl\s", line):
            words = shlex.split(line, comments=True)
            calls.append((number, words[words.index("eaglerl") + 1 :]))
    return calls


def check_call(words: list[str]) -> None:
    """Let the command read its arguments, and do nothing.

    Raises:
        UsageError: they are wrong.
        KeyError: there is no such command.
    """
    COMMANDS[words[0]].make_context(words[0], words[1:])


def unknown_names(code: str) -> list[str]:
    """What a mention of the command line names that there is not."""
    name, *words = code.removeprefix("eaglerl ").split()
    if name not in COMMANDS:
        return [name]
    known = {"--help", "-h"}
    for parameter in COMMANDS[name].params:
        known |= {*parameter.opts, *parameter.secondary_opts}
    return [word for word in words if word.startswith("-") and word not in known]


def heading_anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", read_blocks(text)[1], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings}


def broken_links(path: Path, text: str) -> list[str]:
    """Links and pictures of a document whose file or heading is not there."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", read_blocks(text)[1]):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        found = target.exists()
        if found and anchor:
            linked = target.read_text(encoding="utf-8") if name else text
            found = anchor in heading_anchors(linked)
        if not found:
            broken.append(link)
    return broken


def missing_files(text: str) -> list[str]:
    """Sources named with their folder that are neither in the repository nor in the package."""
    named = {
        word
        for code in [*inline_code(text), *(line for _, line in shell_lines(text))]
        for word in code.split()
        if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)+\.(py|h|cpp|cu)", word)
    }
    return sorted(
        name for name in named if not ((ROOT / name).exists() or (ROOT / "eaglerl" / name).exists())
    )


def all_examples() -> list[pytest.param]:
    found = []
    for path in DOCUMENTS:
        for example in python_examples(path.read_text(encoding="utf-8")):
            name = f"{path.relative_to(ROOT)}:{example[0].line}"
            found.append(pytest.param(path, example, id=name))
    return found


def document(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def load(smollm2_path: Path):
    """`SpeculativeDecoder.from_pretrained`, which loads what it has loaded only once."""
    return functools.cache(SpeculativeDecoder.from_pretrained)


@pytest.fixture(scope="module")
def address(load, smollm2_path: Path) -> Iterator[str]:
    """The address of a server on a free port, with the modes that need no training."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra server")
    pytest.importorskip("openai", reason="needs OpenAI's client")
    from eaglerl.server import Modes, Service, create_app, standard_modes

    modes = standard_modes()
    service = Service(
        load(smollm2_path, default_draft_path()),
        Modes(modes, modes[0].name),
        model_name=DEFAULT_MODEL,
    )
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize(("path", "example"), all_examples())
def test_python_examples_run(
    path: Path,
    example: list[Block],
    load,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(SpeculativeDecoder, "from_pretrained", load)
    # What they write is not to lie in the repository.
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "example"}
    for block in example:
        text = block.text
        if SERVED_AT in text:
            text = text.replace(SERVED_AT, request.getfixturevalue("address"))
        # A traceback names the document's own lines.
        source = "\n" * (block.line - 1) + text
        exec(compile(source, str(path), "exec", dont_inherit=True), namespace)


@pytest.mark.parametrize("path", DOCUMENTS, ids=document)
def test_commands_take_their_arguments(path: Path) -> None:
    for line, words in eaglerl_calls(path.read_text(encoding="utf-8")):
        try:
            check_call(words)
        except KeyError:
            pytest.fail(f"line {line}: there is no command {words[0]!r}")
        except UsageError as error:
            pytest.fail(f"line {line}, eaglerl {shlex.join(words)}: {error.format_message()}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=document)
def test_mentioned_commands_and_options_exist(path: Path) -> None:
    mentions = inline_code(path.read_text(encoding="utf-8"))
    wrong = {code: unknown_names(code) for code in mentions if code.startswith("eaglerl ")}
    assert {code: names for code, names in wrong.items() if names} == {}


@pytest.mark.parametrize("path", DOCUMENTS, ids=document)
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=document)
def test_named_sources_exist(path: Path) -> None:
    assert missing_files(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=document)
def test_make_targets_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    code = [*inline_code(text), *(line for _, line in shell_lines(text))]
    named = {match[1] for line in code if (match := re.match(r"make ([a-z-]+)", line))}
    assert named <= targets


def test_every_document_with_examples_is_read() -> None:
    # Otherwise a change of the layout could turn the tests above into none.
    examples = {document(parameter.values[0]) for parameter in all_examples()}
    assert examples >= {"README.md", "docs/architecture.md", "docs/policies.md", "docs/traces.md"}
    calls = {document(path) for path in DOCUMENTS if eaglerl_calls(path.read_text("utf-8"))}
    assert calls >= {"README.md", "docs/coming-from-eagle.md", "docs/policies.md"}


SAMPLE = """# A title: with `code`

Text with `eaglerl record
--top-k` and [a link](#a-title-with-code) and [none](#nothing) and [no file](nowhere.md).

```python
a = 1
```

<!-- continues -->
```python
b = a + 1
```

```python
c = 3
```

```
KEY=1 eaglerl generate "two words" \\
    --tree 8,2,4  # why
not eaglerl generate
```
"""


def test_blocks_are_found() -> None:
    first, second = python_examples(SAMPLE)
    assert [(block.line, block.text) for block in first] == [(7, "a = 1"), (12, "b = a + 1")]
    assert [block.text for block in second] == ["c = 3"]
    assert eaglerl_calls(SAMPLE) == [(21, ["generate", "two words", "--tree", "8,2,4"])]
    assert inline_code(SAMPLE) == ["code", "eaglerl record --top-k"]
    assert broken_links(ROOT / "README.md", SAMPLE) == ["#nothing", "nowhere.md"]


@pytest.mark.parametrize(
    "text", ["```python\na = 1", f"{CONTINUES}\n```python\na = 1\n```"], ids=["no end", "nothing"]
)
def test_broken_documents_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="the block in line"):
        python_examples(text)


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--no-such-option"],
        ["calibrate", "--passes", "few"],
        ["record", "traces", "data.jsonl", "--max-depth", "deep"],
        ["serve", "--queue-size", "-1"],
    ],
    ids=" ".join,
)
def test_wrong_calls_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        check_call(words)


def test_wrong_names_are_found() -> None:
    assert unknown_names("eaglerl record --top-k 2 --width 3") == ["--width"]
    assert unknown_names("eaglerl replay --top-k 2") == ["replay"]
    assert missing_files("`tests/conftest.py` and `traces/trace_set.py` and `tests/none.py`") == [
        "tests/none.py"
    ]
