"""Judges once more what a purge transaction has locked: holds and uses may have come meanwhile.

It must never let pass what a plan made now would keep.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy.engine import Connection

from gcd.evidence import has_tree
from gcd.fates import is_active
from gcd.model import KeepReason, Kind
from gcd.places import Places
from gcd.planning.holds import HoldIndex
from gcd.planning.plan import Decision
from gcd.planning.policy import Keep, RunsOfLiveModels, judge
from gcd.store import contents, read, uses
from gcd.store.eraser import slices
from gcd.store.read import Wanted
from gcd.survey import Survey


def rejudge(
    survey: Survey,
    conn: Connection,
    kind: Kind,
    decisions: Mapping[str, Decision],
    ids: Sequence[str],
    *,
    is_giant: bool = False,
) -> dict[str, Keep]:
    """Of entities locked in a purge transaction: those that something speaks for now."""
    kept = held_now(survey, conn, decisions, ids)
    schema = survey.store.schema
    # A giant's own row goes with foreign keys off: the database lets no other row go with it.
    also = schema.harmless if is_giant else ()
    for entity, table in read.unknown_references(conn, schema, kind, ids, also=also).items():
        kept.setdefault(entity, Keep(KeepReason.UNKNOWN_REFERENCE, f"{table} refers to it"))
    found: Mapping[str, Keep] = {}
    if kind is Kind.RUN:
        found = feeding_now(survey, conn, ids)
    elif kind in (Kind.LOGGED_MODEL, Kind.TRACE):
        found = used_now(survey, conn, kind, decisions, ids)
    elif kind is Kind.EXPERIMENT:
        found = inhabited_now(survey, conn, ids)
    return {**found, **kept}


def held_now(
    survey: Survey, conn: Connection, decisions: Mapping[str, Decision], ids: Sequence[str]
) -> dict[str, Keep]:
    """What a tag, an operator or a model version holds."""
    places: Places = survey.places
    found = places.placed(survey.store.entity_holds(conn, ids))
    index = HoldIndex.build(found, survey.now, (survey.watch.refreshed(),))
    other_names = places.naming()
    kept: dict[str, Keep] = {}
    for entity in ids:
        decision = decisions[entity]
        hold = index.on_candidate(decision.candidate)
        for target in decision.targets if has_tree(decision) else ():
            hold = hold or index.over(target.place)
            if hold is None and index.has_other_names:
                hold = index.over_any(other_names(target.place))
        if hold is not None:
            kept[entity] = Keep(hold.reason, hold.because)
    return kept


def feeding_now(survey: Survey, conn: Connection, ids: Sequence[str]) -> dict[str, Keep]:
    """Runs whose metrics belong to a logged model that is still there: models go first."""
    if survey.settings.policy.runs_of_live_models is RunsOfLiveModels.COLLECT_RUN:
        return {}
    return {
        run: Keep(
            KeepReason.FEEDS_LIVE_MODEL,
            f"its metrics belong to the logged model {models[0].model}, which is still there",
        )
        for run, models in uses.measured_models(conn, survey.store.schema, ids).items()
    }


def used_now(
    survey: Survey,
    conn: Connection,
    kind: Kind,
    decisions: Mapping[str, Decision],
    ids: Sequence[str],
) -> dict[str, Keep]:
    """Active logged models and traces, on their way out with something else, that a run needs.

    Runs that were to go when it was planned may have been restored or held since.
    """
    parts = [
        entity for entity in ids if kind is Kind.TRACE or is_active(decisions[entity].candidate)
    ]
    users = uses.users(conn, survey.store.schema, kind, parts)
    staying = staying_now(survey, conn, {run for each in users.values() for run in each})
    return {
        part: Keep(KeepReason.HAS_LIVE_CHILDREN, f"the run {run} needs it: {staying[run].detail}")
        for part, runs in users.items()
        for run in runs
        if run in staying
    }


def staying_now(survey: Survey, conn: Connection, runs: Collection[str]) -> dict[str, Keep]:
    """Those of the runs that are active, or deleted and kept by their age or by a hold."""
    staying = {run: Keep(KeepReason.RESTORED, "it is active") for run in runs}
    for part in slices(sorted(runs)):
        wanted = Wanted(ids=tuple(part))
        found = survey.places.placed(survey.store.entity_holds(conn, part))
        index = HoldIndex.build(found, survey.now, (survey.watch.refreshed(),))
        for run in survey.store.page_of(conn, Kind.RUN, wanted, limit=len(part)):
            hold = index.on_candidate(run)
            keeps = [Keep(hold.reason, hold.because)] if hold else []
            keeps += judge(run, survey.settings.policy, survey.now)
            if keeps:
                staying[run.id] = keeps[0]
            else:
                staying.pop(run.id, None)
    return staying


def inhabited_now(survey: Survey, conn: Connection, ids: Sequence[str]) -> dict[str, Keep]:
    """Experiments in which something is, or whose scorers a guardrail needs."""
    schema = survey.store.schema
    kept = {
        experiment: Keep(KeepReason.HAS_LIVE_CHILDREN, f"there is still a {noun} in it")
        for experiment, noun in contents.parts_left(conn, schema, ids).items()
    }
    numbers = read.native(Kind.EXPERIMENT, ids)
    for number, scorer in contents.guarding_scorers(conn, schema, numbers).items():
        detail = f"a guardrail of a gateway endpoint needs the scorer {scorer} in it"
        kept[str(number)] = Keep(KeepReason.IN_USE, detail)
    return kept
