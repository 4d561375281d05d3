"""Looks at a server that change nothing: for ``greenroom check``, and before a worker starts. By INFO alone: managed
servers refuse CONFIG."""

from __future__ import annotations

from ...errors import ConnectionFailed
from ...logging import get_logger
from .share import ProcessShare

logger = get_logger(__name__)


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


def check_server(share: ProcessShare, *, allow_eviction: bool) -> None:
    """Before a worker starts: whether the server keeps what it is given.

    Raises:
      ConnectionFailed: It deletes any keys, messages among them, when its memory is full.
      BrokerError: It cannot be reached.
    """
    facts = _facts_of(share.call("INFO"))
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy.startswith("allkeys"):
        text = f"The Redis server at {share.connector.where} deletes messages when its memory is full: {policy}."
        if not allow_eviction:
            raise ConnectionFailed(f"{text} Set its maxmemory-policy to noeviction, or pass allow_eviction=True.")
        logger.warning(text)
    if facts.get("aof_enabled", "1") != "1":
        logger.warning(
            "The Redis server at %s has no append-only file (appendonly no): when it is killed, what came after its "
            "last snapshot is lost.",
            share.connector.where,
        )


def _facts_of(text: bytes) -> dict[str, str]:
    lines = text.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def _persistence(facts: dict[str, str]) -> str:
    if facts.get("aof_enabled") == "1":
        return "what is in its append-only file"
    return "what its last snapshot has, if it makes any"
