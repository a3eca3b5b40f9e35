"""Runs that a person named on the command line: each that is not collected is told, with its reason.

It must never widen a selection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import click

from gcd.logs import mask
from gcd.planning.plan import Plan
from gcd.planning.policy import Keep


class Named:
    """The ids that were named, and what became of each."""

    def __init__(self, ids: Sequence[str] | None) -> None:
        self.ids = tuple(ids or ())
        self.kept: dict[str, Keep] = {}
        self.collected: set[str] = set()

    def note(self, plan: Plan) -> None:
        """Note what was decided about the named ones on a page."""
        if self.ids:
            self.collected.update(each.candidate.id for each in plan.collect)
            self.kept.update({each.candidate.id: each.keep[0] for each in plan.keep})

    def keep(self, run: str, keep: Keep) -> None:
        """Note that one is kept after all."""
        if self.ids:
            self.kept[run] = keep
            self.collected.discard(run)


def report_named(
    named: Named, stages: Callable[[Sequence[str]], Mapping[str, str | None]], *, collected: str
) -> int:
    """Tell of each named run that is not collected; how many those are."""
    missed = [run for run in named.ids if run not in named.collected]
    unseen = [run for run in missed if run not in named.kept]
    found = stages(unseen) if unseen else {}
    for run in missed:
        if run in named.kept:
            keep = named.kept[run]
            reason = f"kept, {keep.reason}: {mask(keep.detail)}"
        elif run in found:
            reason = "kept: it is active; gcd collects only what is soft-deleted"
        else:
            reason = "unknown: there is no run with this id"
        click.echo(f"run {run}: {reason}", err=True)
    if named.ids and not missed:
        click.echo(f"all {len(named.ids)} named runs {collected}", err=True)
    return len(missed)
