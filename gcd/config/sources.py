"""Reads what a configuration is made of: the file, the environment, the command line.

It must never judge a value: it collects what was written and where it stood.
"""

from __future__ import annotations

import json
import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gcd.config.sections import fields_of, plain_type
from gcd.config.trust import Distrusted, read_trusted
from gcd.errors import ConfigError

SEARCHED = (Path("gcd.toml"), Path("/etc/gcd/gcd.toml"))
PREFIX = "GCD_"
FLAG = "flag"

Path_ = tuple[str, ...]
"""A key path: ("retention", "older_than")."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from."""

    kind: str
    """file, environment variable, or flag."""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


@dataclass(slots=True)
class Written:
    """What was written, merged: later sources over earlier ones, and where each value is from."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path_, Origin] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def put(self, path: Path_, value: Any, origin: Origin) -> None:
        """Set one value; a text becomes a number or a list where the key takes one."""
        table = self.tree
        for name in path[:-1]:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                return  # the file has a value where a table belongs, and that is told of
        table[path[-1]] = coerced(path, value) if isinstance(value, str) else value
        self.origins[path] = origin


def find_file(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file to read: the one named, else the first of SEARCHED that is there, else None.

    Raises ConfigError if $GCD_CONFIG is empty, which a shell accident makes of an unset variable.
    """
    if path is not None:
        return path
    named = environ.get("GCD_CONFIG")
    if named is not None:
        if not named.strip():
            raise ConfigError("GCD_CONFIG is empty", hint="name a file, or unset the variable")
        return Path(named)
    # What is there but cannot be read must not be passed over for another file.
    return next((each for each in SEARCHED if each.exists() or each.is_symlink()), None)


def is_found_here(path: Path | None, environ: Mapping[str, str]) -> bool:
    """Whether the file to read is the current folder's, and nobody named it."""
    named = path is not None or "GCD_CONFIG" in environ
    return not named and find_file(path, environ) == SEARCHED[0]


def read_file(path: Path, *, is_found: bool = False) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError where it cannot be read, with the line.

    One that was found in the current folder, and that nobody named, must be this user's or root's.
    """
    try:
        data = read_trusted(path) if is_found else path.read_bytes()
    except Distrusted as error:
        raise ConfigError(
            f"{path.absolute()} in the current folder is not read: it {error}",
            hint=f"or name the file that you mean: --config {path}",
        ) from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot read the configuration {path}: {why}",
            hint="`gcd config init PATH` writes a commented sample",
        ) from error
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not UTF-8, in line {line}", hint="TOML files are UTF-8; save it as such"
        ) from error
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(
            f"{path} is not TOML: {what}", hint="`gcd config init -` shows what it looks like"
        ) from error


def add_file(written: Written, tables: dict[str, Any], path: Path) -> None:
    """Put a file's tables under everything else."""
    written.tree = tables
    for section, table in tables.items():
        for key in leaves((section,), table):
            written.origins[key] = Origin("file", str(path))


def leaves(path: Path_, value: object) -> list[Path_]:
    """The key paths below a table, or the path itself for what is none."""
    if not isinstance(value, dict):
        return [path]
    return [leaf for key, each in value.items() for leaf in leaves((*path, key), each)]


def add_environment(written: Written, environ: Mapping[str, str]) -> None:
    """Put each GCD_SECTION__KEY; variables.py tells of other names."""
    for name, text in sorted(environ.items()):
        section, _, rest = name.removeprefix(PREFIX).lower().partition("__")
        if not name.startswith(PREFIX) or not section or not rest:
            continue
        origin = Origin("environment variable", name)
        if section != "stores":
            written.put((section, *rest.split("__")), text, origin)
            continue
        store, _, key = rest.rpartition("__")
        matches = same_name(store, written.tree.get("stores"))
        if not store or len(matches) > 1:
            known = " and ".join(matches)
            why = f"may mean {known}" if matches else "names no store: GCD_STORES__NAME__KEY"
            written.problems.append(("stores", f"the environment variable {name} {why}"))
        else:
            written.put(("stores", matches[0] if matches else store, key), text, origin)


def same_name(variable: str, stores: object) -> list[str]:
    """The stores that a name from a variable can mean: those have no "-" and no small letters."""
    known = stores if isinstance(stores, dict) else {}
    return [each for each in known if each.lower().replace("-", "_") == variable]


def add_overrides(written: Written, overrides: Mapping[str, object]) -> None:
    """Put what the command line gave, by dotted key path; None is what it did not give."""
    for key, value in overrides.items():
        if value is not None:
            written.put(tuple(key.split(".")), value, Origin(FLAG))


def coerced(path: Path_, text: str) -> Any:
    """A text as what its key takes; unchanged where it cannot be that, which is told of later."""
    key = fields_of(path[0]).get(path[-1])
    annotation = plain_type(key) if key else None
    if annotation is int and re.fullmatch(r"[+-]?[0-9](_?[0-9]){0,18}", text.strip()):
        return int(text)
    if annotation is float and re.fullmatch(r"[0-9]*\.?[0-9]+", text.strip()):
        return float(text)
    if annotation is bool and text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    if typing.get_origin(annotation) is tuple:
        return listed(text)
    return text


def listed(text: str) -> Any:
    """A list from an environment variable: JSON, or comma-separated."""
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return [part.strip() for part in text.split(",")] if text.strip() else []
