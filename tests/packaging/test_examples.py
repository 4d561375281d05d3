"""The examples run to their end and have something to show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.cli_kit import environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("example", "shown"),
    [
        ("crawler", "60 pages with 1,830 words"),
        ("group", "21 parts have ended, 1 of them badly"),
        ("pipeline", "ended at its first stage: FileNotFoundError"),
        ("rate_limits", "never more than 2 at a time"),
        ("results", "pi is about 3.1"),
    ],
)
def test_an_example(example: str, shown: str) -> None:
    """``python -m examples.<name>`` ends well and prints what it has found."""
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{example}"],
        cwd=ROOT,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
