"""A look, before the first write, at some of what would be collected: is this the right destination?

All that has a witness is looked at where that is little, else the first by id, which MLflow makes at
random: as many as tell a share from its half. Too much is looked at, never too little: what is kept
for the sake of something else is not told apart here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from gcd.model import Candidate, Kind
from gcd.planning.emptiness import FEWEST, Share
from gcd.planning.holds import HoldIndex
from gcd.planning.plan import Plan
from gcd.store.read import Wanted
from gcd.store.tracking import TrackingStore

SAMPLE = 1000
"""Entities of a kind that are looked at."""


class Narrowed(Protocol):
    """What a person narrowed the collection to."""

    @property
    def runs(self) -> tuple[str, ...] | None: ...
    @property
    def logged_models(self) -> tuple[str, ...] | None: ...
    @property
    def experiments(self) -> tuple[str, ...] | None: ...
    @property
    def workspaces(self) -> tuple[str, ...] | None: ...
    @property
    def is_narrowed(self) -> bool: ...


class Planner(Protocol):
    """What decides on candidates, as in the plan itself."""

    def __call__(
        self, page: Sequence[Candidate], holds: HoldIndex, *, are_members: bool = False
    ) -> Plan: ...


def refuse_wrong_destination(
    store: TrackingStore,
    asked: Narrowed,
    plan_page: Planner,
    read_holds: Callable[[], HoldIndex],
) -> None:
    """Raise FuseBlown where most trees are empty in which the database names files.

    Costs a query for each kind where there are few such trees.
    """
    samples = [
        (kind, store.with_witness(kind, SAMPLE, wanted), wanted) for kind, wanted in sought(asked)
    ]
    if sum(len(ids) for _, ids, _ in samples) < FEWEST:
        return
    share, holds = Share(), read_holds()
    for kind, ids, wanted in samples:
        chosen = Wanted(ids=tuple(ids), workspaces=wanted.workspaces, is_member=wanted.is_member)
        for page in store.candidates(kind, chosen, SAMPLE) if ids else ():
            going = leaving(store, page, holds, plan_page) if wanted.is_member else None
            parts = [
                c for c in page if not c.is_in_use and (going is None or c.experiment_id in going)
            ]
            for decision in plan_page(parts, holds, are_members=wanted.is_member).collect:
                share.add(decision)
    share.check()


def sought(asked: Narrowed) -> Iterator[tuple[Kind, Wanted]]:
    """What is looked for: deleted runs and logged models, and what goes with deleted experiments."""
    spaces, experiments = asked.workspaces, asked.experiments
    for kind, ids in ((Kind.RUN, asked.runs), (Kind.LOGGED_MODEL, asked.logged_models)):
        if ids is not None or not asked.is_narrowed:
            yield kind, Wanted(ids=ids, workspaces=spaces)
        if experiments is not None:
            yield kind, Wanted(experiments=experiments, workspaces=spaces)
    if experiments is not None or not asked.is_narrowed:
        for kind in (Kind.LOGGED_MODEL, Kind.TRACE):
            yield kind, Wanted(experiments=experiments, workspaces=spaces, is_member=True)


def leaving(
    store: TrackingStore, parts: Sequence[Candidate], holds: HoldIndex, plan_page: Planner
) -> set[str]:
    """The experiments of these parts that would be collected."""
    ids = tuple({each.experiment_id for each in parts})

    def is_held(model: str) -> bool:
        return holds.on(model) is not None

    return {
        decision.candidate.id
        for group in (store.candidates(Kind.EXPERIMENT, Wanted(ids=ids), SAMPLE) if ids else ())
        for decision in plan_page(store.with_contents(group, is_held), holds).collect
    }
