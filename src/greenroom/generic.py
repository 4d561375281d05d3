"""Actors as classes: shared code and options by inheritance."""

from __future__ import annotations

from typing import Any

from .actor import Actor, actor

__all__ = ["GenericActor", "generic_actor"]


class generic_actor(type):  # noqa: N801  # Dramatiq's name
    """Metaclass of ``GenericActor``: a class statement makes an instance that is an actor, unless it is abstract."""

    def __new__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> Any:
        new_class: Any = super().__new__(cls, name, bases, attributes)
        meta = attributes.get("Meta")
        if not bases or (meta is not None and vars(meta).get("abstract", False)):
            return new_class
        options = _inherited_options(new_class)
        make_actor = options.pop("actor", actor)
        options.setdefault("actor_name", name)
        instance = new_class()
        instance.__actor__ = make_actor(**options)(instance.perform)
        return instance


class GenericActor(metaclass=generic_actor):
    """Base class of class-based actors. The class statement yields the actor itself, an instance without arguments::

        class BaseTask(GenericActor):
            class Meta:
                abstract = True
                queue_name = "tasks"
                max_retries = 5

        class Add(BaseTask):
            def perform(self, x, y):
                return x + y

        Add.send(1, 2)      # a worker runs it
        Add(1, 2)           # here and now

    ``Meta`` holds the arguments of ``actor``; those of the base classes hold, too, whether or not ``Meta`` itself has a
    base class. ``abstract`` is not inherited. ``Meta.actor`` is the decorator to use in place of ``greenroom.actor``.
    The name is the class's, unless ``Meta.actor_name`` says otherwise. A concrete actor may be a base class, too.
    """

    #: The actor. Attributes that the class does not have are looked up on it.
    __actor__: Actor[..., Any]

    def perform(self, *args: Any, **kwargs: Any) -> Any:
        """What the actor does; may be ``async``. Subclasses implement it."""
        raise NotImplementedError(f"{type(self).__name__} does not implement perform().")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__actor__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "__actor__":  # not made yet
            raise AttributeError(name)
        return getattr(self.__actor__, name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (type(self),)

    def __repr__(self) -> str:
        return repr(self.__actor__)

    def __str__(self) -> str:
        return str(self.__actor__)


def _inherited_options(new_class: type) -> dict[str, Any]:
    """What the ``Meta`` classes say, those of nearer classes last. ``abstract`` and private names are left out."""
    options: dict[str, Any] = {}
    for owner in reversed(new_class.__mro__):
        meta = vars(owner).get("Meta")
        if meta is None:
            continue
        for part in reversed(meta.__mro__[:-1]):  # without object
            for name in vars(part):
                if not name.startswith("_") and name != "abstract":
                    options[name] = getattr(part, name)  # not vars(): a staticmethod gives its function
    return options
