"""The names that Dramatiq programs import, where they import them from."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import greenroom as dramatiq

#: Of the 32 names of the package, those that compose messages are not there yet.
NAMES = """
Actor GenericActor actor Broker Consumer MessageProxy get_broker set_broker Encoder JSONEncoder PickleEncoder
DramatiqError BrokerError DecodeError ActorNotFound QueueNotFound QueueJoinTimeout BrokerConnectionError
ConnectionClosed ConnectionFailed RateLimitExceeded Retry get_logger Message get_encoder set_encoder Middleware Worker
ConsumerThread WorkerThread
""".split()

MODULES = {
    "middleware": """
        Middleware MiddlewareError SkipMessage Interrupt raise_thread_exception AgeLimit AsyncIO Callbacks
        CurrentMessage Pipelines Retries Shutdown ShutdownNotifications TimeLimit TimeLimitExceeded
        default_middleware""",
    "middleware.prometheus": "Prometheus",
    "brokers.stub": "StubBroker",
    "threading": "Interrupt current_platform is_gevent_active raise_thread_exception supported_platforms",
    "asyncio": "EventLoopThread async_to_sync get_event_loop_thread set_event_loop_thread",
    "common": "getenv_int compute_backoff current_millis iter_queue join_queue join_all q_name dq_name xq_name",
    "worker": "Worker ConsumerThread WorkerThread _ConsumerThread _WorkerThread",
    "broker": "Broker Consumer MessageProxy get_broker set_broker global_broker",
    "encoder": "Encoder JSONEncoder PickleEncoder get_encoder set_encoder",
    "message": "Message get_encoder",
    "errors": "DramatiqError BrokerError DecodeError Retry RateLimitExceeded",
    "generic": "GenericActor",
    "logging": "get_logger",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_package_has_the_name(name: str) -> None:
    """Every name of Dramatiq's package is exported by ours."""
    assert name in dramatiq.__all__
    assert getattr(dramatiq, name) is not None


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in MODULES.items() for n in names.split()])
def test_the_module_has_the_name(module: str, name: str) -> None:
    """Every public name of a module of Dramatiq is in ours of the same path."""
    assert hasattr(importlib.import_module(f"greenroom.{module}"), name)


def test_the_decorator_is_not_hidden_by_its_module() -> None:
    """``dramatiq.actor`` is the decorator, also after ``dramatiq.actor`` the module was imported."""
    importlib.import_module("greenroom.actor")
    assert callable(dramatiq.actor)


def test_modules_are_attributes_without_an_import() -> None:
    """``import dramatiq`` is enough for ``dramatiq.middleware.Retries`` and its like."""
    program = "import greenroom as d; d.middleware.Retries; d.worker.Worker; d.common.q_name; d.asyncio.async_to_sync"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("module", ["greenroom", "greenroom.errors"])
def test_the_old_name_of_the_connection_error_warns(module: str) -> None:
    """``ConnectionError`` still resolves, with a ``DeprecationWarning``."""
    with pytest.warns(DeprecationWarning, match="BrokerConnectionError"):
        found = importlib.import_module(module).ConnectionError
    assert found is dramatiq.BrokerConnectionError


def test_the_default_middleware_in_its_order() -> None:
    """The default list is Dramatiq's, in Dramatiq's order."""
    assert [m.__name__ for m in dramatiq.middleware.default_middleware] == [
        "AgeLimit",
        "TimeLimit",
        "ShutdownNotifications",
        "Callbacks",
        "Pipelines",
        "Retries",
    ]


def test_options_of_the_default_middleware() -> None:
    """With the default middleware an actor may have exactly the options that Dramatiq documents."""
    options = set().union(*(m().actor_options for m in dramatiq.middleware.default_middleware))
    assert options == set(
        "max_age max_backoff max_retries min_backoff notify_shutdown on_failure on_retry_exhausted on_success "
        "pipe_ignore pipe_target retry_when throws time_limit".split()
    )


def test_prometheus_is_not_imported_by_default() -> None:
    """Neither the package nor its middleware imports ``prometheus_client`` by itself."""
    program = "import sys, greenroom.middleware, greenroom.worker; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
