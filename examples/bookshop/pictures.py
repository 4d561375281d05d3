"""Thumbnails, without a library: pictures are binary PPM files (P6)."""

from __future__ import annotations


class NotAPicture(ValueError):
    """The bytes are not a binary PPM file."""


def shrink(picture: bytes, width: int) -> bytes:
    """The same picture ``width`` pixels wide, or as it is if it is not wider than that."""
    old_width, old_height, pixels = _parse(picture)
    if old_width <= width:
        return picture
    height = max(1, old_height * width // old_width)
    rows = []
    for y in range(height):
        start = (y * old_height // height) * old_width
        columns = (start + x * old_width // width for x in range(width))
        rows.append(b"".join(pixels[3 * at : 3 * at + 3] for at in columns))
    return b"P6 %d %d 255\n" % (width, height) + b"".join(rows)


def size_of(picture: bytes) -> tuple[int, int]:
    """Width and height in pixels."""
    width, height, _ = _parse(picture)
    return width, height


def _parse(picture: bytes) -> tuple[int, int, bytes]:
    try:
        kind, width, height, rest = picture.split(maxsplit=3)
        depth, pixels = rest.split(b"\n", maxsplit=1)
        found = int(width), int(height), pixels
    except ValueError:
        raise NotAPicture("no PPM file") from None
    if kind != b"P6" or depth != b"255" or min(found[:2]) < 1 or len(pixels) != 3 * found[0] * found[1]:
        raise NotAPicture("no PPM file, or a damaged one")
    return found
