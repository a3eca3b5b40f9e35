"""What an operator should know of a bucket of Google's: versions, rules, holds, permissions, credentials.

It must never change anything, nor show a credential.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from gcd.artifacts.base import Remark
from gcd.artifacts.buckets import NotOffered
from gcd.artifacts.gcs_bucket import DELETE, LIST, GCSBucket
from gcd.artifacts.gcs_errors import CREDENTIALS
from gcd.artifacts.gcs_session import EMULATOR, Session
from gcd.durations import format_duration
from gcd.errors import ArtifactError

EXPIRING = ("daysSinceNoncurrentTime", "numNewerVersions", "noncurrentTimeBefore")
"""Conditions of a lifecycle rule by which old versions go."""


def remarks(bucket: GCSBucket, session: Session) -> Iterator[Remark]:
    """All that is to be said of a bucket; what cannot be found out is said too."""
    yield _credentials(session)
    looks: list[Callable[[], Iterator[Remark]]] = [
        lambda: _settings(bucket),
        lambda: _permissions(bucket),
    ]
    for look in looks:
        try:
            yield from look()
        except NotOffered:
            continue  # the store has nothing of the kind
        except ArtifactError as error:
            yield Remark(error.message, error.hint or "try again")


def _credentials(session: Session) -> Remark:
    if emulator := session.environment.get(EMULATOR):
        return Remark(f"{EMULATOR} is set: no credentials are sent to {emulator}")
    if session.lack:
        return Remark(f"no credentials are found: {session.lack}", CREDENTIALS)
    return Remark(f"credentials from {session.source}")


def _permissions(bucket: GCSBucket) -> Iterator[Remark]:
    for each in bucket.lacking((LIST, DELETE)):
        yield Remark(f"the credentials lack {each} for the bucket", f"allow {each}")


def _settings(bucket: GCSBucket) -> Iterator[Remark]:
    found = bucket.looked_at()
    yield from _versions(bucket, found)
    if kept_for := bucket.kept_for:
        yield Remark(
            f"soft delete: what is deleted takes space for {format_duration(kept_for)} more"
        )
    if found.retention_period:
        age = format_duration(timedelta(seconds=int(found.retention_period)))
        yield Remark(f"retention policy: nothing goes before it is {age} old")
    if found.default_event_based_hold:
        yield Remark(
            "new objects are under an event-based hold: none of them can be deleted",
            "release the holds of what is to go",
        )
    if found.object_retention_mode:
        yield Remark("objects may be retained: what is goes when its retention ends")
    if found.hierarchical_namespace_enabled:
        yield Remark("hierarchical namespace: folders stay, empty, when what is in them is deleted")


def _versions(bucket: GCSBucket, found: Any) -> Iterator[Remark]:
    if not found.versioning_enabled:
        if bucket.all_versions:
            yield Remark("versioning is off: old versions from before are deleted too")
        return
    if bucket.all_versions:
        yield Remark("versioning is on: every version is deleted")
    elif any(_expires(rule) for rule in found.lifecycle_rules):
        yield Remark("versioning is on: old versions go by the bucket's lifecycle rules")
    else:
        yield Remark(
            "versioning is on, and no lifecycle rule expires old versions: no space is freed",
            'add a rule with daysSinceNoncurrentTime, or set artifacts.versions = "all"',
        )


def _expires(rule: Any) -> bool:
    """Whether a rule deletes old versions."""
    condition = rule.get("condition", {})
    is_deletion = rule.get("action", {}).get("type") == "Delete"
    is_of_old = any(condition.get(name) is not None for name in EXPIRING)
    return is_deletion and (is_of_old or condition.get("isLive") is False)
