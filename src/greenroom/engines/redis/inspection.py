"""A look at a server that changes nothing, for ``greenroom check``. By INFO alone: managed servers refuse CONFIG."""

from __future__ import annotations

from .share import ProcessShare


def inspect_server(share: ProcessShare) -> dict[str, object]:
    """What there is to know of the server, and of what is kept there.

    Raises:
      BrokerError: If it cannot be reached.
    """
    facts = _facts_of(share.call("INFO"))
    return {
        "server": share.connector.where,
        "namespace": share.keys.prefix.decode().partition("}")[0].removeprefix("{"),
        "version": facts.get("valkey_version") or facts.get("redis_version", "?"),
        "role": facts.get("role", "?"),
        "survives_a_restart": _persistence(facts),
        "maxmemory": facts.get("maxmemory_human", "?"),
        "when_that_is_full": facts.get("maxmemory_policy", "?"),
        "queues": share.call("SCARD", share.keys.queues),
        "workers": share.call("HLEN", share.keys.owners),
    }


def _facts_of(text: bytes) -> dict[str, str]:
    lines = text.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def _persistence(facts: dict[str, str]) -> str:
    if facts.get("aof_enabled") == "1":
        return "what is in its append-only file"
    return "what its last snapshot has, if it makes any"
