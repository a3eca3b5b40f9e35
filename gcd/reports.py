"""The report of a cycle for programs: what `gcd gc --json` prints and hooks are told.

It must never leave a number out because it is zero: programs need not ask what is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gcd.model import Kind, Report


def by_kind(counts: Mapping[Kind, int]) -> dict[str, int]:
    """A number for each kind of entity, zeros included: programs need not ask what is there."""
    return {kind.value: counts.get(kind, 0) for kind in Kind}


def report_json(report: Report) -> dict[str, Any]:
    """A report as a JSON object."""
    return {
        "cycle": report.cycle,
        "state": report.state,
        "started_at": report.started_at.isoformat(),
        "ended_at": report.ended_at.isoformat(),
        "candidates": report.candidates,
        "purged": by_kind(report.purged),
        "rows": report.rows,
        "results": {result.value: count for result, count in report.results.items()},
        "already_empty": report.already_empty,
        "stuck": report.stuck,
        "objects": report.usage.objects,
        "bytes": report.usage.bytes,
        "kept": {reason.value: count for reason, count in report.kept.items()},
        "notes": list(report.notes),
    }
