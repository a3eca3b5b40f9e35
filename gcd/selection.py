"""What a person narrowed a collection to."""

from __future__ import annotations

from dataclasses import dataclass

from gcd.model import Candidate, Kind


@dataclass(frozen=True, slots=True)
class Selection:
    """The entities that were named by their ids; None where nothing of a kind was said."""

    runs: tuple[str, ...] | None = None
    logged_models: tuple[str, ...] | None = None
    experiments: tuple[str, ...] | None = None
    jobs: tuple[str, ...] | None = None
    with_jobs: bool = False
    workspaces: tuple[str, ...] | None = None

    @property
    def is_narrowed(self) -> bool:
        """Whether single entities were named: then only those are collected."""
        named = (self.runs, self.logged_models, self.experiments, self.jobs)
        return any(ids is not None for ids in named)

    def includes(self, candidate: Candidate) -> bool:
        """Whether a soft-deleted entity may be collected: it, or its deleted experiment, was named."""
        if not self.is_narrowed:
            return True
        ids = {
            Kind.RUN: self.runs,
            Kind.LOGGED_MODEL: self.logged_models,
            Kind.EXPERIMENT: self.experiments,
        }.get(candidate.kind)
        is_named = candidate.id in (ids or ())
        is_inside = candidate.is_in_deleted and candidate.experiment_id in (self.experiments or ())
        return is_named or is_inside
