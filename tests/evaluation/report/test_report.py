"""The command `report` on made-up folders: what the page says, and that it is one."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import IO

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from typer.testing import CliRunner, Result

from eaglerl.cli.app import app
from eaglerl.evaluation.report import Evidence, write_report
from eaglerl.fingerprints import split_of

from ...traces.test_oracle import COST
from ...traces.tiny import made_up_trace
from ..made_up import write_comparison, write_policy, write_traces

TERMINAL = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
SCRIPT = "<script>alert(1)</script>"
DOMAINS = ("qa", "<b>bold&")
#: Elements of HTML that have no end.
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Reads a page and checks on the way that its elements are nested."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids.update(value for name, value in attrs if name == "id")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)], env=TERMINAL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything, and what it was made from."""
    root = tmp_path_factory.mktemp("report")
    write_policy(root / "ppo" / "policy")
    traces = [made_up_trace(16, seed=seed, domain=DOMAINS[seed % 2]) for seed in range(4)]
    write_traces(root / "traces", traces)
    COST.to_json(root / "cost.json")
    modes = {
        "plain": ("plain", lambda n: 2.0),
        "tuned": ("tuned", lambda n: 1.0),
        "quick": (f"policy:{root / 'ppo' / 'policy'}", lambda n: 0.8 + 0.01 * (n % 3)),
        "slow$": ("auto", lambda n: 1.3 + 0.01 * (n % 3)),
        "level": ("baseline:ucb1", lambda n: 1.05 if n % 2 else 1 / 1.05),
        "broken": ("tree:8/2/2", lambda n: 0.5),
    }
    write_comparison(root / "first", modes, domains=DOMAINS, broken="broken", answer=SCRIPT)
    questions = [{"question_id": n, "turns": [f"{SCRIPT} {n}"]} for n in range(8)]
    lines = "".join(json.dumps(line) + "\n" for line in questions)
    (root / "qa.jsonl").write_text(lines)
    result = run(
        root / "first", "-o", root / "out.html", "--figures", root / "figures",
        "--traces", root / "traces", "--cost", root / "cost.json",
        "--questions", root / "qa.jsonl", "--question", "qa/3",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return root


@pytest.fixture(scope="module")
def source(folder: Path) -> str:
    return (folder / "out.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_it_is_a_page(page: Page) -> None:
    assert page.open == []
    assert page.tags["html"] == page.tags["main"] == page.tags["h1"] == 1
    repeated = {name for name, count in page.ids.items() if count > 1}
    assert not repeated
    links = {value for _, name, value in page.attributes if name == "href"}
    assert links
    assert links <= {f"#{name}" for name in page.ids}


def test_nothing_comes_from_elsewhere(source: str, page: Page) -> None:
    assert "script" not in page.tags
    assert not {"link", "iframe", "object", "embed", "image", "img"} & page.tags.keys()
    assert not [value for _, name, value in page.attributes if name.startswith("on")]
    assert not re.search(r"https?:|@import|url\((?!#)|src=", source)


def test_untrusted_texts_are_text(source: str, page: Page) -> None:
    assert SCRIPT not in source
    assert page.text.count(SCRIPT) >= 2
    assert "b" not in page.tags
    assert DOMAINS[1] in page.text


def test_every_mode_and_its_outcome(page: Page) -> None:
    for label in ("plain", "tuned", "quick", "slow$", "level", "broken"):
        assert label in page.text
    for words in ("won", "lost", "no difference", "failed: output differs"):
        assert words in page.text


def test_the_result_in_words(page: Page) -> None:
    # Seconds per question are 0.1 n + 1 in both sets, n from 0 to 7; their weighted mean slowness
    # is 0.81 within 0.01, so that the gain lies between 1 / 0.82 and 1 / 0.80.
    found = re.search(r"quick beat the tuned constant tree 4/1/2: \+(\d+\.\d) %", page.text)
    assert found
    assert 100 * (1 / 0.82 - 1) < float(found.group(1)) < 100 * (1 / 0.80 - 1)
    assert "slow$ lost to the tuned constant tree 4/1/2" in page.text
    assert "It lost on " in page.text
    assert "broken failed: 4 of 32 outputs differ from plain decoding" in page.text
    assert "quick meets the rule" in page.text
    assert "slow$ does not meet the rule" in page.text


def test_parts_of_the_whole(page: Page) -> None:
    for words in (
        "Headroom H",
        "oracle of trees",
        "adaptive",
        "Calibration of slow$",
        "of the draft",
    ):
        assert words in page.text
    assert "The worth of the state: not measured" in page.text


def test_figures(folder: Path, page: Page) -> None:
    files = sorted((folder / "figures").glob("*.png"))
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("div", "aria-label")]
    drawn = [alt for alt in alts if len(alt) > 40 and alt.endswith(".")]
    assert len(files) == page.tags["figure"] == page.tags["svg"] == len(set(drawn))
    for file in files:
        picture = imread(file)
        assert min(picture.shape[:2]) > 150
        assert picture[..., :3].std() > 0.01


def test_nothing_half_written_is_left(folder: Path) -> None:
    assert not list(folder.glob(".*"))
    # One file, as it promises.
    assert [path.name for path in folder.glob("out*")] == ["out.html"]


@pytest.fixture
def _undrawn_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but empty files are written: drawing takes five seconds."""

    def save(figure: Figure, file: IO, **options: object) -> None:
        file.write("<svg></svg>" if options["format"] == "svg" else b"")

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.mark.usefixtures("_undrawn_figures")
@pytest.mark.parametrize(("split", "known"), [("test", True), ("train", False)])
def test_the_comparisons_own_constant_is_what_gains_are_captured_over(
    folder: Path, tmp_path: Path, split: str, known: bool
) -> None:
    traces = [made_up_trace(16, seed=seed) for seed in range(4)]
    half = [trace for trace in traces if split_of(trace.prompt_id) == split]
    write_traces(tmp_path / "traces", half)
    result = run(
        folder / "first", "-o", tmp_path / "a.html", "--traces", tmp_path / "traces",
        "--cost", folder / "cost.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    text = Page((tmp_path / "a.html").read_text(encoding="utf-8")).text
    # The comparison has tuned a tree for the half `test`.
    assert ("tuned constant (on the other half)" in text) == known
    assert ("captured share C: not measured" in text) != known


def test_wrong_use(folder: Path, tmp_path: Path) -> None:
    result = run(folder / "first", "-o", tmp_path / "a.html", "--traces", folder / "traces")
    assert result.exit_code == 2
    assert "--cost" in result.stderr
    result = run(tmp_path, "-o", tmp_path / "a.html")
    assert result.exit_code == 1
    assert "cannot be read" in result.stderr
    evidence = Evidence.read(folder / "first")
    with pytest.raises(ValueError, match="question must be one"):
        write_report([evidence], tmp_path / "a.html", question="qa/99")
    with pytest.raises(ValueError, match="distinct names"):
        write_report([evidence, evidence], tmp_path / "a.html")
    with pytest.raises(ValueError, match="existing folder"):
        write_report([evidence], tmp_path / "none" / "a.html")
    assert not list(tmp_path.iterdir())
