"""Judges once more what a purge transaction has locked: holds and uses may have come meanwhile.

It must never let pass what a plan made now would keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy.engine import Connection

from gcd.evidence import has_tree
from gcd.model import KeepReason, Kind
from gcd.places import Places
from gcd.planning.holds import HoldIndex
from gcd.planning.plan import Decision
from gcd.planning.policy import Keep, RunsOfLiveModels
from gcd.store import contents, holds, read
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
    elif kind is Kind.LOGGED_MODEL:
        found = used_now(survey, conn, decisions, ids)
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
    """Runs whose metrics belong to a logged model that is live now."""
    if survey.settings.policy.runs_of_live_models is RunsOfLiveModels.COLLECT_RUN:
        return {}
    return {
        run: Keep(
            KeepReason.FEEDS_LIVE_MODEL, f"its metrics belong to the live logged model {models[0]}"
        )
        for run, models in read.live_models_fed(conn, survey.store.schema, ids).items()
    }


def used_now(
    survey: Survey, conn: Connection, decisions: Mapping[str, Decision], ids: Sequence[str]
) -> dict[str, Keep]:
    """Active logged models, on their way out with a run or an experiment, that something live uses."""
    active = [model for model in ids if not decisions[model].candidate.token.startswith("deleted@")]
    used = holds.models_in_use(conn, survey.store.schema, active)
    return {
        model: Keep(KeepReason.HAS_LIVE_CHILDREN, f"something live uses the logged model {model}")
        for model in used
    }


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
