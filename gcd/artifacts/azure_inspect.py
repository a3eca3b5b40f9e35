"""What an operator should know of a container in Azure: versions, policies, permissions, credentials.

It must never change anything, nor show a credential.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gcd.artifacts.azure_bucket import KEEPS_VERSIONS, SETTINGS, AzureContainer
from gcd.artifacts.azure_session import Address, Session
from gcd.artifacts.base import Remark
from gcd.artifacts.buckets import Denied
from gcd.errors import ArtifactError


def remarks(
    bucket: AzureContainer, address: Address, session: Session, *, all_versions: bool
) -> Iterator[Remark]:
    """All that is to be said of a container; what cannot be found out is said too."""
    yield Remark(f"credentials from {session.credentials_source(address)}")
    if session.verify is False:
        yield Remark("certificates are not checked", "unset MLFLOW_TRACKING_INSECURE_TLS")
    looks: list[Callable[[], Iterator[Remark]]] = [
        lambda: _folders(bucket),
        lambda: _versions(bucket, all_versions=all_versions),
        lambda: _deleted(bucket),
        lambda: _holds(bucket),
    ]
    for look in looks:
        try:
            yield from look()
        except Denied as error:
            yield Remark(error.message, error.hint)
        except ArtifactError as error:
            yield Remark(error.message, error.hint or "try again")


def _folders(bucket: AzureContainer) -> Iterator[Remark]:
    if bucket.has_folders:
        yield Remark("hierarchical namespace: empty folders go too")
    elif bucket.has_folders is None:
        yield Remark(
            "it is unknown whether the account has a hierarchical namespace: "
            "empty folders around deleted trees would stay"
        )


def _versions(bucket: AzureContainer, *, all_versions: bool) -> Iterator[Remark]:
    if not bucket.keeps_versions:
        return
    if all_versions:
        yield Remark("versions are kept: every version is deleted")
    else:
        mend = (
            "see that the account has a lifecycle rule for versions, which cannot be looked at from "
            'here, or set artifacts.versions = "all"'
        )
        yield Remark(KEEPS_VERSIONS, mend)


def _deleted(bucket: AzureContainer) -> Iterator[Remark]:
    if bucket.days_kept is None:
        yield Remark("it is unknown whether the account keeps deleted blobs", f"allow {SETTINGS}")
    elif bucket.keeps_deleted:
        yield Remark(bucket.keeps_deleted)


def _holds(bucket: AzureContainer) -> Iterator[Remark]:
    for policy in bucket.holds():
        yield Remark(f"{policy} is on: blobs that it holds are deleted when it lets them go")
