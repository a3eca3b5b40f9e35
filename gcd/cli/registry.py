"""The table of commands: gcd's own and those of plug-ins, by the name of what to import.

It must never import a command to list it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import click

from gcd import lazy, plugins
from gcd.errors import GcdError

GROUP = "gcd.commands"
BUILTIN: Mapping[str, tuple[str, str]] = {
    "gc": ("gcd.cli.gc:gc", "One cycle now: plan, ask on a terminal, delete."),
    "plan": ("gcd.cli.plan:plan", "What gc would delete and what it would keep; writes nothing."),
    "daemon": ("gcd.cli.daemon:daemon", "The scheduler: collects all stores, as a service."),
    "explain": ("gcd.cli.explain:explain", "Why something would be kept or collected, or when."),
    "status": ("gcd.cli.status:status", "Last cycles, what waits, what is stuck, what comes due."),
    "hold": ("gcd.cli.hold:hold", "Protect runs, logged models and experiments by hand."),
    "retry": ("gcd.cli.retry:retry", "Try deferred, stuck and parked deletions again now."),
    "sweep-rows": (
        "gcd.cli.sweep_rows:sweep_rows",
        "Delete rows that earlier `mlflow gc` runs left behind.",
    ),
    "init": ("gcd.cli.init:init", "Make gcd's tables, or print them and the grants for a DBA."),
    "doctor": ("gcd.cli.doctor:doctor", "Check database, privileges and storage roots."),
    "config": ("gcd.cli.configure:config", "Check, show or write the configuration."),
    "demo": (
        "gcd.cli.demo:demo",
        "A small store in a temporary folder, collected before your eyes.",
    ),
}
"""Name, then what to import and one line of help, in the order of the main help."""


class Listing(NamedTuple):
    """What the main help says without importing a command."""

    commands: dict[str, str]
    """One line of help for each name."""
    refused: list[str]
    """A sentence for each plug-in that is not used."""


def listing() -> Listing:
    """Every command that can be called here, and every plug-in that cannot."""
    claims = _claims()
    own = {name: line for name, (_, line) in BUILTIN.items()}
    theirs = {name: f"(from {plugin.origin})" for name, plugin in claims.accepted.items()}
    return Listing({**own, **theirs}, list(claims.refused.values()))


def load(name: str) -> click.Command | None:
    """Import a command; None if there is none of that name.

    Raises ExtraMissing if a plug-in's library is not installed, GcdError if the plug-in is broken
    or refused.
    """
    if name in BUILTIN:
        with _uncollected():
            own: click.Command = lazy.load(BUILTIN[name][0])
        return own
    claims = _claims()
    if name in claims.refused:
        raise GcdError(claims.refused[name])
    if name not in claims.accepted:
        return None
    plugin = claims.accepted[name]
    command = plugins.load(plugin)
    if not isinstance(command, click.Command):
        what = f"{plugin.spec} is no click command"
        raise GcdError(f"{name} (from {plugin.origin}) is broken: {what}")
    return command


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for garbage inside: importing makes none, and a seventh of its time went there."""
    was_searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_searching:
            gc.enable()


def _claims() -> plugins.Claims:
    return plugins.settled(plugins.read(GROUP), own=BUILTIN, noun="command")
