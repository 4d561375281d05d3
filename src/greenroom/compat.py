"""Third-party code that does ``import dramatiq`` finds Greenroom.

Call ``install()`` before that code is imported::

    import greenroom.compat
    greenroom.compat.install()

    import some_package_for_dramatiq

``dramatiq.x`` is then the same module object as ``greenroom.x``, so that classes and default brokers are the same, too.
The distribution stays what it is: ``importlib.metadata`` knows nothing of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["install", "uninstall"]

_ALIAS = "dramatiq"
_REAL = __name__.rpartition(".")[0]


def install() -> None:
    """Makes ``import dramatiq`` find Greenroom, in this process. Installing again does nothing.

    Raises:
      RuntimeError: If the real Dramatiq is imported already.
    """
    present = sys.modules.get(_ALIAS)
    if present is not None and present is not sys.modules.get(_REAL):
        raise RuntimeError(
            "dramatiq is imported already, from "
            f"{getattr(present, '__file__', 'an unknown place')!r}: call greenroom.compat.install() before anything "
            "imports it."
        )
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    importlib.import_module(_REAL)
    # What is loaded needs no finder. Found by one, `dramatiq.actor` would be set as an attribute of the package, in the
    # place of the function of that name.
    for name, module in list(sys.modules.items()):
        if name == _REAL or name.startswith(f"{_REAL}."):
            sys.modules[_ALIAS + name[len(_REAL) :]] = module


def uninstall() -> None:
    """Undoes ``install``. Modules that have imported ``dramatiq`` keep what they have."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    for name, module in list(sys.modules.items()):
        is_alias = name == _ALIAS or name.startswith(f"{_ALIAS}.")
        if is_alias and module is sys.modules.get(_REAL + name[len(_ALIAS) :]):
            del sys.modules[name]


class _Finder(MetaPathFinder):
    """Finds ``dramatiq.x`` where ``greenroom.x`` is. Stateless."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _ALIAS and not fullname.startswith(f"{_ALIAS}."):
            return None
        real = _REAL + fullname[len(_ALIAS) :]
        if importlib.util.find_spec(real) is None:
            return None
        return ModuleSpec(fullname, _Loader(real))


class _Loader(Loader):
    """Hands out the module that there is, instead of making a second one."""

    def __init__(self, real: str) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._real)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has just replaced it
