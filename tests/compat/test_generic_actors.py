"""Actors as classes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import greenroom as dramatiq
from greenroom.brokers.stub import StubBroker

Made = Any  # what a class statement of an actor yields, no checker can know


def test_the_class_statement_yields_an_actor(broker: StubBroker) -> None:
    """``Add`` is an instance: it can be sent and called, and has an actor that is named like the class."""

    class Add(dramatiq.GenericActor):
        def perform(self, x: int, y: int) -> int:
            return x + y

    add: Made = Add
    assert not isinstance(add, type)
    assert isinstance(add.__actor__, dramatiq.Actor)
    assert broker.get_actor("Add") is add.__actor__
    assert add(1, 2) == 3
    assert add.send(1, 2).args == (1, 2)
    assert add.message_with_options(args=(1, 2), max_retries=1).options == {"max_retries": 1}
    assert str(add) == "Actor(Add)"


def test_a_worker_runs_it(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """A message to a class-based actor runs its ``perform``."""
    done: list[int] = []

    class Note(dramatiq.GenericActor):
        def perform(self, x: int) -> None:
            done.append(x)

    note: Made = Note
    note.send(5)
    broker.join("default", timeout=10_000)
    assert done == [5]


def test_perform_has_to_be_implemented(broker: StubBroker) -> None:
    """An actor without ``perform`` says so when it is called."""

    class Empty(dramatiq.GenericActor): ...

    empty: Made = Empty
    with pytest.raises(NotImplementedError, match="Empty"):
        empty()


def test_perform_may_be_async(broker: StubBroker) -> None:
    """An async ``perform`` makes an async actor."""

    class Add(dramatiq.GenericActor):
        async def perform(self, x: int, y: int) -> int:
            return x + y

    add: Made = Add
    assert add.is_async
    assert asyncio.run(add(1, 2)) == 3


def test_meta_gives_the_options(broker: StubBroker) -> None:
    """``Meta`` holds the arguments of the decorator; private names and ``abstract`` are not among them."""

    class Add(dramatiq.GenericActor):
        class Meta:
            actor_name = "add"
            queue_name = "sums"
            priority = 7
            max_retries = 3
            _private = 1

        def perform(self) -> None: ...

    add: Made = Add
    assert (add.actor_name, add.queue_name, add.priority, add.options) == ("add", "sums", 7, {"max_retries": 3})


def test_an_abstract_base_is_a_class(broker: StubBroker) -> None:
    """``abstract = True`` makes a plain class and declares nothing; being abstract is not inherited."""

    class Base(dramatiq.GenericActor):
        class Meta:
            abstract = True
            queue_name = "tasks"
            max_retries = 20

        def perform(self) -> str:
            return self.name()  # type: ignore[attr-defined,no-any-return]  # what subclasses bring

    assert isinstance(Base, type)
    assert not broker.actors

    class Concrete(Base):
        def name(self) -> str:
            return "concrete"

    concrete: Made = Concrete
    assert (concrete.queue_name, concrete.options, concrete()) == ("tasks", {"max_retries": 20}, "concrete")


def test_meta_inherits_with_and_without_a_base_of_its_own(broker: StubBroker) -> None:
    """``class Meta`` and ``class Meta(Base.Meta)`` both keep what the bases said and override what they say."""

    class Base(dramatiq.GenericActor):
        class Meta:
            abstract = True
            queue_name = "tasks"
            max_retries = 20
            min_backoff = 5

    class Plain(Base):
        class Meta:
            max_retries = 1

    class Derived(Base):
        class Meta(Base.Meta):
            max_retries = 2

    plain: Made = Plain
    derived: Made = Derived
    assert (plain.queue_name, plain.options) == ("tasks", {"max_retries": 1, "min_backoff": 5})
    assert (derived.queue_name, derived.options) == ("tasks", {"max_retries": 2, "min_backoff": 5})


def test_a_concrete_actor_may_be_a_base(broker: StubBroker) -> None:
    """What the class statement yields can be inherited from."""

    class Add(dramatiq.GenericActor):
        class Meta:
            max_retries = 1

        def perform(self, x: int) -> int:
            return x + 1

    class AddTwo(Add):
        def perform(self, x: int) -> int:
            return super().perform(x) + 1

    add_two: Made = AddTwo
    assert add_two(1) == 3
    assert (add_two.actor_name, add_two.options) == ("AddTwo", {"max_retries": 1})


def test_meta_may_name_another_decorator(broker: StubBroker) -> None:
    """``Meta.actor`` is used in the place of ``actor``, and inherited."""
    seen: list[dict[str, Any]] = []

    def registry(**options: Any) -> Any:
        seen.append(options)
        return dramatiq.actor(**options)

    class Base(dramatiq.GenericActor):
        class Meta:
            abstract = True
            actor = registry

    class Task(Base):
        class Meta:
            max_retries = 4

        def perform(self) -> None: ...

    assert seen == [{"actor_name": "Task", "max_retries": 4}]


def test_it_may_be_a_callback(broker: StubBroker) -> None:
    """``on_failure=`` takes a class-based actor as it takes any."""

    class Told(dramatiq.GenericActor):
        def perform(self, message: Any, error: Any) -> None: ...

    task = dramatiq.actor(lambda: None, actor_name="task", on_failure=Told)
    assert task.options == {"on_failure": "Told"}
