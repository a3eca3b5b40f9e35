"""The words of the command line: what each keep reason means and what changes it; sizes and times.

It must never decide anything, or print.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from gcd.model import KeepReason, Kind, Result

ALREADY_EMPTY = "already empty although the database names files in it"

REASONS: Mapping[KeepReason, tuple[str, str]] = {
    KeepReason.TOO_YOUNG: (
        "deleted too recently",
        "--older-than sets the age; 0s collects at once, as `mlflow gc` does",
    ),
    KeepReason.HELD: ("held by a tag or by an operator", "remove the tag gcd.hold or the hold"),
    KeepReason.REGISTERED: ("a model version points into it", "delete the model version"),
    KeepReason.SHARED: (
        "another entity's files equal, contain or lie inside its tree",
        "`gcd explain ID` names it",
    ),
    KeepReason.FEEDS_LIVE_MODEL: (
        "its metrics belong to a logged model that stays",
        'retention.runs_of_live_models = "collect_run" or "collect_both" collects it',
    ),
    KeepReason.UNDATED: (
        "MLflow left no deletion time",
        "it ages from when gcd first saw it; --older-than 0s collects at once",
    ),
    KeepReason.FROM_THE_FUTURE: ("deleted after the database's now", "check the servers' clocks"),
    KeepReason.STILL_RUNNING: (
        "status RUNNING and active within a day",
        "stop the client that logs to it, or wait a day",
    ),
    KeepReason.HAS_LIVE_CHILDREN: (
        "something in the experiment is live or kept",
        "`gcd explain ID` names it",
    ),
    KeepReason.IN_USE: (
        "a gateway guardrail needs its scorer",
        "delete the guardrail",
    ),
    KeepReason.UNSAFE_TARGET: (
        "its artifact URI is not where gcd may delete",
        "artifacts.roots allows more places",
    ),
    KeepReason.NO_BACKEND: (
        "nobody here can delete its files",
        "install the extra, or give --artifacts-destination",
    ),
    KeepReason.FOREIGN_ROOT: (
        "its storage root belongs to another database",
        "`gcd doctor --accept-root URI` transfers the root to this database",
    ),
    KeepReason.UNREACHABLE: (
        "no evidence that its storage root, or where its experiment logs, is the right place",
        "mount it, or `gcd doctor --accept-root URI`; `gcd explain ID` says more",
    ),
    KeepReason.ROOT_UNHEALTHY: (
        "files below its storage root cannot be deleted now",
        "`gcd doctor` says why",
    ),
    KeepReason.DEFAULT_EXPERIMENT: ("MLflow's default experiment", "nothing to do"),
    KeepReason.EXCLUDED: ("its experiment is excluded", "retention.exclude lists the patterns"),
    KeepReason.OVER_QUOTA: (
        "more than this cycle's quota",
        "the next cycle goes on; --limit and [quota] set it",
    ),
    KeepReason.RESTORED: ("restored or deleted again meanwhile", "nothing to do"),
    KeepReason.UNKNOWN_REFERENCE: (
        "a table that gcd does not know refers to it",
        "`gcd doctor` names the table; purge.harmless lists those that may be ignored",
    ),
}

NOUNS: Mapping[Kind, str] = {
    Kind.RUN: "run",
    Kind.LOGGED_MODEL: "logged model",
    Kind.EXPERIMENT: "experiment",
    Kind.TRACE: "trace",
    Kind.JOB: "job",
}

RESULTS: Mapping[Result, str] = {
    Result.SWEPT: "swept",
    Result.DEFERRED: "deferred: tried again later",
    Result.LOCKED: "locked by the store",
    Result.STUCK: "stuck until a person acts",
    Result.PARKED: "parked: something live is there again",
}


def size(count: int) -> str:
    """Bytes for people, in binary units."""
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1024
    raise AssertionError("unreachable")


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 run", "1,204 runs", "2 entities"."""
    many = noun.removesuffix("y") + "ies" if noun.endswith("y") else noun + "s"
    return f"{count:,} {noun if count == 1 else many}"


def noun(kind: Kind) -> str:
    """What a kind of entity is called."""
    return NOUNS[kind]


def amounts(counts: Mapping[Kind, int]) -> str:
    """How many of each kind: "3 runs, 1 experiment"; "nothing" for none."""
    parts = [counted(counts[kind], noun(kind)) for kind in NOUNS if counts.get(kind)]
    return ", ".join(parts) or "nothing"


def moment(at: datetime) -> str:
    """A time for people, in UTC."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
