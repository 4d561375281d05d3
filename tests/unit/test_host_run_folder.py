"""The folder in which processes of one host meet that share a broker: one a user and broker, and nobody else's."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from greenroom.host.run_folder import make_run_folder, place_of


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, and no variable that names another."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("GREENROOM_RUN_FOLDER", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return folder


def test_each_user_has_one_among_the_temporary_files(temporary: Path) -> None:
    """Where nothing is said it lies among the temporary files, below a folder of this user, and both are private."""
    folder = make_run_folder("abc")
    assert folder == temporary / f"greenroom-{os.geteuid()}" / "abc"
    assert (folder.stat().st_mode & 0o777, folder.parent.stat().st_mode & 0o777) == (0o700, 0o700)
    assert make_run_folder("abc") == folder


def test_it_lies_where_the_session_keeps_such_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``XDG_RUNTIME_DIR`` is taken if it is private and there."""
    session = tmp_path / "session"
    session.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    assert make_run_folder("abc") == session / "greenroom" / "abc"


@pytest.mark.parametrize("fault", ["gone", "open"])
def test_a_folder_of_another_session_is_passed_over(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """An ``XDG_RUNTIME_DIR`` that is not there any more, or not private, is not taken."""
    session = tmp_path / "session"
    if fault == "open":
        session.mkdir()
        session.chmod(0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    assert temporary in make_run_folder("abc").parents


def test_the_variable_and_the_caller_name_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``GREENROOM_RUN_FOLDER`` comes before the session's folder, and the caller's word before both."""
    monkeypatch.setenv("GREENROOM_RUN_FOLDER", str(tmp_path / "a" / "b"))
    assert make_run_folder("abc") == tmp_path / "a" / "b" / "abc"
    assert make_run_folder("abc", tmp_path / "c") == tmp_path / "c" / "abc"


@pytest.mark.parametrize("fault", ["open", "link", "file"])
def test_what_others_may_enter_is_refused(temporary: Path, tmp_path: Path, fault: str) -> None:
    """A folder that others may enter, a link and a file are no place to say who is alive."""
    place = temporary / f"greenroom-{os.geteuid()}"
    if fault == "open":
        place.mkdir()
        place.chmod(0o777)
    elif fault == "link":
        place.symlink_to(tmp_path)
    else:
        place.touch()
    with pytest.raises(OSError, match="greenroom-"):
        make_run_folder("abc")


def test_a_place_is_of_one_folder(tmp_path: Path) -> None:
    """The same folder has the same place, by whatever name; another one has another."""
    first, second = make_run_folder("first", tmp_path), make_run_folder("second", tmp_path)
    alias = tmp_path / "alias"
    alias.symlink_to(first)
    assert place_of(first) == place_of(alias) != place_of(second)
