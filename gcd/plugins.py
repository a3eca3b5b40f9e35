"""Reads the entry points of installed distributions as strings, and settles who may have which name.

It must never import a plug-in to list it, and never let a broken one stop anything but itself.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from importlib.machinery import PathFinder
from typing import Any, NamedTuple

from gcd import lazy
from gcd.errors import ExtraMissing, GcdError


class Plugin(NamedTuple):
    """One line of an `entry_points.txt`: `name = spec [extra]`, and the distribution it came from."""

    name: str
    spec: str
    extra: str | None
    origin: str


class Claims(NamedTuple):
    """What came of the claims on names: who got theirs, and a sentence for each name refused."""

    accepted: dict[str, Plugin]
    refused: dict[str, str]


def settled(plugins: Iterable[Plugin], own: Collection[str], noun: str) -> Claims:
    """Refuse what is gcd's own, what two distributions claim, and what could never be loaded."""
    claims = Claims({}, {})
    by_name: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        by_name.setdefault(plugin.name, []).append(plugin)
    for name, rivals in sorted(by_name.items()):
        refusal = _refusal(rivals, own, noun)
        if refusal:
            claims.refused[name] = refusal
        else:
            claims.accepted[name] = rivals[0]
    return claims


def _refusal(rivals: list[Plugin], own: Collection[str], noun: str) -> str | None:
    plugin, origins = rivals[0], " and ".join(sorted(rival.origin for rival in rivals))
    if plugin.name in own:
        return f"{noun} {plugin.name} is gcd's own: ignored from {origins}"
    if len(rivals) > 1:
        return f"{noun} {plugin.name} is claimed by {origins}: neither is used, uninstall one"
    if not lazy.is_spec(plugin.spec):
        return f"{noun} {plugin.name} from {origins} is broken: {plugin.spec!r} names nothing"
    return None


def load(plugin: Plugin) -> Any:
    """Import what the plug-in names.

    Raises ExtraMissing where a library that it needs is not installed, GcdError with one sentence
    for whatever else is wrong with it.
    """
    try:
        return lazy.load(plugin.spec)
    except GcdError:
        raise
    except ModuleNotFoundError as error:
        missing = lazy.absent(error)
        if missing is None or (missing == _package(plugin) and plugin.extra is None):
            raise _broken(plugin, error) from error
        raise ExtraMissing(
            f"{plugin.name}: needs {missing}", hint=_mend(plugin, missing)
        ) from error
    except (Exception, SystemExit) as error:  # foreign code runs here: it may raise anything
        raise _broken(plugin, error) from error


def _package(plugin: Plugin) -> str:
    return plugin.spec.partition(":")[0].partition(".")[0]


def _mend(plugin: Plugin, missing: str) -> str:
    if plugin.extra:
        return lazy.install_hint(plugin.extra, plugin.origin)
    return f"install {missing}, which {plugin.origin} needs"


def _broken(plugin: Plugin, error: BaseException) -> GcdError:
    what = f"{type(error).__name__}: {error}".partition("\n")[0]
    return GcdError(f"{plugin.name} (from {plugin.origin}) is broken: {what}")


def read(group: str) -> Iterator[Plugin]:
    """The entry points of a group, as `importlib.metadata.entry_points` finds them.

    That function takes 25 ms in an environment of 120 distributions, most of it its own import;
    reading the files takes 1.5 ms. What is no plain folder is left to it: an archive on the path,
    an import hook that knows distributions of its own.
    """
    seen: set[str] = set()
    for name, text in _distributions(group):
        origin = re.sub(r"[-_.]+", "-", name).lower()
        if origin not in seen:
            seen.add(origin)
            for key, value in _section(text, group):
                spec, _, extra = value.partition("[")
                yield Plugin(key, "".join(spec.split()), extra.rstrip("] ") or None, origin)


def _distributions(group: str) -> Iterator[tuple[str, str]]:
    if any(hasattr(f, "find_distributions") and not _is_plain(f) for f in sys.meta_path):
        yield from _asked()
        return
    for folder in sys.path:
        if folder.endswith(".egg") or os.path.isfile(folder):
            yield from _asked(path=[folder])
        else:
            yield from _listed(folder or ".", f"[{group}]".encode())


def _is_plain(finder: object) -> bool:
    """Whether it finds what is in the folders of `sys.path`, and nothing else."""
    home = getattr(finder, "__module__", "") or type(finder).__module__
    return finder is PathFinder or home.partition(".")[0] == "importlib_metadata"


def _listed(folder: str, header: bytes) -> Iterator[tuple[str, str]]:
    """Name and entry points of each distribution in a folder; the text only if it has the header."""
    try:
        entries = os.listdir(folder)
    except OSError:
        return  # sys.path may name what is not there
    for entry in entries:
        stem, _, kind = entry.rpartition(".")
        # pip renames what it is about to remove to "~...", and leaves it there if it is killed.
        if kind not in ("dist-info", "egg-info") or stem.startswith("~"):
            continue
        try:
            with open(f"{folder}/{entry}/entry_points.txt", "rb") as file:
                text = file.read()
        except OSError:
            text = b""  # most distributions have none
        yield stem.partition("-")[0], text.decode(errors="replace") if header in text else ""


def _asked(path: list[str] | None = None) -> Iterator[tuple[str, str]]:
    from importlib.metadata import distributions

    for distribution in distributions() if path is None else distributions(path=path):
        if distribution.name:  # None where the metadata are damaged
            yield distribution.name, distribution.read_text("entry_points.txt") or ""


def _section(text: str, group: str) -> Iterator[tuple[str, str]]:
    is_inside = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            is_inside = line == f"[{group}]"
        elif is_inside and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield name.strip(), value.strip()
