"""What stays because of what else stays: decided before the first page of a plan.

Deleted experiments and the runs and logged models in and around them need each other: a model has
its metrics from runs, a run has its models. What stays keeps what it needs; the rest goes together.

Invariant: an active logged model goes only if no run stays that made, took or measured it, and a run
only if no logged model stays that it measured.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from gcd.model import Candidate, KeepReason, Kind, Measured
from gcd.planning.closure import staying
from gcd.planning.holds import HoldIndex
from gcd.planning.plan import Plan
from gcd.planning.policy import Keep, Policy, RunsOfLiveModels
from gcd.planning.quota import Key, within
from gcd.selection import Selection
from gcd.store.eraser import slices
from gcd.store.read import Wanted
from gcd.store.tracking import TrackingStore
from gcd.store.uses import Use

PAGE = 1000
"""Candidates planned at a time: bounds memory."""
GROUP = 100
"""Deleted experiments planned, and collected, together."""


class Judge(Protocol):
    """Decides on a page of candidates, each by itself."""

    def __call__(
        self, page: Sequence[Candidate], holds: HoldIndex, *, are_members: bool = False
    ) -> Plan: ...


class Fates:
    """Which deleted experiments, and which active logged models, stay."""

    def __init__(
        self,
        store: TrackingStore,
        judge: Judge,
        policy: Policy,
        selection: Selection,
        chosen: Collection[Key] | None,
    ) -> None:
        self.store, self.judge = store, judge
        self.choice, self.selection, self.chosen = policy.runs_of_live_models, selection, chosen
        self.with_models: Collection[str] = frozenset()
        """The deleted experiments that may go and have active logged models."""
        self.experiments: dict[str, Candidate] = {}
        """Those as they were judged: what goes with one goes only while it is still so."""
        self.is_linked = False
        """Whether anything waits for something else to go that is not in the same experiment."""
        self._leaving: set[str] = set()
        """Models of live experiments that go with the runs that made them."""
        self._stays: Mapping[Key, Keep] = {}
        self._is_settled = False
        self._holds = HoldIndex()

    # -- what there is to ask --------------------------------------------------------------------

    def of_experiment(self, experiment: str) -> Keep | None:
        """Why a deleted experiment stays for the sake of what else stays."""
        return self._stays.get((Kind.EXPERIMENT, experiment))

    def goes_with_models(self, experiment: str) -> bool:
        """Whether an experiment goes, and active logged models with it."""
        return experiment in self.with_models and self.of_experiment(experiment) is None

    def is_leaving(self, model: str) -> bool:
        """Whether an active model of a live experiment goes with the run that made it."""
        return model in self._leaving and (Kind.LOGGED_MODEL, model) not in self._stays

    # -- deciding on pages -----------------------------------------------------------------------

    def planned(self, page: Sequence[Candidate], holds: HoldIndex) -> Plan:
        """A page of runs or logged models, each by what of its parts and owners stays."""
        if page and page[0].kind is Kind.LOGGED_MODEL:
            page = self._without_active(page, holds)
        deleted = list(page)
        if any(each.measures for each in deleted):
            deleted = self._with_fed(deleted, holds)
        plan = self.judge(deleted, holds)
        return self._limited(plan)

    def _without_active(self, page: Sequence[Candidate], holds: HoldIndex) -> list[Candidate]:
        """Logged models that were deleted, and active ones that go with the run that made them."""
        if any(map(is_active, page)):
            self.settle(holds)
        return [each for each in page if not is_active(each) or self.is_leaving(each.id)]

    def _limited(self, plan: Plan) -> Plan:
        """What of a plan the quota leaves."""
        return plan if self.chosen is None else within(plan, self.chosen)

    def in_order(self, plan: Plan) -> Iterator[Plan]:
        """A page of runs so that nothing goes before what loses a part with it.

        First the runs that go by themselves, then the models that the others measured, then those.
        """
        bound = tuple(d for d in plan.collect if d.candidate.goes_with)
        if not bound:
            yield plan
            return
        alone = tuple(d for d in plan.collect if not d.candidate.goes_with)
        measured = {m for d in bound for m in d.candidate.measures if self._is_part(m)}
        yield replace(plan, collect=alone)
        yield Plan((), (), first=tuple(sorted(m.model for m in measured)))
        yield Plan(bound, ())

    def _with_fed(self, page: Sequence[Candidate], holds: HoldIndex) -> list[Candidate]:
        """Runs with which of the models that they measured stay, and which go with experiments."""
        if self.choice is RunsOfLiveModels.COLLECT_RUN:
            return list(page)
        self.settle(holds)
        alone = {m.model for each in page for m in each.measures if m.is_deleted}
        self.is_linked |= bool(alone)
        going = self._going_alone(sorted(alone), holds)
        return [
            replace(
                each,
                feeds=tuple(m.model for m in each.measures if not self._goes(m, going)),
                goes_with=tuple(sorted({m.experiment for m in each.measures if self._is_part(m)})),
            )
            for each in page
        ]

    def _goes(self, measured: Measured, going: Collection[str]) -> bool:
        if measured.is_deleted:
            return measured.model in going
        return self._is_part(measured) or self.is_leaving(measured.model)

    def _is_part(self, measured: Measured) -> bool:
        """Whether a model goes with its experiment."""
        is_active = measured.is_in_deleted and not measured.is_deleted
        return is_active and self.goes_with_models(measured.experiment)

    def _going_alone(self, models: Sequence[str], holds: HoldIndex) -> set[str]:
        """Those of the soft-deleted logged models that are collected in this plan."""
        going: set[str] = set()
        wanted = Wanted(ids=tuple(models), workspaces=self.selection.workspaces)
        for page in self.store.candidates(Kind.LOGGED_MODEL, wanted, PAGE) if models else ():
            going.update(self._collected(self.planned(page, holds)))
        return going

    def _collected(self, plan: Plan) -> Iterator[str]:
        """What a plan collects of what was asked for."""
        for decision in plan.collect:
            if self.selection.includes(decision.candidate):
                yield decision.candidate.id

    # -- deleted experiments ---------------------------------------------------------------------

    def planned_group(self, group: Sequence[Candidate], holds: HoldIndex) -> Iterator[Plan]:
        """Deleted experiments: the runs in them that are deleted, page by page, then themselves.

        Their soft-deleted logged models were planned before; what keeps one keeps its experiment.
        Whoever collects one plan before asking for the next has the experiments judged by what is
        left in them then.
        """
        self.settle(holds)
        kept: dict[str, Keep] = {}
        wanted = Wanted(experiments=tuple(each.id for each in group))
        for page in self.store.candidates(Kind.LOGGED_MODEL, wanted, PAGE):
            note_kept(kept, self.planned(page, holds))
        for page in self.store.candidates(Kind.RUN, wanted, PAGE):
            plan = self.planned(page, holds)
            note_kept(kept, plan)
            yield from self.in_order(plan)
        full = self.store.with_contents(group, lambda model: holds.on(model) is not None)
        plan = self.judge(full, holds).without(kept)
        plan = self._with_members(plan, holds).with_reasons(self._kept_of(group))
        yield self._limited(plan)

    def _kept_of(self, group: Sequence[Candidate]) -> dict[str, Keep]:
        found = ((each.id, self.of_experiment(each.id)) for each in group)
        return {experiment: keep for experiment, keep in found if keep is not None}

    def _with_members(self, plan: Plan, holds: HoldIndex) -> Plan:
        """A plan of experiments with what goes with them; what keeps a part of one keeps all of it."""
        kept: dict[str, Keep] = {}
        going: dict[str, dict[Kind, int]] = {}
        ids = [d.candidate.id for d in plan.collect if d.candidate.kind is Kind.EXPERIMENT]
        for page in self.members(ids, holds):
            note_kept(kept, page)
            for decision in page.collect:
                each = decision.candidate
                counts = going.setdefault(each.experiment_id, {})
                counts[each.kind] = counts.get(each.kind, 0) + 1
        return replace(plan.without(kept), members=going)

    def members(self, experiments: Iterable[str], holds: HoldIndex) -> Iterator[Plan]:
        """What goes with experiments: logged models, then traces, by page."""
        wanted = Wanted(experiments=tuple(experiments), is_member=True)
        for kind in (Kind.LOGGED_MODEL, Kind.TRACE) if wanted.experiments else ():
            for page in self.store.candidates(kind, wanted, PAGE):
                yield self.judge(page, holds, are_members=True)

    def measured_members(self, models: Sequence[str]) -> Iterator[Plan]:
        """Active models that go with their experiments, before the runs that measured them."""
        wanted = Wanted(ids=tuple(models), is_member=True)
        for page in self.store.candidates(Kind.LOGGED_MODEL, wanted, PAGE):
            yield self.judge(page, self._holds, are_members=True)

    # -- deciding what stays ---------------------------------------------------------------------

    def settle(self, holds: HoldIndex) -> None:
        """Decide it once; until it is decided, all that may go is taken to go."""
        if self._is_settled:
            return
        self._is_settled, self._holds = True, holds
        deleted = self.store.deleted_experiments(self.selection.workspaces)
        if self.selection.is_narrowed:
            deleted &= set(self.selection.experiments or ())
        self.with_models = self.store.with_active_models(sorted(deleted))
        seeds: dict[Key, Keep] = {}
        if self.choice is RunsOfLiveModels.COLLECT_BOTH:
            seeds |= self._models_by_themselves(holds)
        seeds |= self._experiments_by_themselves(holds)
        for part in slices(self.store.uses_across(sorted(deleted))):
            seeds |= self._kept_from_outside(part, holds)
        self._stays = staying(seeds, self._kept_by)

    def _experiments_by_themselves(self, holds: HoldIndex) -> dict[Key, Keep]:
        """Of the experiments with active models: those that something in them keeps."""
        seeds: dict[Key, Keep] = {}
        wanted = Wanted(ids=tuple(sorted(self.with_models)))
        for group in self.store.candidates(Kind.EXPERIMENT, wanted, GROUP):
            self.experiments |= {each.id: each for each in group}
            for plan in self.planned_group(group, holds):
                for decision in plan.keep:
                    if decision.candidate.kind is Kind.EXPERIMENT:
                        seeds[Kind.EXPERIMENT, decision.candidate.id] = decision.keep[0]
        return seeds

    def _kept_from_outside(self, found: Sequence[Use], holds: HoldIndex) -> dict[Key, Keep]:
        """Experiments of which something is used by runs elsewhere that stay by themselves."""
        self.is_linked = True
        going = self._going_runs({use.run for use in found}, holds)
        return {
            (Kind.EXPERIMENT, use.experiment): needed(use.run, f"the {use.part} in it")
            for use in found
            if use.run not in going
        }

    def _going_runs(self, runs: Collection[str], holds: HoldIndex) -> set[str]:
        """Those of the runs that nothing keeps but what only stays for the sake of others."""
        going: set[str] = set()
        wanted = Wanted(ids=tuple(runs), workspaces=self.selection.workspaces)
        for page in self.store.candidates(Kind.RUN, wanted, PAGE):
            going.update(self._collected(self.planned(page, holds)))
        return going

    def _models_by_themselves(self, holds: HoldIndex) -> dict[Key, Keep]:
        """Active models made by deleted runs: those that are kept; the rest is noted as leaving."""
        seeds: dict[Key, Keep] = {}
        named = self.selection.logged_models
        wanted = Wanted(
            ids=(named or ()) if self.selection.is_narrowed else None,
            workspaces=self.selection.workspaces,
            in_live_experiments=True,
            with_source_run=True,
        )
        for page in self.store.candidates(Kind.LOGGED_MODEL, wanted, PAGE):
            used = {each.id: IN_USE for each in page if each.is_in_use}
            plan = self.judge([each for each in page if is_active(each)], holds).without(used)
            plan = self._limited(plan)
            self._leaving |= {d.candidate.id for d in plan.collect}
            seeds |= {(Kind.LOGGED_MODEL, d.candidate.id): d.keep[0] for d in plan.keep}
        for part in slices(sorted(self._leaving)):
            seeds |= self._models_used(part, holds)
        return seeds

    def _models_used(self, models: Sequence[str], holds: HoldIndex) -> dict[Key, Keep]:
        """Of the models that would leave: those that runs use which stay by themselves."""
        users = self.store.users(Kind.LOGGED_MODEL, models)
        runs = {run for each in users.values() for run in each}
        going = set[str]()
        for part in slices(sorted(runs)):
            going |= self._going_runs(part, holds)
        return {
            (Kind.LOGGED_MODEL, model): needed(run, "it")
            for model, each in users.items()
            for run in each
            if run not in going
        }

    def _kept_by(self, found: Collection[Key]) -> dict[Key, Keep]:
        """What the runs need that measured the models of these experiments, or these models."""
        if self.choice is RunsOfLiveModels.COLLECT_RUN:
            return {}
        with_models = self.choice is RunsOfLiveModels.COLLECT_BOTH
        keeps: dict[Key, Keep] = {}
        for kind in (Kind.EXPERIMENT, Kind.LOGGED_MODEL):
            ids = [entity for each, entity in found if each is kind]
            for part in slices(ids):
                for need in self.store.needed_by_measuring(kind, part, with_models=with_models):
                    what = "it" if need.kind is Kind.LOGGED_MODEL else "something in it"
                    keeps.setdefault((need.kind, need.id), needed(need.run, what))
        return keeps


def needed(run: str, what: str) -> Keep:
    """Why something stays that a run needs."""
    return Keep(KeepReason.HAS_LIVE_CHILDREN, f"the run {run}, which stays, needs {what}")


IN_USE = Keep(KeepReason.HAS_LIVE_CHILDREN, "an active run uses it")

TELLING = frozenset(
    {
        KeepReason.HELD,
        KeepReason.REGISTERED,
        KeepReason.TOO_YOUNG,
        KeepReason.UNSAFE_TARGET,
        KeepReason.NO_BACKEND,
        KeepReason.FOREIGN_ROOT,
        KeepReason.UNREACHABLE,
        KeepReason.ROOT_UNHEALTHY,
        KeepReason.OVER_QUOTA,
    }
)
"""Reasons that say the same of an experiment as of a part of it."""


def because(part: Candidate, keep: Keep) -> Keep:
    """Why an experiment stays in which something is kept."""
    reason = keep.reason if keep.reason in TELLING else KeepReason.HAS_LIVE_CHILDREN
    what = f"the {part.kind.replace('_', ' ')} {part.id} in it is kept, {keep.reason}"
    return Keep(reason, f"{what}: {keep.detail}")


def note_kept(kept: dict[str, Keep], plan: Plan) -> None:
    """Note for each experiment the first of a plan's entities that is kept in it."""
    for decision in plan.keep:
        part = decision.candidate
        kept.setdefault(part.experiment_id, because(part, decision.keep[0]))


def is_active(candidate: Candidate) -> bool:
    """Whether a logged model is not in the deleted stage: it goes only with something else."""
    return not candidate.token.startswith("deleted@")
