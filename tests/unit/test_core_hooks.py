"""The table of hooks."""

from __future__ import annotations

import pytest

from greenroom.core.hooks import HOOK_NAMES, HookTable, overridden
from greenroom.middleware import Middleware


class Silent(Middleware):
    """Overrides nothing."""


class Loud(Middleware):
    """Overrides two hooks."""

    def __init__(self, name: str = "loud") -> None:
        self.name = name

    def before_enqueue(self, broker: object, message: object, delay: object) -> str:  # type: ignore[override]  # told apart
        return self.name

    def after_enqueue(self, broker: object, message: object, delay: object) -> str:  # type: ignore[override]  # told apart
        return self.name


class Louder(Loud):
    """Inherits its hooks from a class that is not the base."""


class Foreign:
    """Not derived from the base, and has a hook by name."""

    def after_ack(self, broker: object, message: object) -> str:
        return "foreign"


def test_there_are_25_hooks() -> None:
    """All 24 hooks of Dramatiq are known, each once, and one of ours; the base class has them all."""
    assert len(HOOK_NAMES) == len(set(HOOK_NAMES)) == 25
    assert all(callable(getattr(Middleware, name)) for name in HOOK_NAMES)


def test_only_what_is_overridden_is_called() -> None:
    """A hook that a middleware merely inherits costs nothing: it is not in the table."""
    table = HookTable([Silent(), Loud(), Silent()], Middleware)
    assert len(table.before_enqueue) == 1
    assert table.before_ack == ()
    assert sum(len(table.get(name)) for name in HOOK_NAMES) == 2


def test_before_in_order_after_in_reverse() -> None:
    """``before`` hooks run in the order of the list, ``after`` hooks the other way round."""
    table = HookTable([Loud("1"), Silent(), Loud("2"), Loud("3")], Middleware)
    assert [hook(None, None, None) for hook in table.before_enqueue] == ["1", "2", "3"]
    assert [hook(None, None, None) for hook in table.after_enqueue] == ["3", "2", "1"]


def test_inherited_and_foreign_hooks_count() -> None:
    """A hook of a class in between counts, and so does one of a class that is no middleware at all."""
    table = HookTable([Louder("inherited"), Foreign()], Middleware)
    assert [hook(None, None, None) for hook in table.before_enqueue] == ["inherited"]
    assert [hook(None, None) for hook in table.after_ack] == ["foreign"]


def test_a_hook_of_an_instance_counts() -> None:
    """A hook that was put on an instance counts, as tests of programs do it."""
    patched = Silent()
    patched.after_ack = lambda broker, message: "patched"  # type: ignore[method-assign,assignment]  # that is the case
    assert [hook(None, None) for hook in HookTable([patched], Middleware).after_ack] == ["patched"]


def test_the_onions_layers_in_order() -> None:
    """``wrap`` layers are kept outermost first."""

    class Layer(Middleware):
        def __init__(self, name: str) -> None:
            self.name = name

        def wrap(self, broker: object, message: object, call_next: object) -> str:  # type: ignore[override]  # told apart
            return self.name

    table = HookTable([Layer("outer"), Silent(), Layer("inner")], Middleware)
    assert [layer(None, None, None) for layer in table.wrap] == ["outer", "inner"]
    assert HookTable([Silent()], Middleware).wrap == ()


def test_an_unknown_hook() -> None:
    """Asking for a hook that does not exist is an error."""
    with pytest.raises(AttributeError):
        HookTable([], Middleware).get("before_lunch")


def test_overridden_without_the_method() -> None:
    """What has no such method is left out."""
    assert overridden([object()], Middleware, "before_ack") == ()
