"""What an operator should know of a container in Azure: versions, policies, permissions, credentials.

It must never change anything, nor show a credential.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gcd.artifacts.azure_session import Address, Session
from gcd.artifacts.azure_settings import ACTION, KEEPS_VERSIONS, Settings
from gcd.artifacts.base import Remark
from gcd.artifacts.buckets import Denied
from gcd.errors import ArtifactError


def remarks(
    settings: Settings, address: Address, session: Session, *, all_versions: bool
) -> Iterator[Remark]:
    """All that is to be said of a container; what cannot be found out is said too."""
    yield Remark(f"credentials from {session.credentials_source(address)}")
    if session.verify is False:
        yield Remark("certificates are not checked", "unset MLFLOW_TRACKING_INSECURE_TLS")
    looks: list[Callable[[], Iterator[Remark]]] = [
        lambda: _folders(settings),
        lambda: _versions(settings, all_versions=all_versions),
        lambda: _deleted(settings),
        lambda: _holds(settings),
    ]
    for look in looks:
        try:
            yield from look()
        except Denied as error:
            yield Remark(error.message, error.hint)
        except ArtifactError as error:
            yield Remark(error.message, error.hint or "try again")


def _folders(settings: Settings) -> Iterator[Remark]:
    if settings.has_folders:
        yield Remark("hierarchical namespace: empty folders go too")
    elif settings.has_folders is None:
        yield Remark(
            "it is unknown whether the account has a hierarchical namespace: "
            "empty folders around deleted trees would stay"
        )


def _versions(settings: Settings, *, all_versions: bool) -> Iterator[Remark]:
    if not settings.keeps_versions:
        return
    if all_versions:
        yield Remark("versions are kept: every version is deleted")
    else:
        mend = (
            "see that the account has a lifecycle rule for versions, which cannot be looked at from "
            'here, or set artifacts.versions = "all"'
        )
        yield Remark(KEEPS_VERSIONS, mend)


def _deleted(settings: Settings) -> Iterator[Remark]:
    if settings.days_kept is None:
        yield Remark("it is unknown whether the account keeps deleted blobs", f"allow {ACTION}")
    elif settings.keeps_deleted:
        yield Remark(settings.keeps_deleted)


def _holds(settings: Settings) -> Iterator[Remark]:
    for policy in settings.holds():
        yield Remark(f"{policy} is on: blobs that it holds are deleted when it lets them go")
