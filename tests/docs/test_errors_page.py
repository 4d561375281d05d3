"""``docs/errors.md`` lists every error, under its true bases."""

from __future__ import annotations

import re
from pathlib import Path

from greenroom import errors, middleware

PAGE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
ROW = re.compile(r"^\| `(?P<name>[A-Z]\w+)` \| (?P<bases>(?:`\w+`(?:, )?)+) \|", re.MULTILINE)


def listed() -> dict[str, list[str]]:
    """The page's first table: each error and its bases."""
    return {row["name"]: re.findall(r"\w+", row["bases"]) for row in ROW.finditer(PAGE.read_text("utf-8"))}


def defined() -> dict[str, list[str]]:
    found = {**vars(errors), "TimeLimitExceeded": middleware.TimeLimitExceeded, "Shutdown": middleware.Shutdown}
    classes = [value for value in found.values() if isinstance(value, type) and issubclass(value, BaseException)]
    return {error.__name__: [base.__name__ for base in error.__bases__] for error in classes}


def test_the_page_lists_every_error_with_its_bases() -> None:
    """Programs are written by this table: what it says is so, and nothing is left out."""
    assert listed() == defined()
