"""The plan: what of a page of candidates is collected, and why the rest is kept.

It must never have a second way to decide: `plan`, `explain`, the prompt and the cycle all call this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from gcd.errors import BackendError, GcdError, UnsafeTarget
from gcd.model import Candidate, KeepReason, Place, Root, Target
from gcd.planning.gate import Gate, check_root
from gcd.planning.guard import Scope, Site, make_target
from gcd.planning.holds import HoldIndex
from gcd.planning.policy import Keep, Policy, judge

PRECEDENCE = (
    KeepReason.HELD,
    KeepReason.REGISTERED,
    KeepReason.SHARED,
    KeepReason.FEEDS_LIVE_MODEL,
    KeepReason.STILL_RUNNING,
    KeepReason.UNDATED,
    KeepReason.FROM_THE_FUTURE,
    KeepReason.TOO_YOUNG,
    KeepReason.UNSAFE_TARGET,
    KeepReason.NO_BACKEND,
    KeepReason.UNREACHABLE,
    KeepReason.ROOT_UNHEALTHY,
    KeepReason.UNKNOWN_REFERENCE,
    KeepReason.RESTORED,
)
"""The order in which the reasons of one candidate are told: what people decided comes first."""


UNKNOWN_ROOT = "nothing is known of its storage root"


@dataclass(frozen=True, slots=True)
class Decision:
    """A candidate with its reasons to be kept, most telling first; none: it is collected."""

    candidate: Candidate
    keep: tuple[Keep, ...]
    target: Target | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A page of candidates, each either collected or kept."""

    collect: tuple[Decision, ...]
    keep: tuple[Decision, ...]

    def without(self, extra: Mapping[str, Keep]) -> Plan:
        """The plan with candidates kept, by id, that a later look speaks against."""
        if not extra:
            return self
        kept = tuple(
            replace(decision, keep=(extra[decision.candidate.id],))
            for decision in self.collect
            if decision.candidate.id in extra
        )
        collect = tuple(each for each in self.collect if each.candidate.id not in extra)
        return Plan(collect, self.keep + kept)


def make_plan(
    candidates: Iterable[Candidate],
    holds: HoldIndex,
    sites: Mapping[str, Site | Keep],
    roots: Mapping[Place, Root],
    policy: Policy,
    scope: Scope,
    gate: Gate,
    now: datetime,
) -> Plan:
    """Decide on a page of candidates, each by itself; their order stays.

    `sites` has each recorded artifact location of an experiment, or why it cannot be used.
    """
    decisions = [
        decide(candidate, holds, sites, roots, policy, scope, gate, now) for candidate in candidates
    ]
    return Plan(
        collect=tuple(decision for decision in decisions if not decision.keep),
        keep=tuple(decision for decision in decisions if decision.keep),
    )


def decide(
    candidate: Candidate,
    holds: HoldIndex,
    sites: Mapping[str, Site | Keep],
    roots: Mapping[Place, Root],
    policy: Policy,
    scope: Scope,
    gate: Gate,
    now: datetime,
) -> Decision:
    """All that speaks against collecting one candidate, and its tree."""
    keeps = list(judge(candidate, policy, now))
    held = holds.on_candidate(candidate)
    if held is not None:
        keeps.append(Keep(held.reason, held.because))
    target = locate(candidate, sites, scope)
    if isinstance(target, Keep):
        keeps.append(target)
        return Decision(candidate, ranked(keeps), None)
    over = holds.over(target.place)
    if over is not None:
        keeps.append(Keep(over.reason, over.because))
    root = roots.get(target.root)
    unfit = check_root(root, gate) if root else Keep(KeepReason.UNREACHABLE, UNKNOWN_ROOT)
    if unfit is not None:
        keeps.append(unfit)
    return Decision(candidate, ranked(keeps), target)


def locate(candidate: Candidate, sites: Mapping[str, Site | Keep], scope: Scope) -> Target | Keep:
    """The candidate's tree, or why it has none that may be deleted."""
    if candidate.location is None:
        return Keep(KeepReason.UNSAFE_TARGET, "its experiment has no artifact location")
    site = sites[candidate.location]
    if isinstance(site, Keep):
        return site
    try:
        return make_target(candidate, site, scope)
    except UnsafeTarget as error:
        return Keep(KeepReason.UNSAFE_TARGET, sentence(error))
    except BackendError as error:
        return Keep(KeepReason.NO_BACKEND, sentence(error))


def sentence(error: GcdError) -> str:
    """An error with its hint."""
    return f"{error.message}; {error.hint}" if error.hint else error.message


def ranked(keeps: Iterable[Keep]) -> tuple[Keep, ...]:
    """The reasons, each once, the most telling first."""
    return tuple(sorted(dict.fromkeys(keeps), key=lambda keep: PRECEDENCE.index(keep.reason)))
