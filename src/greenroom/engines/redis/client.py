"""The client that says where a server is."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import redis


def client_of(client: Any, url: str | None, parameters: dict[str, Any]) -> Any:
    """The client that was given, or one by a URL or by what ``redis.Redis`` takes. It is not connected.

    Raises:
      ValueError: If both were given, or if the URL is none.
    """
    if client is None:
        if url is None:
            return redis.Redis(**parameters)
        _check(url)
        return redis.Redis.from_url(url, **parameters)
    if url is not None or parameters:
        raise ValueError("Say where the server is either by client= or by url= and other keywords, not by both.")
    return client


def _check(url: str) -> None:
    try:
        _ = urlsplit(url).port
    except ValueError:
        # Not `from` it: where a password has such a character, that error quotes a part of it.
        raise ValueError(
            "This is no URL of a Redis server: its port is no number. In a user's name or password the characters "
            ": / ? # [ ] @ have to be percent-encoded."
        ) from None
