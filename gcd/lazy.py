"""Imports what is heavy or optional when it is first used, and says which extra to install if it is absent.

It must never hide an import that failed for another reason, nor put a second name into `sys.modules`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial, reduce
from types import ModuleType
from typing import Any, NamedTuple

from gcd.errors import ExtraMissing

KNOWN_BEFORE_LOADING = frozenset({"__class__", "__name__"})


class LazyLoader(ModuleType):
    """A stand-in for the module `name`, which is imported when an attribute is first used.

    Once loaded, the module itself takes the stand-in's place in `parent_namespace[local_name]`,
    unless somebody put something else there meanwhile. Whoever took a reference to the stand-in
    before (`from x import lazy`, a default argument, a closure) keeps a working one: reading,
    setting and deleting attributes, `dir`, `vars` and `repr` reach the module itself. So it is
    always current, also when the module's attributes change later (monkeypatching, `global`).

    That is fast as well. A loaded stand-in becomes an instance of a class whose slots are C calls
    bound to the module, at about 45 ns for an attribute (the module itself: 15 ns). A copy of the
    module's `__dict__`, as in MLflow's loader, goes stale, and takes 85 ns even where it answers,
    for a class with `__getattr__` has a slower lookup.

    Threads may touch it at once. No lock is held here while importing, since the import system has
    its own, one per module, and breaks its own deadlocks; all that follows can be done twice.

    Is MLflow's `_module` attribute needed, since the module replaces the loader? As it stands, no:
    nothing ever sets it, so its test is always false, and early references ask `import_module`
    again at every attribute that the copy lacks, and print "Not loaded yet" for good. But what it
    was meant for is needed, because the replacement reaches only those who look the name up in the
    parent namespace. An early reference has to hold the module: `import_module` in its place is
    slower, and gives another module, or runs it a second time, once `sys.modules` has changed.
    Here the class that a loaded stand-in changes to holds it.

    Raises ExtraMissing where a library is not installed that `extra` would bring, at every use
    until it is. Any other error of the import passes unchanged.
    """

    __slots__ = ("_pending",)
    _pending: _Pending

    def __init__(
        self,
        local_name: str,
        parent_namespace: dict[str, Any],
        name: str,
        *,
        extra: str | None = None,
    ) -> None:
        super().__init__(name)
        pending = _Pending(local_name, parent_namespace, name, extra)
        object.__setattr__(self, "_pending", pending)

    def __getattribute__(self, attribute: str) -> Any:
        if attribute in KNOWN_BEFORE_LOADING:
            return object.__getattribute__(self, attribute)
        return getattr(_loaded(self), attribute)

    def __setattr__(self, attribute: str, value: object) -> None:
        setattr(_loaded(self), attribute, value)

    def __delattr__(self, attribute: str) -> None:
        delattr(_loaded(self), attribute)

    def __dir__(self) -> list[str]:
        return dir(_loaded(self))

    def __repr__(self) -> str:
        return f"<module {self.__name__!r} (not loaded yet)>"


class _Pending(NamedTuple):
    """What a stand-in has to know until its module is loaded."""

    local_name: str
    parent_namespace: dict[str, Any]
    name: str
    extra: str | None


def _loaded(loader: LazyLoader) -> ModuleType:
    """Import the module and let it take the loader's place; a second time is harmless."""
    pending: _Pending = object.__getattribute__(loader, "_pending")
    module = _imported(pending.name, pending.extra)
    # A module that touches its own stand-in while it is imported may still fail: commit to nothing.
    if getattr(module.__spec__, "_initializing", False):
        return module
    object.__setattr__(loader, "__class__", _bound_to(module))
    if pending.parent_namespace.get(pending.local_name) is loader:
        pending.parent_namespace[pending.local_name] = module
    return module


def _bound_to(module: ModuleType) -> type[LazyLoader]:
    """A class whose instances are the module in all that counts."""
    calls: dict[str, Callable[..., Any]] = {
        "__getattribute__": getattr,
        "__setattr__": setattr,
        "__delattr__": delattr,
        "__dir__": dir,
        "__repr__": repr,
    }
    slots = {slot: staticmethod(partial(call, module)) for slot, call in calls.items()}
    return type("LazyLoader", (LazyLoader,), {"__slots__": (), "__module__": __name__, **slots})


def load(spec: str, *, extra: str | None = None) -> Any:
    """The object that "package.module:Attribute" names.

    Raises ExtraMissing where a library is not installed that `extra` would bring, ValueError for a
    malformed `spec`, and unchanged whatever else the import raises.
    """
    if not is_spec(spec):
        raise ValueError(f"{spec!r} is not of the form package.module:Attribute")
    module, _, attribute = spec.partition(":")
    return reduce(getattr, attribute.split("."), _imported(module, extra))


def is_spec(text: str) -> bool:
    """Whether `text` has the form "package.module:Attribute"; nothing is imported to know it."""
    parts = text.split(":")
    return len(parts) == 2 and all(
        name.isidentifier() for part in parts for name in part.split(".")
    )


def absent(error: ModuleNotFoundError) -> str | None:
    """The library that is not installed; None if one is there, but not as the import expects it.

    A name without a dot is a library's. So is one directly inside a namespace package
    (`google.cloud`), where another library makes the parent exist.
    """
    name = error.name or ""
    if not name or name in sys.stdlib_module_names:
        return None
    parent = name.rpartition(".")[0]
    return name if not parent or _is_namespace(parent) else None


def _is_namespace(package: str) -> bool:
    module = sys.modules.get(package)
    return hasattr(module, "__path__") and getattr(module, "__file__", None) is None


def install_hint(extra: str, distribution: str = "gcd") -> str:
    """The command that installs an extra."""
    return f"pip install '{distribution}[{extra}]'"


def _imported(name: str, extra: str | None) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = absent(error)
        if missing is None or extra is None:
            raise
        what = missing if name == missing else f"{name} needs {missing}, which"
        raise ExtraMissing(f"{what} is not installed", hint=install_hint(extra)) from error
