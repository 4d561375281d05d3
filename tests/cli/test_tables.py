"""Tables: plain, and with rich; whatever a cell holds, it stays on its line."""

from __future__ import annotations

import io
import sys

import pytest

from greenroom.cli.tables import Column, print_json, print_table
from tests.cli.kit import Terminal

COLUMNS = (Column("NAME"), Column("COUNT", is_number=True), Column("TEXT", may_be_cut=True))
WILD = "[red]a[/red]\nb\x1b[2Jc\r" + "x" * 200


def printed(rows: list[list[object]], file: io.StringIO) -> list[str]:
    print_table(COLUMNS, rows, file=file)
    return file.getvalue().splitlines()


@pytest.fixture
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)


@pytest.fixture(autouse=True)
def of_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")


def test_a_plain_table() -> None:
    """Columns are as wide as their widest cell; numbers stand to the right; nothing is cut."""
    lines = printed([["a", 1, "one"], ["bcdef", 1000, WILD]], io.StringIO())
    assert lines == [
        "NAME   COUNT  TEXT",
        "a          1  one",
        "bcdef   1000  [red]a[/red]\\nb\\x1b[2Jc\\r" + "x" * 200,
    ]


def test_an_empty_table() -> None:
    """Without rows the titles are left."""
    assert printed([], io.StringIO()) == ["NAME  COUNT  TEXT"]


def test_a_terminal_without_rich(without_rich: None) -> None:
    """At a terminal a line is cut to its width, also without rich."""
    lines = printed([["bcdef", 1000, WILD]], Terminal())
    assert max(map(len, lines)) == 60
    assert lines[1].endswith("xxx...")
    assert lines[1].startswith("bcdef   1000  [red]a[/red]\\nb\\x1b")


def test_a_terminal_with_rich() -> None:
    """With rich, too, a row is one line, markup in a cell is text, and only what may be cut is cut."""
    pytest.importorskip("rich")
    lines = printed([["a" * 30, 1, WILD], ["b", 2, "short"]], Terminal())
    assert [line.split() for line in lines] == [
        ["NAME", "COUNT", "TEXT"],
        ["a" * 30, "1", "[red]a[/red]\\nb\\x1..."],
        ["b", "2", "short"],
    ]
    assert max(map(len, lines)) <= 60


@pytest.mark.parametrize("has_rich", [True, False])
def test_what_may_not_be_cut_is_not(request: pytest.FixtureRequest, has_rich: bool) -> None:
    """A line that cannot be made narrow enough is longer than the terminal; an id is never cut."""
    if not has_rich:
        request.getfixturevalue("without_rich")
    lines = printed([["a" * 80, 1, WILD]], Terminal())
    assert lines[1].split()[:2] == ["a" * 80, "1"]


def test_columns_share_the_room(without_rich: None) -> None:
    """Of two columns that may be cut the narrow one keeps its width, and the other gets what is left."""
    file = Terminal()
    columns = (Column("LONG", may_be_cut=True), Column("SHORT", may_be_cut=True), Column("ID"))
    print_table(columns, [["l" * 100, "s" * 14, "i" * 10]], file=file)
    _title, line = file.getvalue().splitlines()
    assert line == f"{'l' * 29}...  {'s' * 14}  {'i' * 10}"


def test_the_same_words_with_and_without_rich(without_rich: None) -> None:
    """A table that fits says the same either way."""
    rows: list[list[object]] = [["a", 1, "one"], ["b", 22, "two"]]
    plain = [line.split() for line in printed(rows, io.StringIO())]
    sys.modules.pop("rich.console")
    rich = [line.split() for line in printed(rows, Terminal())]
    assert rich == plain


def test_json_of_anything(capsys: pytest.CaptureFixture[str]) -> None:
    """What JSON has no form for becomes text, keys become text, NaN and Infinity become null, and half of a surrogate
    pair is written as an escape."""
    print_json(
        {
            1: {
                2.5,
            },
            "n": [float("nan"), float("-inf")],
            "s": "\ud800",
            "b": b"\xff",
        }
    )
    assert capsys.readouterr().out.split() == (
        r"""{ "1": "{2.5}", "n": [ null, null ], "s": "\ud800", "b": "b'\\xff'" }""".split()
    )
