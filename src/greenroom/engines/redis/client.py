"""The client that says where a server is."""

from __future__ import annotations

from typing import Any

import redis


def client_of(client: Any, url: str | None, parameters: dict[str, Any]) -> Any:
    """The client that was given, or one by a URL or by what ``redis.Redis`` takes. It is not connected.

    Raises:
      ValueError: If both were given.
    """
    if client is None:
        return redis.Redis(**parameters) if url is None else redis.Redis.from_url(url, **parameters)
    if url is not None or parameters:
        raise ValueError("Say where the server is either by client= or by url= and other keywords, not by both.")
    return client
