"""What a person named on the command line: each entity that is not collected is told, with its reason.

It must never widen a selection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import click

from gcd.cli.words import noun
from gcd.logs import mask
from gcd.model import Candidate, Kind
from gcd.planning.plan import Plan
from gcd.planning.policy import Keep
from gcd.selection import Selection

Key = tuple[Kind, str]
Stages = Callable[[Kind, Sequence[str]], Mapping[str, str | None]]


class Named:
    """The entities that were named, and what became of each."""

    def __init__(self, selection: Selection) -> None:
        self.keys: tuple[Key, ...] = tuple(
            (kind, entity)
            for kind, ids in (
                (Kind.RUN, selection.runs),
                (Kind.LOGGED_MODEL, selection.logged_models),
                (Kind.EXPERIMENT, selection.experiments),
                (Kind.JOB, selection.jobs),
            )
            for entity in ids or ()
        )
        self._wanted = set(self.keys)
        self.kept: dict[Key, Keep] = {}
        self.collected: set[Key] = set()

    def note(self, plan: Plan) -> None:
        """Note what was decided about the named ones on a page."""
        if not self._wanted:
            return
        for decision in plan.collect:
            self.collected.add((decision.candidate.kind, decision.candidate.id))
        for decision in plan.keep:
            self._note_kept(decision.candidate, decision.keep[0])

    def keep(self, candidate: Candidate, keep: Keep) -> None:
        """Note that one is kept after all."""
        self._note_kept(candidate, keep)

    def _note_kept(self, candidate: Candidate, keep: Keep) -> None:
        key = candidate.kind, candidate.id
        if key in self._wanted:
            self.kept[key] = keep
            self.collected.discard(key)


def report_named(named: Named, stages: Stages, *, collected: str) -> int:
    """Tell of each named entity that is not collected; how many those are."""
    missed = [key for key in named.keys if key not in named.collected]
    for kind, entity in missed:
        click.echo(f"{noun(kind)} {entity}: {reason(named, stages, kind, entity)}", err=True)
    if named.keys and not missed:
        click.echo(f"all {len(named.keys)} that were named {collected}", err=True)
    return len(missed)


def reason(named: Named, stages: Stages, kind: Kind, entity: str) -> str:
    """Why a named entity is not collected."""
    keep = named.kept.get((kind, entity))
    if keep is not None:
        return f"kept, {keep.reason}: {mask(keep.detail)}"
    found = stages(kind, [entity])
    if entity not in found:
        return f"unknown: there is no {noun(kind)} with this id"
    if kind is Kind.JOB:
        return "kept: it is not finished, or too young"
    if found[entity] == "deleted":
        return "kept: it is in another workspace; --workspace or --all-workspaces selects it"
    return "kept: it is active; gcd collects only what is soft-deleted"
