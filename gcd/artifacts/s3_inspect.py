"""What an operator should know of a bucket: versions, rules, locks, permissions, credentials.

It must never change anything, nor show a credential.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from gcd.artifacts.base import Remark
from gcd.artifacts.buckets import Denied, NotOffered
from gcd.artifacts.s3_bucket import S3Bucket
from gcd.artifacts.s3_session import Session
from gcd.errors import ArtifactError


def remarks(
    bucket: S3Bucket, prefix: str, session: Session, *, all_versions: bool
) -> Iterator[Remark]:
    """All that is to be said of a bucket; what cannot be found out is said too."""
    yield _credentials(session)
    if not session.checks_tls:
        yield Remark("certificates are not checked", "unset MLFLOW_S3_IGNORE_TLS")
    looks: list[Callable[[], Iterator[Remark]]] = [
        lambda: _versions(bucket, all_versions=all_versions),
        lambda: _locks(bucket),
        lambda: _uploads(bucket, prefix),
    ]
    if all_versions:
        looks.append(lambda: _version_listing(bucket, prefix))
    for look in looks:
        try:
            yield from look()
        except NotOffered:
            continue  # the store has nothing of the kind
        except Denied as error:
            yield Remark(error.message, error.hint)
        except ArtifactError as error:
            yield Remark(error.message, error.hint or "try again")


def _credentials(session: Session) -> Remark:
    source = session.credentials_source()
    if source is None:
        hint = "give the credentials that MLflow uses: environment, profile or role"
        return Remark("no credentials are found", hint)
    return Remark(f"credentials from {source}")


def _versions(bucket: S3Bucket, *, all_versions: bool) -> Iterator[Remark]:
    state = bucket.versioning
    if not state:
        yield Remark("versioning is unknown", "allow s3:GetBucketVersioning")
    if state not in ("Enabled", "Suspended"):
        return
    if all_versions:
        yield Remark(f"versioning {state}: every version is deleted")
        return
    rules = bucket.setting("get_bucket_lifecycle_configuration")
    if _expires(rules):
        yield Remark(f"versioning {state}: old versions go by the bucket's lifecycle rules")
    else:
        yield Remark(
            f"versioning {state}, and no lifecycle rule expires old versions: no space is freed",
            'add NoncurrentVersionExpiration, or set artifacts.versions = "all"',
        )


def _expires(rules: dict[str, Any] | None) -> bool:
    """Whether a rule that is in effect expires old versions."""
    return any(
        rule.get("Status") == "Enabled" and "NoncurrentVersionExpiration" in rule
        for rule in (rules or {}).get("Rules", ())
    )


def _locks(bucket: S3Bucket) -> Iterator[Remark]:
    found = bucket.setting("get_object_lock_configuration") or {}
    if found.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled":
        yield Remark("Object Lock is on: versions that it holds are deleted when it lets them go")


def _uploads(bucket: S3Bucket, prefix: str) -> Iterator[Remark]:
    """Only whether unfinished uploads may be listed."""
    next(bucket.uploads(prefix), None)
    yield from ()


def _version_listing(bucket: S3Bucket, prefix: str) -> Iterator[Remark]:
    bucket.is_empty(prefix, all_versions=True)
    yield from ()
