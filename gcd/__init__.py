"""gcd: the garbage collector for MLflow. Importing it must never import anything else."""

from __future__ import annotations

TYPE_CHECKING = False  # what typing calls so, without importing typing
if TYPE_CHECKING:
    from gcd.errors import GcdError
    from gcd.lazy import LazyLoader

__version__ = "0.1.0"
__all__ = ["GcdError", "LazyLoader", "__version__"]

_HOMES = {"GcdError": "gcd.errors", "LazyLoader": "gcd.lazy"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'gcd' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
