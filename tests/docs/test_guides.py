"""The examples in the guides and in the README are run.

All ``python`` blocks of a page are run by pytest, in a folder of the page's own. A block whose first line is a comment
with the name of a file, such as ``# tasks.py``, is that file, or goes on with it; other blocks make one module, in
their order. Tests in the blocks are run, everything else is imported. Lines keep their numbers, so that a traceback
points at the page.

A block that cannot be run says why, in a comment before it: ``<!-- not run: needs a server -->``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "coming-from-dramatiq.md",
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
]

BLOCK = re.compile(
    r"(?:^<!--[ ]*not run:(?P<reason>.*?)-->\n+)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
FILE_NAME = re.compile(r"# (?P<name>\w+\.py)\n")
#: What pytest says when all went well, and when there were no tests to run.
FINE = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


@dataclass
class Block:
    """A block of code, and the number of its first line."""

    code: str
    line: int
    reason: str | None  # why it is not run

    @property
    def file_name(self) -> str | None:
        named = FILE_NAME.match(self.code)
        return named["name"] if named else None


def blocks_of(text: str) -> Iterator[Block]:
    for found in BLOCK.finditer(text):
        yield Block(found["code"], text.count("\n", 0, found.start("code")) + 1, found["reason"])


def write_files(text: str, name: str, folder: Path) -> list[str]:
    """Writes the blocks of a page to their files; returns the names of those that pytest is to look at."""
    lines: dict[str, list[str]] = {}
    for block in blocks_of(text):
        if block.reason is None:
            file = lines.setdefault(block.file_name or f"page_{name}.py", [])
            file += [""] * (block.line - 1 - len(file))
            file += block.code.splitlines()
    for file_name, content in lines.items():
        (folder / file_name).write_text("\n".join(content) + "\n", "utf-8")
    return [file_name for file_name in lines if file_name != "conftest.py"]


def run(text: str, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a page; one without code is fine."""
    files = write_files(text, name, folder)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    if not files:
        return subprocess.CompletedProcess(command, pytest.ExitCode.OK, "", "")
    return subprocess.run(
        [*command, "--strict-markers", *files], cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path) -> None:
    """Every example can be copied and works."""
    done = run(page.read_text("utf-8"), page.stem, tmp_path)
    assert done.returncode in FINE, f"{page.name} (lines are those of the page):\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_not_run_has_a_reason(page: Path) -> None:
    """No example is left out without a word, and no fence is written so that it would be missed."""
    text = page.read_text("utf-8")
    assert [block.line for block in blocks_of(text) if block.reason is not None and not block.reason.strip()] == []
    fences = len(re.findall(r"^\s*(?:```|~~~)\s*py", text, re.MULTILINE))
    assert fences == len(list(blocks_of(text))), "an example is indented, not closed, or marked in another way"


PAGE = """
```python
# tasks.py
answer = 42
```

and

```python
from tasks import answer
```

<!-- not run: needs a server -->
```python
import no_such_module
```

```python
def test_answer():
    assert answer == {expected}
```
"""


def test_a_page_that_works(tmp_path: Path) -> None:
    """Named files, the page's own module, tests and excuses: all are understood."""
    assert run(PAGE.replace("{expected}", "42"), "page", tmp_path).returncode == pytest.ExitCode.OK


def test_a_page_that_is_wrong(tmp_path: Path) -> None:
    """A wrong example fails, and the report names the line of the page."""
    done = run(PAGE.replace("{expected}", "43"), "page", tmp_path)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "page_page.py:20: AssertionError" in done.stdout


def test_a_page_that_cannot_be_imported(tmp_path: Path) -> None:
    """Code outside of tests is run, too."""
    done = run("```python\n1 / 0\n```\n", "page", tmp_path)
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert "ZeroDivisionError" in done.stdout


def test_a_page_without_code(tmp_path: Path) -> None:
    """Prose needs no test."""
    assert run("# Prose\n", "page", tmp_path).returncode == pytest.ExitCode.OK
