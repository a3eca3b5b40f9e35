"""What Hypothesis makes up: places, and small worlds of every kind that a plan has to be made for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from gcd.model import Candidate, Contents, Hold, KeepReason, Kind, Place, Probe, Reach, Root
from gcd.planning.gate import Gate
from gcd.planning.guard import Scope, Site, below, entity_names, layout_root, parse_place
from gcd.planning.policy import Keep, Policy, RunsOfLiveModels

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)
AGES = (timedelta(0), timedelta(hours=1), timedelta(days=1), timedelta(days=30))

# Places -----------------------------------------------------------------------------------------

names = (
    st.binary(min_size=1, max_size=8)
    .map(lambda raw: raw.decode("utf-8", "surrogateescape"))
    .filter(lambda name: name not in (".", "..") and "/" not in name and "\0" not in name)
)
"""Every name that a folder can have, those that are no UTF-8 included."""

file_places = st.lists(names, max_size=4).map(
    lambda parts: Place("file", "", "/" + "".join(part + "/" for part in parts))
)
object_places = st.builds(
    Place,
    st.sampled_from(["s3", "gs", "wasbs", "abfss", "sftp", "memory"]),
    st.text("abc.-@", max_size=6),
    st.lists(st.text(max_size=6).filter(lambda key: not set("\0\t\r\n/?#") & set(key)), max_size=4)
    .map("/".join)
    .map(lambda path: path and path + "/"),
)
places = file_places | object_places

near_places = st.builds(
    lambda store, parts: below(store, *parts),
    st.sampled_from(
        [
            Place("file", "", "/"),
            Place("s3", "b", ""),
            Place("s3a", "b", ""),
            Place("s3", "b2", ""),
        ]
    ),
    st.lists(st.sampled_from(["1", "10", "1-", "a"]), max_size=4),
)
"""Places of which many are equal, contain one another, or only look as if they did."""

# Worlds -----------------------------------------------------------------------------------------

ATTIC = Place("file", "", "/attic/")
SCOPE = Scope(
    destination=Place("file", "", "/srv/artifacts/"), hosts=frozenset({"tracking"}), roots=(ATTIC,)
)
LOCATIONS: Mapping[str, str | None] = {
    "0": "/data/mlruns/0",
    "1": "file:///data/mlruns/1",
    "10": "/data/mlruns/10",
    "2": "s3://bucket/team/2",
    "3": "mlflow-artifacts:/3",
    "4": "/home/somebody",
    "5": "gs://bucket/5",
    "6": None,
}
NAMES: Mapping[str, str] = {"1": "prod-a", "10": "prod-b", "2": "lab", "3": "lab-[x]"}
"""The names of some experiments; the others have none."""
PATTERNS: Mapping[str, frozenset[str | None]] = {
    "prod-*": frozenset({"prod-a", "prod-b"}),
    "PROD-*": frozenset(),
    "lab": frozenset({"lab"}),
    "lab*": frozenset({"lab", "lab-[x]"}),
    "lab-[[]x]": frozenset({"lab-[x]"}),
    "*": frozenset({*NAMES.values(), None}),
}
"""Patterns of names, each with those that it matches."""
MEMBERS = ("m-" + "c" * 32, "m-" + "d" * 32, "tr-" + "e" * 32, "tr-" + "f" * 32)
IDS = ("a" * 32, "a" * 32 + "0", "b" * 32, *MEMBERS, "0", "1", "10", "2", "4", "6", "job-1")
FOLDERS = {Kind.RUN: "", Kind.LOGGED_MODEL: "models/", Kind.TRACE: "traces/"}


def kind_of(entity: str) -> Kind:
    """The kind of an entity of these worlds, by the form of its id."""
    if entity.isdecimal():
        return Kind.EXPERIMENT
    forms = {"m-": Kind.LOGGED_MODEL, "tr-": Kind.TRACE, "job-": Kind.JOB}
    return next((kind for form, kind in forms.items() if entity.startswith(form)), Kind.RUN)


def made_sites() -> dict[str, Site | Keep]:
    """The sites of all locations; for one of them there is no backend."""
    sites: dict[str, Site | Keep] = {}
    for experiment, location in LOCATIONS.items():
        if location is not None:
            place = parse_place(location, SCOPE)
            sites[location] = Site(place, place, layout_root(place, experiment, SCOPE))
    sites["gs://bucket/5"] = Keep(KeepReason.NO_BACKEND, "no library")
    return sites


SITES = made_sites()
ROOTS = frozenset({site.root for site in SITES.values() if isinstance(site, Site)} | {ATTIC})

TIMES = [NOW - age - shift for age in AGES for shift in (-TICK, timedelta(0), TICK)]
times = st.sampled_from(TIMES)


@st.composite
def candidates(draw: st.DrawFn, entity: str) -> Candidate:
    """An entity that may be collected, often where MLflow puts it, sometimes anywhere."""
    kind = kind_of(entity)
    shared = {
        "kind": kind,
        "id": entity,
        "token": "deleted@1",
        "deleted_at": draw(st.sampled_from([NOW - 2 * AGES[-1]] * 12 + TIMES + [None] * 4)),
        "first_seen_at": draw(st.none() | times),
    }
    if kind is Kind.JOB:
        return Candidate(**shared, experiment_id="", uri=None, location=None)
    anywhere = st.sampled_from(["1", "10", "2", "3"] * 4 + ["0", "4", "5", "6"])
    experiment = entity if kind is Kind.EXPERIMENT else draw(anywhere)
    own = ["6h", "1d", "40d", "0s", "soon", ""]
    shared |= {
        "experiment_id": experiment,
        "location": LOCATIONS[experiment],
        "experiment": NAMES.get(experiment),
        "own_age": draw(st.sampled_from([None] * 18 + own)),
    }
    if kind is Kind.EXPERIMENT:
        nothing = [None, Contents()] * 3
        found = [Contents(live_runs=2), Contents(live_model="m-live"), Contents(guarding="judge")]
        return Candidate(**shared, uri=None, contents=draw(st.sampled_from(nothing + found)))
    tail = f"{FOLDERS[kind]}{entity}/artifacts"
    canonical, elsewhere = f"{LOCATIONS[experiment]}/{tail}", f"/attic/{experiment}/{tail}"
    refused = ["", "mlruns/x", "/attic", f"/data/mlruns/{tail}", f"ftp://x/{tail}"]
    archive = [None] * 3 + [elsewhere] * 3 + refused[1:]
    return Candidate(
        **shared,
        uri=draw(st.sampled_from([canonical] * 8 + [None, elsewhere] * 4 + refused)),
        archive_uri=draw(st.sampled_from(archive)) if kind is Kind.TRACE else None,
        is_running=draw(st.sampled_from([False] * 5 + [True])) if kind is Kind.RUN else False,
        last_active_at=draw(st.none() | times) if kind is Kind.RUN else None,
        feeds=draw(st.sampled_from([()] * 5 + [("m-live",)])) if kind is Kind.RUN else (),
    )


@st.composite
def holds(draw: st.DrawFn, found: list[Candidate]) -> tuple[Hold, Place | None]:
    """A hold on or near one of the candidates, or on its tree, with the place of its URI."""
    each = draw(st.sampled_from(found))
    sources = [f"runs:/{each.id}/model", f"models:/{each.id}"] if len(each.id) >= 32 else []
    hold = Hold(
        reason=draw(
            st.sampled_from([KeepReason.HELD, KeepReason.REGISTERED, KeepReason.SHARED]),
        ),
        because="somebody needs it",
        entity_id=draw(st.sampled_from([None, None, each.id, f"experiment/{each.experiment_id}"])),
        uri=draw(st.sampled_from([None, None, *sources])),
        reach=draw(st.sampled_from(Reach)),
        until=draw(st.sampled_from([None, NOW - TICK, NOW, NOW + TICK])),
    )
    site = SITES.get(each.location or "")
    if not isinstance(site, Site) or hold.uri is not None:
        return hold, None
    if each.kind is Kind.EXPERIMENT:
        return hold, site.true
    if each.kind is Kind.JOB:
        return hold, None
    names = entity_names(each.kind, each.id)
    homes = [site.true, below(ATTIC, each.experiment_id)] if each.archive_uri else [site.true]
    tree = below(draw(st.sampled_from(homes)), *names)
    up = tree.path.removesuffix("artifacts/")
    path = draw(st.sampled_from([tree.path, up, up + "artifacts0/", tree.path + "x/", "/", None]))
    if path is None:
        return hold, None
    scheme = draw(st.sampled_from(["s3", "s3a"])) if tree.scheme == "s3" else tree.scheme
    return hold, Place(scheme, tree.authority, path)


@st.composite
def roots(draw: st.DrawFn, place: Place) -> Root:
    """What is known of a storage root: often that it is the right one, and healthy."""
    if draw(st.integers(0, 2)):
        return Root(place, Probe(is_there=True, is_named_found=True))
    return Root(
        place,
        Probe(
            is_there=draw(st.booleans()),
            identity=draw(st.sampled_from([None, "disk", "other"])),
            is_named_found=draw(st.booleans()),
            problem=draw(st.sampled_from([None, None, "read-only"])),
        ),
        remembered_identity=draw(st.sampled_from([None, "disk"])),
        is_accepted=draw(st.booleans()),
        failures=draw(st.integers(0, 4)),
        error=draw(st.sampled_from([None, "denied"])),
        is_proved=draw(st.booleans()),
        backlog=draw(st.integers(0, 3)),
    )


policies = st.builds(
    Policy,
    older_than=st.sampled_from(AGES),
    runs_of_live_models=st.sampled_from(RunsOfLiveModels),
    ages=st.lists(
        st.tuples(st.sampled_from(sorted(PATTERNS)), st.sampled_from(AGES)), max_size=2
    ).map(tuple),
    shortest=st.sampled_from([None, None, *AGES]),
    exclude=st.sampled_from([()] * 6 + [(each,) for each in PATTERNS]),
)


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Any]:
    """All that a page is planned by; holds are not yet an index, nor locations trees."""
    are_members = draw(st.sampled_from([False] * 4 + [True]))
    known = MEMBERS if are_members else IDS
    entities = draw(st.lists(st.sampled_from(known), min_size=1, max_size=8, unique=True))
    found = [draw(candidates(entity)) for entity in entities]
    return {
        "candidates": found,
        "holds": draw(st.lists(holds(found), max_size=3)),
        "sites": SITES,
        "roots": {place: draw(roots(place)) for place in sorted(ROOTS, key=str)},
        "policy": draw(policies),
        "scope": SCOPE,
        "gate": Gate(max_backlog=2, collect_absent=draw(st.booleans())),
        "now": NOW,
        "are_members": are_members,
    }
