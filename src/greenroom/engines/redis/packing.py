"""MessagePack as the scripts read it: what the server's ``cmsgpack`` knows, which is bytes as texts of any bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

#: What can be packed.
Packable: TypeAlias = "bytes | str | int | Sequence[Packable]"

_pack_number = msgspec.msgpack.Encoder().encode


def pack(value: Packable) -> bytes:
    """A value as the scripts' ``cmsgpack.unpack`` reads it."""
    parts: list[bytes] = []
    _add(value, parts)
    return b"".join(parts)


def _add(value: Packable, parts: list[bytes]) -> None:
    if isinstance(value, int):
        parts.append(_pack_number(value))
        return
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    size = len(data)
    if isinstance(data, bytes):
        parts.append(_header(size, 0xA0, 32, 0xDA))
        parts.append(data)
        return
    parts.append(_header(size, 0x90, 16, 0xDC))
    for item in data:
        _add(item, parts)


def _header(size: int, short: int, shorter_than: int, long: int) -> bytes:
    """How large what follows is: in the byte of its type, in two bytes or in four."""
    if size < shorter_than:
        return bytes((short + size,))
    if size < 1 << 16:
        return bytes((long,)) + size.to_bytes(2, "big")
    return bytes((long + 1,)) + size.to_bytes(4, "big")
