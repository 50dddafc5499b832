"""Every code block of the docs runs, and prints what the page says it prints.

The ``python`` blocks of a page run in order in one namespace. A ``text`` block after one is what it printed. A ``console``
block is a terminal: lines after ``$`` run, by :func:`gradfit.cli.main` in this process, the lines between are what they print.
Spacing does not matter; numbers agree to 1e-4 relative or one unit of the last digit shown, whole
numbers exactly; ``...`` stands for anything.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import linecache
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gradfit.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
LANGUAGES = {"python", "text", "console", "sh", "json", ""}  # the last three are shown, not run
RTOL, ATOL = 1e-4, 1e-9  # below atol a number is what rounding left
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)
MAX_PICTURE = 100_000  # bytes


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """Give the fenced blocks of a page with the number of their first line."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
        else:
            yield Block(lines[start].removeprefix("```").strip(), "\n".join(lines[start + 1 : number]), start + 2)
            start = None
    assert start is None, f"{page.name}: the block of line {start} is not closed"


def agree(expected: str, printed: str) -> bool:
    """Compare a line by its words and its numbers; ``...`` in what is expected stands for anything."""
    pattern, numbers = "", []
    for piece in re.split(rf"({NUMBER.pattern}|\.\.\.|\s+)", expected.strip(), flags=re.IGNORECASE):
        if NUMBER.fullmatch(piece):
            pattern += f"({NUMBER.pattern})"
            numbers.append(piece)
        else:
            pattern += ".*" if piece == "..." else r"\s+" if piece.isspace() else re.escape(piece)
    found = re.fullmatch(pattern, printed.strip(), flags=re.IGNORECASE)
    return found is not None and all(map(same_number, numbers, found.groups()))


def same_number(expected: str, printed: str) -> bool:
    """Tell whether two numbers are one: exactly if whole, else to RTOL or the last digit shown."""
    if expected == printed:
        return True
    if expected.lstrip("+-").isdigit():
        return False
    return abs(float(expected) - float(printed)) <= max(RTOL * abs(float(expected)), 1.001 * last_digit(expected)) + ATOL


def last_digit(number: str) -> float:
    """Give the unit of the last digit shown: rounding may fall to either side of it."""
    mantissa, _, power = number.lower().partition("e")
    return float(f"1e{int(power or 0) - len(mantissa.partition('.')[2])}")


def compare(expected: str, printed: str, where: str) -> None:
    """Compare line by line; a line ``...`` stands for any number of lines."""
    wanted, found = expected.strip("\n").splitlines(), printed.strip("\n").splitlines()
    wanted, found = ([line.rstrip() for line in lines] for lines in (wanted, found))
    position = 0
    for index, line in enumerate(wanted):
        if line.strip() == "...":
            rest = [later for later in wanted[index + 1 :] if later.strip()]
            if not rest:
                return
            while position < len(found) and not agree(rest[0], found[position]):
                position += 1
            continue
        if not line.strip() and position < len(found) and found[position].strip():
            continue  # an empty line beside "..."
        shown = found[position] if position < len(found) else "(nothing more)"
        assert agree(line, shown), f"{where}: the page says\n  {line}\nand the code prints\n  {shown}\nof\n{printed}"
        position += 1
    rest = [line for line in found[position:] if line.strip()]
    assert not rest, f"{where}: the code prints more than the page says:\n" + "\n".join(rest)


def run_python(block: Block, namespace: dict[str, Any], name: str) -> str:
    """Run a block as a person would type it; give what it printed."""
    source = f"<{name}, line {block.line}>"
    linecache.cache[source] = (len(block.text), None, block.text.splitlines(keepends=True), source)  # for inspect.getsource
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, source, "exec"), namespace)  # noqa: S102
    return printed.getvalue()


class Terminal:
    """Runs ``$ gradfit ...``, ``$ cat FILE`` and ``$ echo $?``; ``> FILE`` at the end keeps stdout."""

    def __init__(self) -> None:
        self.code = 0

    def run(self, command: str) -> str:
        words = shlex.split(command)
        both, kept = io.StringIO(), None
        if ">" in words:
            kept = Path(words[-1])
            words = words[: words.index(">")]
        out = io.StringIO() if kept is not None else both
        match words:
            case ["gradfit", *arguments]:
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(both):
                    self.code = main(arguments)
            case ["cat", *files]:
                for file in files:
                    out.write(Path(file).read_text(encoding="utf-8"))
            case ["echo", "$?"]:
                out.write(f"{self.code}\n")
            case _:
                pytest.fail(f"the docs show a command that is not known here: {command}")
        if kept is not None:
            kept.write_text(out.getvalue(), encoding="utf-8")
        return both.getvalue()


def run_console(block: Block, where: str) -> None:
    """Run each command and compare it with the lines that follow it."""
    terminal = Terminal()
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.replace("\\\n", " ").partition("\n")
        compare(expected, terminal.run(command), f"{where}: $ {command}")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples, and no screen."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("workplace")
def test_code_blocks_run_and_print_what_the_page_says(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        assert block.language in LANGUAGES, f"{where}: a block of {block.language!r} is neither run nor known"
        if block.language == "python":
            printed = run_python(block, namespace, page.name)
        elif block.language == "text":
            compare(block.text, printed, where)
        elif block.language == "console":
            run_console(block, where)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            path, _, anchor = target.partition("#")
            assert (page.parent / path).exists(), f"{page.name} links to {target}, and there is no such file"
            if anchor:
                heads = re.findall(r"^#+ (.+)$", (page.parent / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, target


def test_every_option_of_the_command_line_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    for command in ("fit", "predict", "report"):
        main([command, "--help"])
        options = set(re.findall(r"^ +(--[a-z-]+)", capsys.readouterr().out, flags=re.MULTILINE)) - {"--help"}
        assert options
        for option in options:
            assert f"`{option}" in page or f" {option} " in page, (
                f"gradfit {command} has {option}, and the page does not say what it is"
            )


def test_pictures_are_made_by_their_script(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pictures.draw(tmp_path)
    kept = {path.name: path for path in (ROOT / "docs" / "images").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
    assert all(path.stat().st_size < MAX_PICTURE for path in kept.values())


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("loss 2.92764557", "loss  2.92764559", True),
        ("loss 2.92764557", "loss 2.95", False),
        ("after 5000 epochs", "after 5001 epochs", False),
        ("w = 0.537 ± 0.036", "w = 0.537 ± 0.036", True),
        ("w = 0.537 ± 0.036", "v = 0.537 ± 0.036", False),
        ("w = 0.537 ± 0.036", "w = 0.536 ± 0.036", True),
        ("w = 0.537 ± 0.036", "w = 0.535 ± 0.036", False),
        ("grad 9.72e-05", "grad 9.74e-05", False),
        ("loss 2.928579 w ...", "loss 2.928580  w 0.5350  b -17.2021", True),
        ("loss 2.928579 w ...", "loss 2.95  w 0.5350  b -17.2021", False),
        ("Converged: ... away.", "Converged: the minimum is 5e-14 standard errors away.", True),
        ("Converged: ... away.", "Diverged: far away.", False),
    ],
)
def test_comparison_of_lines_can_fail(expected: str, printed: str, same: bool) -> None:
    assert agree(expected, printed) is same


def test_comparison_of_blocks_notices_missing_and_surplus_lines() -> None:
    compare("a 1\n...\nz 2", "a 1\nb\nc\nz 2\n", "here")
    for expected, printed in (("a\nb", "a"), ("a", "a\nb"), ("a\n...\nz", "a\nb")):
        with pytest.raises(AssertionError):
            compare(expected, printed, "here")
