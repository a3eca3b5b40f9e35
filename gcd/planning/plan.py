"""The plan: what of a page of candidates is collected, and why the rest is kept.

It must never have a second way to decide: `plan`, `explain`, the prompt and the cycle all call this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from gcd.errors import BackendError, GcdError, UnsafeTarget
from gcd.model import Candidate, Claim, KeepReason, Kind, Place, Root, Target
from gcd.planning.gate import Gate, check_root
from gcd.planning.guard import Scope, Site, make_targets
from gcd.planning.holds import HoldIndex
from gcd.planning.ownership import check_claim
from gcd.planning.policy import Keep, Policy, judge, judge_member

PRECEDENCE = (
    KeepReason.DEFAULT_EXPERIMENT,
    KeepReason.EXCLUDED,
    KeepReason.HELD,
    KeepReason.REGISTERED,
    KeepReason.IN_USE,
    KeepReason.SHARED,
    KeepReason.FEEDS_LIVE_MODEL,
    KeepReason.STILL_RUNNING,
    KeepReason.UNDATED,
    KeepReason.FROM_THE_FUTURE,
    KeepReason.TOO_YOUNG,
    KeepReason.HAS_LIVE_CHILDREN,
    KeepReason.UNSAFE_TARGET,
    KeepReason.NO_BACKEND,
    KeepReason.FOREIGN_ROOT,
    KeepReason.UNREACHABLE,
    KeepReason.ROOT_UNHEALTHY,
    KeepReason.UNKNOWN_REFERENCE,
    KeepReason.OVER_QUOTA,
    KeepReason.RESTORED,
)
"""The order in which the reasons of one candidate are told: what people decided comes first."""


UNKNOWN_ROOT = "nothing is known of its storage root"


@dataclass(frozen=True, slots=True)
class Decision:
    """A candidate with its reasons to be kept, most telling first; none: it is collected."""

    candidate: Candidate
    keep: tuple[Keep, ...]
    targets: tuple[Target, ...] = ()
    witness: str | None = None
    """What says in the database that there are files in its trees, where that was looked for."""
    empty: tuple[Target, ...] = ()
    """Trees that are already empty although the database names files in them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A page of candidates, each either collected or kept."""

    collect: tuple[Decision, ...]
    keep: tuple[Decision, ...]
    members: Mapping[str, Mapping[Kind, int]] = field(default_factory=dict)
    """How many logged models and traces go with each experiment, by its id."""
    first: tuple[str, ...] = ()
    """Active logged models that go with their experiments, before the runs of the next page."""

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
        return replace(self, collect=collect, keep=self.keep + kept)

    def with_looks(
        self, witnesses: Mapping[str, str], empty: Mapping[str, Sequence[Target]]
    ) -> Plan:
        """The plan with what the database says of files, and those trees that have none, by id."""
        if not witnesses:
            return self
        collect = (
            replace(
                d, witness=witnesses.get(d.candidate.id), empty=tuple(empty.get(d.candidate.id, ()))
            )
            for d in self.collect
        )
        return replace(self, collect=tuple(collect))

    def with_reasons(self, extra: Mapping[str, Keep]) -> Plan:
        """The same, and what is kept anyway has the further reason too."""
        told = tuple(
            replace(each, keep=ranked((*each.keep, extra[each.candidate.id])))
            if each.candidate.id in extra
            else each
            for each in self.keep
        )
        return replace(self, keep=told).without(extra)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known when a page is decided on, as of `now`."""

    holds: HoldIndex
    targets: Mapping[str, tuple[Target, ...] | Keep]
    """Each candidate's trees by its id, or why it has none that may be deleted; see `locate`."""
    roots: Mapping[Place, Root]
    """The storage root of each of those trees."""
    policy: Policy
    gate: Gate
    now: datetime
    claims: Mapping[Target, Claim] = field(default_factory=dict)
    """Whose the place of each of those trees is."""
    are_members: bool = False
    """The candidates go with their experiments, whose state was judged instead."""


def make_plan(candidates: Iterable[Candidate], facts: Facts) -> Plan:
    """Decide on a page of candidates, each by itself; their order stays."""
    decisions = [decide(candidate, facts) for candidate in candidates]
    return Plan(
        collect=tuple(decision for decision in decisions if not decision.keep),
        keep=tuple(decision for decision in decisions if decision.keep),
    )


def decide(candidate: Candidate, facts: Facts) -> Decision:
    """All that speaks against collecting one candidate, and its trees."""
    judged = judge_member if facts.are_members else judge
    keeps = list(judged(candidate, facts.policy, facts.now))
    held = facts.holds.on_candidate(candidate)
    if held is not None:
        keeps.append(Keep(held.reason, held.because))
    targets = facts.targets[candidate.id]
    if isinstance(targets, Keep):
        return Decision(candidate, ranked([*keeps, targets]))
    keeps += [keep for target in targets for keep in against(candidate, target, facts)]
    return Decision(candidate, ranked(keeps), targets)


def against(candidate: Candidate, target: Target, facts: Facts) -> Iterable[Keep]:
    """What speaks against deleting one tree: something live there, or its storage root."""
    claim = facts.claims.get(target)
    foreign = check_claim(claim) if claim else None
    if candidate.kind is Kind.EXPERIMENT:
        # Its folder is only removed when it is empty: nothing in it can be lost.
        yield from (foreign,) if foreign else ()
        return
    over = facts.holds.over(target.place)
    if over is not None:
        yield Keep(over.reason, over.because)
    root = facts.roots.get(target.root)
    unfit = check_root(root, facts.gate) if root else Keep(KeepReason.UNREACHABLE, UNKNOWN_ROOT)
    if unfit is not None:
        yield unfit
    if foreign is not None and (unfit is None or foreign.reason is KeepReason.FOREIGN_ROOT):
        yield foreign  # that a store does not answer is said once


def locate(
    candidate: Candidate, sites: Mapping[str, Site | Keep], scope: Scope
) -> tuple[Target, ...] | Keep:
    """The candidate's trees, or why it has none that may be deleted.

    `sites` has each recorded artifact location of an experiment, or why it cannot be used.
    """
    if candidate.kind is Kind.JOB:
        return ()
    if candidate.location is None:
        return Keep(KeepReason.UNSAFE_TARGET, "its experiment has no artifact location")
    site = sites[candidate.location]
    if isinstance(site, Keep):
        return site
    try:
        return make_targets(candidate, site, scope)
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
