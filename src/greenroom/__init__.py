"""Greenroom: background tasks for Python.

``import greenroom as dramatiq`` runs a Dramatiq program. Names are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import seams as _seams
from .actor import Actor, actor  # not lazy: the function has the name of its module

__version__ = "0.1.0"

#: Public name -> the module that holds it.
_PUBLIC = {
    # actors
    "GenericActor": "generic",
    # brokers
    "Broker": "broker",
    "Consumer": "broker",
    "MessageProxy": "broker",
    "get_broker": "broker",
    "set_broker": "broker",
    # composition
    "group": "composition",
    "pipeline": "composition",
    # encoding
    "Encoder": "encoder",
    "JSONEncoder": "encoder",
    "PickleEncoder": "encoder",
    "get_encoder": "encoder",
    "set_encoder": "encoder",
    # errors
    "GreenroomError": "errors",
    "DramatiqError": "errors",
    "BrokerError": "errors",
    "DecodeError": "errors",
    "ActorNotFound": "errors",
    "QueueNotFound": "errors",
    "QueueJoinTimeout": "errors",
    "BrokerConnectionError": "errors",
    "ConnectionClosed": "errors",
    "ConnectionFailed": "errors",
    "RateLimitExceeded": "errors",
    "Retry": "errors",
    # logging
    "get_logger": "logging",
    # messages
    "Message": "message",
    # middleware
    "Middleware": "middleware",
    # workers
    "ConsumerThread": "worker",
    "Worker": "worker",
    "WorkerThread": "worker",
}

#: Modules that are attributes of the package without being imported first, as in ``dramatiq.middleware.Retries``.
_MODULES = frozenset(
    "asyncio broker brokers common composition encoder errors generic logging message middleware results threading "
    "worker".split()
)

__all__ = ["Actor", "actor", *_PUBLIC, "__version__"]  # noqa: PLE0604  # names of the table above

if TYPE_CHECKING:
    from .broker import Broker as Broker
    from .broker import Consumer as Consumer
    from .broker import MessageProxy as MessageProxy
    from .broker import get_broker as get_broker
    from .broker import set_broker as set_broker
    from .composition import group as group
    from .composition import pipeline as pipeline
    from .encoder import Encoder as Encoder
    from .encoder import JSONEncoder as JSONEncoder
    from .encoder import PickleEncoder as PickleEncoder
    from .encoder import get_encoder as get_encoder
    from .encoder import set_encoder as set_encoder
    from .errors import ActorNotFound as ActorNotFound
    from .errors import BrokerConnectionError as BrokerConnectionError
    from .errors import BrokerError as BrokerError
    from .errors import ConnectionClosed as ConnectionClosed
    from .errors import ConnectionFailed as ConnectionFailed
    from .errors import DecodeError as DecodeError
    from .errors import DramatiqError as DramatiqError
    from .errors import GreenroomError as GreenroomError
    from .errors import QueueJoinTimeout as QueueJoinTimeout
    from .errors import QueueNotFound as QueueNotFound
    from .errors import RateLimitExceeded as RateLimitExceeded
    from .errors import Retry as Retry
    from .generic import GenericActor as GenericActor
    from .logging import get_logger as get_logger
    from .message import Message as Message
    from .middleware import Middleware as Middleware
    from .worker import ConsumerThread as ConsumerThread
    from .worker import Worker as Worker
    from .worker import WorkerThread as WorkerThread


def __getattr__(name: str) -> Any:
    if name == "ConnectionError":
        return getattr(import_module(".errors", __name__), name)  # warns
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


def _default_broker() -> Any:
    from .brokers import from_url
    from .brokers.sqlite import SqliteBroker
    from .settings import broker_url

    url = broker_url()
    return from_url(url) if url else SqliteBroker()


def _results_backend() -> Any:
    from .broker import get_broker

    return get_broker().get_results_backend()


def _make_pipeline(left: Any, right: Any) -> Any:
    from .composition import pipeline

    return pipeline([left, right])


_seams.default_broker = _default_broker
_seams.make_pipeline = _make_pipeline
_seams.results_backend = _results_backend
