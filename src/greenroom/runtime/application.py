"""Finds the broker of a program: imports its modules and resolves ``module``, ``module:broker``, ``module:function``.
Finds functions by name, too.

Runs the user's code, so it belongs in a child process or in a program that embeds a worker.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from functools import reduce
from types import ModuleType, TracebackType
from typing import Any, TypeVar

from .. import broker as brokers
from ..errors import BrokerError
from ..logging import one_line
from ..settings import did_you_mean

T = TypeVar("T")

_PACKAGE_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class ApplicationError(Exception):
    """Raised when a program's modules or broker cannot be loaded; the text is one line for the user.

    ``missing_module`` is the name asked for when there is no such module. If the user's code raised, the exception
    is the ``__cause__``.
    """

    def __init__(self, message: str, *, missing_module: str = "") -> None:
        super().__init__(message)
        self.missing_module = missing_module


def load_broker(modules: Iterable[str], path: Iterable[str] = ()) -> brokers.Broker:
    """Imports ``modules`` and returns the broker that their worker works for.

    The first name may end in ``:variable`` (a ``Broker``, dots allowed) or ``:function`` (called without arguments;
    the default broker is used then). Without it the default broker is used, as it is after all imports.

    Parameters:
      modules: Names of modules.
      path: Folders put in front of ``sys.path`` first, one after the other.

    Raises:
      ApplicationError: If a module cannot be imported, or what was named is not there or not a broker.
      BrokerError: If the user's modules raised it.
    """
    _search(path)
    first, *others = modules
    name, _, attribute = first.partition(":")
    module = _import(name)
    broker = _resolve(first, module, attribute) if attribute else None
    for other in others:
        _import(other)
    return broker or _default_broker()


def load_function(spec: str, path: Iterable[str] = ()) -> Callable[[], Any]:
    """Imports a module and returns the function that ``module:function`` names.

    Parameters:
      spec: The function; dots are allowed in both parts.
      path: Folders put in front of ``sys.path`` first, one after the other.

    Raises:
      ApplicationError: If the module cannot be imported, or there is no such function in it.
    """
    _search(path)
    name, _, attribute = spec.partition(":")
    found = _look_up(_import(name), attribute)
    if not callable(found):
        raise ApplicationError(f"{spec!r} is not a function.")
    function: Callable[[], Any] = found
    return function


def forks_of(broker: Any) -> list[Callable[[], int]]:
    """The fork functions of a broker's middleware, in order."""
    return [fork for middleware in broker.middleware for fork in middleware.forks]


def names_of_forks(broker: Any) -> tuple[str, ...]:
    """What people know them as."""
    return tuple(
        one_line(f"{fork.__module__}:{fork.__qualname__}" if hasattr(fork, "__qualname__") else repr(fork))
        for fork in forks_of(broker)
    )


def _search(path: Iterable[str]) -> None:
    sys.path[:0] = [os.path.abspath(folder) for folder in path][::-1]


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if user_traceback(e) is not None:
            raise _user_code_failed(f"importing module {name!r}", e) from e
        raise ApplicationError(f"no module named {name!r}{_hint(name)}", missing_module=name) from None
    except BrokerError:
        raise
    except (Exception, SystemExit) as e:
        raise _user_code_failed(f"importing module {name!r}", e) from e


def _hint(name: str) -> str:
    parent, _, last = name.rpartition(".")
    if last == "py":
        return f"; did you mean {parent!r}?"
    if parent in sys.modules:
        return f"; did you mean the variable {f'{parent}:{last}'!r}?"
    return ""


def _resolve(spec: str, module: ModuleType, attribute: str) -> brokers.Broker | None:
    """The broker that ``spec`` names, or None if it names a function that leaves it to the default broker."""
    found = _look_up(module, attribute)
    if callable(found) and not isinstance(found, brokers.Broker):
        found = _call(f"calling {spec!r}", found)
        if not isinstance(found, brokers.Broker):
            return None
        return _adopt(found) if brokers.peek_broker() is None else None
    if not isinstance(found, brokers.Broker):
        raise ApplicationError(f"{spec!r} is not a Broker.")
    return _adopt(found)


def _look_up(module: ModuleType, attribute: str) -> Any:
    try:
        return reduce(getattr, attribute.split("."), module)
    except AttributeError:
        hint = did_you_mean(attribute, vars(module)).replace("; did", " Did")
        raise ApplicationError(f"Module {module.__name__!r} does not define a {attribute!r} variable.{hint}") from None


def _adopt(broker: brokers.Broker) -> brokers.Broker:
    # The actors of these modules that name no broker wait for a default one. Where none was set it is this one, else
    # the worker would not know them.
    if brokers.peek_broker() is None:
        brokers.set_broker(broker)
    return broker


def _default_broker() -> brokers.Broker:
    try:
        return brokers.get_broker()
    except (ImportError, ValueError) as e:
        raise ApplicationError(f"the default broker cannot be made: {e}") from None


def _call(doing: str, function: Callable[[], T]) -> T:
    try:
        return function()
    except BrokerError:
        raise
    except (Exception, SystemExit) as e:
        raise _user_code_failed(doing, e) from e


def _user_code_failed(doing: str, error: BaseException) -> ApplicationError:
    text = str(error)
    return ApplicationError(f"{doing} raised {type(error).__name__}{': ' if text else ''}{text}")


def user_traceback(error: BaseException) -> TracebackType | None:
    """The part of an exception's traceback that begins in the user's code; None if it never got there."""
    trace = error.__traceback__
    while trace is not None and _is_machinery(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def _is_machinery(file: str) -> bool:
    return file.startswith((_PACKAGE_FOLDER, "<frozen importlib")) or file == importlib.__file__
