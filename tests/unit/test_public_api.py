"""The public API is frozen: every public name with its signature, as ``public_api.txt`` lists them.

A change of the list is a change for users: it belongs into the changelog. ``make api`` writes it anew.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import greenroom

LIST = Path(__file__).with_name("public_api.txt")

#: What users import, modules and whole packages. Names of Dramatiq, where Dramatiq has the thing.
PUBLIC = frozenset(
    """
    actor asyncio broker brokers common compat composition encoder errors generic logging message middleware rate_limits
    results scheduler threading worker
    """.split()
)
#: Ours alone: free to change.
PRIVATE = frozenset(
    """
    __main__ backoff board brokers.engine brokers.replay cli clock context core dashboard engines failpoints forksafe
    host names ports runtime seams settings testing
    """.split()
)


class Raw:
    """An annotation that is printed as it was written, without quotes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def is_within(name: str, family: frozenset[str]) -> bool:
    """Whether a module, or a package around it, is in the family."""
    parts = name.split(".")
    return any(".".join(parts[:end]) in family for end in range(1, len(parts) + 1))


def all_modules() -> list[str]:
    """The modules of the package, without its name: ``["actor", "brokers", "brokers.sqlite", ...]``."""
    (root,) = map(Path, greenroom.__path__)
    paths = (path.relative_to(root).with_suffix("").parts for path in root.rglob("*.py"))
    names = {".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in paths}
    return sorted(names - {""})


def public_modules() -> list[str]:
    return [name for name in all_modules() if is_within(name, PUBLIC) and not is_within(name, PRIVATE)]


def public_names(module: ModuleType) -> list[str]:
    """``__all__``, or else what is defined in the module under a name without an underscore."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    )


def signature(function: Any) -> str:
    """The signature as it was written, the same on every Python."""
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        return "(...)"
    parameters = [parameter.replace(annotation=raw(parameter.annotation)) for parameter in found.parameters.values()]
    text = str(found.replace(parameters=parameters, return_annotation=raw(found.return_annotation)))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def raw(annotation: Any) -> Any:
    return Raw(annotation) if isinstance(annotation, str) else annotation


def described(name: str, value: Any) -> Iterator[str]:
    """The lines of one public name."""
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        yield f"class {name}{signature(value) if has_own_arguments(value) else ''}" + (f" of {bases}" if bases else "")
        for member, what in sorted(vars(value).items()):
            if not member.startswith("_"):
                yield from (f"    {line}" for line in described_member(member, what))
    elif inspect.isroutine(value):
        yield f"{'async def' if inspect.iscoroutinefunction(value) else 'def'} {name}{signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


def has_own_arguments(value: type) -> bool:
    """Whether the class says itself how it is made. What it inherits from Python differs between versions."""
    return hasattr(value, "__struct_fields__") or is_ours(value.__init__) or is_ours(value.__new__)


def is_ours(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("greenroom.")


def described_member(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, property):
        yield f"property {name}"
    elif isinstance(value, (classmethod, staticmethod)):
        yield f"{type(value).__name__} {name}{signature(value.__func__)}"
    elif inspect.isfunction(value):
        yield f"{'async def' if inspect.iscoroutinefunction(value) else 'def'} {name}{signature(value)}"
    elif inspect.isclass(value):
        yield f"class {name}"
    else:
        yield f"attribute {name}"


def public_api() -> str:
    """The whole list as text."""
    lines = ["# The public API: name and signature. `make api` writes this file.", "", "greenroom"]
    lines += [f"    {name}" for name in sorted(greenroom.__all__)]
    listed_elsewhere = {f"greenroom.{name}" for name in public_modules()}
    for module_name in public_modules():
        module = importlib.import_module(f"greenroom.{module_name}")
        names = public_names(module)
        if names:
            lines += ["", f"greenroom.{module_name}"]
        for name in names:
            value = getattr(module, name)
            home = getattr(value, "__module__", module.__name__)
            if home != module.__name__ and home in listed_elsewhere:
                lines.append(f"    {name} = {home}.{name}")
            else:
                lines += [f"    {line}" for line in described(name, value)]
    return "\n".join(lines) + "\n"


def test_the_public_api_is_what_the_list_says() -> None:
    """Nothing public is added, removed or given another signature without the list saying so."""
    listed, found = LIST.read_text("utf-8"), public_api()
    changes = difflib.unified_diff(listed.splitlines(), found.splitlines(), "listed", "found", lineterm="", n=1)
    assert listed == found, "the public API changed (make api writes the list anew):\n" + "\n".join(changes)


def test_every_module_is_either_public_or_private() -> None:
    """A new module has to say which of the two it is."""
    assert [name for name in all_modules() if not is_within(name, PUBLIC | PRIVATE)] == []


def test_every_name_of_the_front_door_can_be_imported() -> None:
    """``greenroom.__all__`` promises nothing that is not there, and ``dir`` shows it all."""
    missing = [name for name in greenroom.__all__ if not hasattr(greenroom, name)]
    assert missing == []
    assert set(greenroom.__all__) <= set(dir(greenroom))


def test_everything_public_is_documented() -> None:
    """Every public class and function of every public module has a docstring."""
    silent = []
    for module_name in public_modules():
        module = importlib.import_module(f"greenroom.{module_name}")
        for name in public_names(module):
            value = getattr(module, name)
            if (inspect.isclass(value) or inspect.isroutine(value)) and not inspect.getdoc(value):
                silent.append(f"{module_name}.{name}")
    assert silent == []


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python -m tests.unit.test_public_api --update")
    LIST.write_text(public_api(), "utf-8")
    sys.stdout.write(f"{LIST.relative_to(Path.cwd())} lists the public API as it is now\n")
