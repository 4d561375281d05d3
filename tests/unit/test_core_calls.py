"""Whether a ``TypeError`` is about the call or comes from inside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from greenroom.core.calls import is_wrong_call


def plain(a: int, b: int = 0, *, c: int = 0) -> int:
    return a + b + c


def raises(a: int) -> None:
    raise TypeError("from inside")


def calls_wrongly(a: int) -> None:
    plain()  # type: ignore[call-arg]  # that is the mistake


def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that adds an argument."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function("session", *args, **kwargs)

    return wrapper


@with_session
def decorated(session: str, a: int) -> int:
    raise TypeError("from inside")


async def coroutine(a: int) -> None:
    """Never awaited: the call alone is what fails."""


class Task:
    def perform(self, a: int) -> None:
        raise TypeError("from inside")


def failure_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> BaseException:
    with pytest.raises((TypeError, ValueError)) as e:
        function(*args, **kwargs)
    return e.value


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (plain, (), {}),
        (plain, (1, 2, 3), {}),
        (plain, (1,), {"d": 1}),
        (plain, (1,), {"a": 1}),
        (raises, (), {}),
        (coroutine, (1, 2), {}),
        (Task().perform, (), {}),
    ],
)
def test_wrong_calls(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Too few arguments, too many, of unknown names, or twice the same."""
    assert is_wrong_call(function, args, kwargs, failure_of(function, *args, **kwargs))


@pytest.mark.parametrize(
    ("function", "args"),
    [(raises, (1,)), (calls_wrongly, (1,)), (plain, (1, "x")), (Task().perform, (1,)), (decorated, (1,))],
)
def test_what_fails_inside(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """A function that was entered got arguments that it takes, whatever it does with them."""
    assert not is_wrong_call(function, args, {}, failure_of(function, *args))


def test_a_decorator_hides_what_it_wraps() -> None:
    """A wrapper takes everything, so what goes wrong below it is not known to go wrong each time."""
    assert not is_wrong_call(decorated, (1, 2), {}, failure_of(decorated, 1, 2))


def test_other_errors() -> None:
    """Only a ``TypeError`` can be about the call, and only of something written in Python."""
    assert not is_wrong_call(plain, (), {}, ValueError())
    assert not is_wrong_call(int, (1, 2, 3), {}, failure_of(int, 1, 2, 3))
