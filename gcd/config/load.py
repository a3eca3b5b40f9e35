"""Loads the configuration: merges its sources, resolves secrets, and tells every problem at once.

It must never show a secret; what it shows of a store is what was written, with passwords masked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationError

from gcd.config import problems, references, render, sources, stores, variables
from gcd.config.render import Setting, settings_of
from gcd.config.sections import Sections, fields_of
from gcd.config.sources import Origin, Path_, Written
from gcd.config.stores import (
    BACKEND,
    DESTINATION,
    REGISTRY,
    STORAGE,
    TRACKING,
    Given,
    StoreConfig,
)
from gcd.errors import ConfigError
from gcd.logs import MASK, mask

MLFLOW = (BACKEND, TRACKING, DESTINATION, *REGISTRY, *STORAGE)


@dataclass(frozen=True, slots=True)
class Loaded:
    """How a configuration came about; it may hold secrets, so nothing of it is in a repr."""

    source: Path | None = None
    origins: Mapping[Path_, Origin] = field(default_factory=dict, repr=False)
    written: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The stores as they were written, before their references were replaced."""
    mlflow: Mapping[str, str] = field(default_factory=dict, repr=False)
    """MLflow's variables that name a store."""


class Config(Sections):
    """The configuration in effect."""

    _loaded: Loaded = PrivateAttr(default_factory=Loaded)

    @property
    def source(self) -> Path | None:
        """The file that was read, None if there was none."""
        return self._loaded.source

    def store(
        self,
        name: str | None = None,
        *,
        backend_store_uri: str | None = None,
        artifacts_destination: str | None = None,
        tracking_uri: str | None = None,
        registry_store_uri: str | None = None,
        artifacts_proxy: str | None = None,
    ) -> StoreConfig:
        """The store to work on; the URIs are those of the command line and win.

        Raises ConfigError: no store, several and no name, an unknown name, an empty URI.
        """
        given = Given(
            backend_store_uri,
            artifacts_destination,
            tracking_uri,
            registry_store_uri,
            artifacts_proxy,
        )
        return stores.choose(self.stores, name, given, self._loaded.mlflow)

    def settings(self) -> Iterator[Setting]:
        """Every key in effect, secrets masked, with where its value comes from."""
        for name in self.stores:
            yield from self._of_store(name)
        for section in type(self).model_fields:
            if section != "stores":
                for where, key, value in settings_of(section, getattr(self, section)):
                    origin = self._loaded.origins.get((section, key), "default")
                    is_secret = not fields_of(section)[key].repr
                    shown = _hidden(value) if is_secret else _masked(value)
                    yield Setting(where, key, shown, str(origin))

    def show(self) -> str:
        """The configuration in effect as TOML, secrets masked, each key's origin in a comment."""
        notes = [f"file: {self.source}" if self.source else "no file: defaults"]
        if not self.stores:
            notes += self._environment_notes()
        return render.show(self.settings(), notes)

    def _of_store(self, name: str) -> Iterator[Setting]:
        section = f"stores.{name}"
        variables = self._variables() if len(self.stores) == 1 else {}
        for _, key, value in settings_of(section, self.stores[name]):
            if value is None and key in variables:
                variable = variables[key]
                text = mask(self._loaded.mlflow[variable])
                yield Setting(section, key, text, f"environment variable {variable}")
            else:
                text = self._loaded.written.get(name, {}).get(key)
                origin = self._loaded.origins.get(("stores", name, key), "default")
                shown = _variables_shown(text) if key == "environment" else _masked(text)
                yield Setting(section, key, shown, str(origin))

    def _variables(self) -> dict[str, str]:
        """Which of MLflow's variables stands for which key of a store, where it is of use."""
        found = {}
        if variable := stores.environment_variable(self._loaded.mlflow):
            found["backend_store_uri"] = variable
        if self._loaded.mlflow.get(DESTINATION):
            found["artifacts_destination"] = DESTINATION
        if variable := stores.registry_variable(self._loaded.mlflow):
            found["registry_store_uri"] = variable
        return found

    def _environment_notes(self) -> Iterator[str]:
        """What MLflow's environment says, where no store is configured."""
        for key, variable in self._variables().items():
            value = render.toml_value(mask(self._loaded.mlflow[variable]))
            yield f"{key} = {value}  # environment variable {variable}"


def load_config(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Config:
    """The configuration: `overrides` over GCD_SECTION__KEY over the file over the defaults.

    `path` is the file that the command line names; else $GCD_CONFIG, ./gcd.toml and
    /etc/gcd/gcd.toml are looked for. Other GCD_ variables are errors. `environ` is the process's own where it is None. The keys of
    `overrides` are dotted key paths; None says nothing. Raises ConfigError with every problem.
    """
    environ = os.environ if environ is None else environ
    source = sources.find_file(path, environ)
    written = Written()
    if source is not None:
        is_found = sources.is_found_here(path, environ)
        sources.add_file(written, sources.read_file(source, is_found=is_found), source)
    # What is wrong in the file stays a problem where a flag happens to cover it today.
    found = _problems(written)
    sources.add_environment(written, environ)
    referred = references.variables(written.tree.get("stores"))
    found += [*_problems(written), *variables.unknown(environ, referred)]
    sources.add_overrides(written, overrides or {})
    config = _validated(written, environ, source, found)
    raw = written.tree.get("stores", {})
    mlflow = {name: environ[name] for name in MLFLOW if name in environ}
    config._loaded = Loaded(source, written.origins, raw, mlflow)
    return config


def is_journal(environ: Mapping[str, str] | None = None) -> bool:
    """Whether stderr is journald's: $JOURNAL_STREAM has its device and inode (systemd.exec(5))."""
    environ = os.environ if environ is None else environ
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _problems(written: Written) -> list[tuple[str, str]]:
    """What is wrong with what was written so far, references aside."""
    try:
        Config.model_validate(written.tree)
    except ValidationError as error:
        return problems.problems(error, written.origins)
    return []


def _validated(
    written: Written,
    environ: Mapping[str, str],
    source: Path | None,
    found: list[tuple[str, str]],
) -> Config:
    """What was written as a configuration. Raises ConfigError, with what was `found` before."""
    found = [*found, *written.problems]
    tree = _expanded(written.tree, environ, found)
    config = None
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        found += problems.problems(error, written.origins)
    if config is None or found:
        found = list(dict.fromkeys(found))
        many = "a problem" if len(found) == 1 else f"{len(found)} problems"
        where = str(source) if source else "the configuration"
        hint = "`gcd config init -` prints a commented sample of every key"
        raise ConfigError(f"{where} has {many}", problems=found, hint=hint)
    return config


def _expanded(
    tree: Mapping[str, Any], environ: Mapping[str, str], found: list[tuple[str, str]]
) -> dict[str, Any]:
    """A copy with the references in the stores replaced; what leads nowhere is added to `found`."""
    copy = deepcopy(dict(tree))
    tables = copy.get("stores")
    for name, table in tables.items() if isinstance(tables, dict) else ():
        for key, value in table.items() if isinstance(table, dict) else ():
            try:
                table[key] = _resolved(value, environ)
            except references.Unresolved as error:
                found.append((f"stores.{name}.{key}", str(error)))
    return copy


def _hidden(url: str) -> str:
    """A URL whose path alone opens a door: its host, and no more."""
    return re.sub(r"(https?://)(?:[^/@]*@)?([^/?#]*).*", rf"\1\2/{MASK}", url)


def _resolved(value: Any, environ: Mapping[str, str]) -> Any:
    """A value, or each of a list, with its references replaced."""
    if isinstance(value, list):
        return [_resolved(each, environ) for each in value]
    return references.expand(value, environ) if isinstance(value, str) else value


def _variables_shown(texts: Any) -> Any:
    """Variables of a store without their values, which may be secrets; references stay."""
    if not isinstance(texts, list | tuple):
        return None if texts is None else MASK
    pairs = (str(text).partition("=") for text in texts)
    return tuple(f"{n}={v if references.is_reference(v) else MASK}" for n, _, v in pairs)


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)
    return tuple(map(mask, value)) if isinstance(value, tuple) else value
