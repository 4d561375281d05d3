"""Which files of a folder are text. Decided by name: none is opened here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

TEXT_SUFFIXES = frozenset(
    """
    .adoc .asm .bat .bib .c .cc .cfg .cl .clj .cls .cmake .conf .cpp .cs .css .csv .cxx .d .dart .diff .el .erl .ex .exs
    .f90 .fs .go .gradle .graphql .groovy .h .hh .hpp .hs .htm .html .hxx .ini .java .jl .js .json .jsonl .jsx .kt .less
    .lisp .log .lua .m .markdown .md .mjs .mk .ml .mli .nim .org .pas .patch .php .pl .pm .po .properties .proto .ps1
    .py .pyi .pyx .r .rb .rs .rst .sass .scala .scm .scss .sh .sql .srt .svelte .svg .swift .tcl .tex .text .tf .toml
    .ts .tsv .tsx .txt .v .vb .vim .vue .xml .yaml .yml .zig .zsh
    """.split()
)
TEXT_NAMES = frozenset(
    "authors changelog contributing copying dockerfile license makefile news notice rakefile readme todo".split()
)
JUNK_FOLDERS = frozenset("__pycache__ build dist env node_modules site-packages target vendor venv".split())


def text_files(folder: Path) -> list[str]:
    """The paths of the text files under a folder, in order. Hidden, ignored and binary files are left out.

    What is ignored git says, where the folder belongs to a repository; elsewhere the usual junk folders are skipped.
    """
    names = listed_by_git(folder)
    if names is None:
        names = list(walk(folder))
    return sorted({os.path.join(folder, name) for name in names if is_text(name) and is_file(folder, name)})


def listed_by_git(folder: Path) -> list[str] | None:
    """The files that git keeps, or would keep; None without git or outside a repository."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, capture_output=True, check=True).stdout  # noqa: S603  # the words are ours
    except (OSError, subprocess.CalledProcessError):
        return None
    return [os.fsdecode(name) for name in listing.split(b"\0") if name]


def walk(folder: Path) -> Iterator[str]:
    """The files under a folder, relative to it, without hidden and junk folders. Links are not followed."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in JUNK_FOLDERS]
        for name in files:
            yield os.path.relpath(os.path.join(parent, name), folder)


def is_text(name: str) -> bool:
    """Whether a relative path is visible and names a text file."""
    parts = name.split(os.sep)
    if any(part.startswith(".") for part in parts):
        return False
    stem, suffix = os.path.splitext(parts[-1].lower())
    return suffix in TEXT_SUFFIXES if suffix else stem in TEXT_NAMES


def is_file(folder: Path, name: str) -> bool:
    """Whether it is there and a plain file: no link, pipe or sub-repository."""
    path = folder / name
    return path.is_file() and not path.is_symlink()
