"""The reference of the command line is what the parsers say."""

from __future__ import annotations

from pathlib import Path

import pytest

from greenroom.cli import COMMANDS
from greenroom.cli.reference import BEGIN, END, with_reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def test_the_page_is_up_to_date() -> None:
    """``docs/cli.md`` has the reference of now; ``make reference`` writes it."""
    page = PAGE.read_text("utf-8")
    assert page == with_reference(page), "run: make reference"


def test_every_command_is_in_it() -> None:
    """Each subcommand has a heading."""
    page = PAGE.read_text("utf-8")
    assert [name for name in COMMANDS if f"\n### greenroom {name}\n" not in page] == []


def test_what_is_written_by_hand_stays() -> None:
    """Only what stands between the marks is replaced; a page without marks is refused."""
    page = with_reference(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert page.startswith(f"before\n{BEGIN}\n\n### greenroom worker\n")
    assert page.endswith(f"\n{END}\nafter\n")
    assert "old\n" not in page
    with pytest.raises(ValueError, match="has no place for the reference"):
        with_reference("no marks")
