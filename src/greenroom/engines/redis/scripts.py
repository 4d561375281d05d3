"""The Lua scripts: each is a file beside this one, loaded by name and run by its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from .connection import Argument, Connection
from .errors import NoScript

_FOLDER = Path(__file__).parent


class Script:
    """A script as the server keeps it. Immutable.

    Parameters:
      text: The whole of it, in Lua.
    """

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def run(self, connection: Connection, keys: Sequence[Argument], args: Sequence[Argument]) -> object:
        """Runs it, and has the server load it if need be; its answer.

        Raises:
          BrokerError: As ``Connection.call``.
        """
        try:
            return connection.call(b"EVALSHA", self.digest, len(keys), *keys, *args)
        except NoScript:  # nothing was done; EVAL loads it and runs it, so that no SCRIPT FLUSH comes between
            return connection.call(b"EVAL", self.text, len(keys), *keys, *args)


@lru_cache(maxsize=64)
def load(name: str, *libraries: str) -> Script:
    """The script ``<name>.lua``, behind ``common.lua`` and these libraries.

    Parameters:
      libraries: Names of further files that come first. Without ``store`` the name ``store`` is nil in the script.
    """
    texts = [_read("common")]
    if "store" not in libraries:
        texts.append("local store\n")
    texts += [_read(library) for library in libraries]
    return Script("".join([*texts, _read(name)]))


@lru_cache(maxsize=64)
def load_alone(name: str) -> Script:
    """The script ``<name>.lua`` without any library."""
    return Script(_read(name))


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
