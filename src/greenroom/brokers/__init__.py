"""Brokers: public shells around the engines. ``from_url`` picks one by the scheme of a URL."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..broker import Broker
from ..core.options import near_name

__all__ = ["from_url"]

#: scheme -> (module, factory). A factory is called with the URL and the keywords.
_SCHEMES = {
    "sqlite": ("greenroom.brokers.sqlite", "SqliteBroker"),
    "redis": ("greenroom.brokers.redis", "RedisBroker"),
    "rediss": ("greenroom.brokers.redis", "RedisBroker"),
    "unix": ("greenroom.brokers.redis", "RedisBroker"),
    "amqp": ("greenroom.brokers.rabbitmq", "RabbitmqBroker"),
    "amqps": ("greenroom.brokers.rabbitmq", "RabbitmqBroker"),
}


def from_url(url: str, **kwargs: Any) -> Broker:
    """The broker that a URL names.

    ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``redis://host:6379/0``, ``rediss://`` (TLS),
    ``unix:///socket``, ``amqp://user:password@host:5672/vhost``, ``amqps://`` (TLS); ``?durable=true`` and other
    keywords of the broker may follow. ``kwargs`` go to the broker as they are.

    Raises:
      ValueError: For a scheme that is not known, or a bad parameter.
    """
    scheme = url.partition(":")[0].lower()
    if scheme not in _SCHEMES:
        near = near_name(scheme, _SCHEMES)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(f"No broker for URLs of the scheme {scheme!r}: known are {', '.join(_SCHEMES)}.{hint}")
    module, name = _SCHEMES[scheme]
    broker: Broker = getattr(import_module(module), name).from_url(url, **kwargs)
    return broker
