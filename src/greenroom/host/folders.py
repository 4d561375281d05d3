"""Folders for the files by which processes of one host know of each other."""

from __future__ import annotations

from pathlib import Path


def folder_mode(mode: int) -> int:
    """The permissions of a folder for files of ``mode``: who may read may also enter."""
    return mode | ((mode & 0o444) >> 2)


def make_folder(path: Path, mode: int) -> None:
    """Makes the folder for files of ``mode``, if it is not there."""
    if not path.is_dir():
        path.mkdir(exist_ok=True)
        path.chmod(folder_mode(mode))
