"""What an account and a container in Azure say of themselves; each is asked once.

It must never take what the store does not say for a setting, nor a failure that passes for silence.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, Protocol, TypeVar

from azure.storage.blob import BlobServiceClient

from gcd.artifacts.azure_errors import FOLDER, NotAuthenticated
from gcd.errors import PermanentArtifactError

T = TypeVar("T")

READER = "the role Storage Blob Data Reader (a SAS token: l)"
ACTION = "Microsoft.Storage/storageAccounts/blobServices/read"
KEEPS_VERSIONS = (
    "the container keeps old versions: what is deleted frees space only by the account's lifecycle "
    'rules; artifacts.versions = "all" deletes every version'
)
SILENT = (PermanentArtifactError, NotAuthenticated)
"""What a store answers who may not be asked: a SAS token of one container is no key of the account."""


class Ask(Protocol):
    """Sends a request that needs a role; raises an ArtifactError."""

    def __call__(self, call: Callable[[], T], role: str, /) -> T: ...


class Settings:
    """Threads share it. Where nothing else is said a property raises an ArtifactError."""

    def __init__(self, container: str, service: BlobServiceClient, ask: Ask) -> None:
        self._service, self._ask = service, ask
        self._client = service.get_container_client(container)
        self._known: dict[str, Any] = {}
        self._lock = Lock()

    def _once(self, name: str, ask: Callable[[], Any]) -> Any:
        with self._lock:
            if name not in self._known:
                self._known[name] = ask()
            return self._known[name]

    # -- folders -----------------------------------------------------------------------------------

    @property
    def has_folders(self) -> bool | None:
        """Whether folders are real (a hierarchical namespace), None if the store does not say."""
        return self._once("folders", self._ask_folders)  # type: ignore[no-any-return]

    def _ask_folders(self) -> bool | None:
        try:
            found = self._ask(self._client.get_account_information, READER)
        except SILENT:
            return None
        answer = found.get("is_hns_enabled")
        return None if answer is None else str(answer).lower() == "true"

    def note(self, code: str) -> None:
        """A store that did not say that folders are real may say it by what it refuses."""
        if code in FOLDER:
            self._known["folders"] = True

    # -- what stays --------------------------------------------------------------------------------

    @property
    def days_kept(self) -> int | None:
        """Days that deleted blobs are kept for, 0 for none, None if the store does not say."""
        return self._once("days", self._ask_days)  # type: ignore[no-any-return]

    def _ask_days(self) -> int | None:
        try:
            found = self._ask(self._service.get_service_properties, ACTION)
        except SILENT:
            return None
        policy = found["delete_retention_policy"]
        return int(policy.days or 0) if policy.enabled else 0

    @property
    def keeps_versions(self) -> bool:
        """Whether the first blob has a version, which it has only where versions are kept."""
        return self._once("versions", self._ask_versions)  # type: ignore[no-any-return]

    def _ask_versions(self) -> bool:
        if self._known.get("folders"):
            return False  # they have none
        try:
            return bool(self._ask(self._first_version, READER))
        except SILENT:
            return False

    def _first_version(self) -> str | None:
        blobs = self._client.list_blobs(include=["versions"], results_per_page=1)
        return next((blob.version_id for blob in next(blobs.by_page())), None)

    @property
    def keeps(self) -> str | None:
        """That old versions or deleted blobs stay, where they do."""
        return KEEPS_VERSIONS if self.keeps_versions else self.keeps_deleted

    @property
    def keeps_deleted(self) -> str | None:
        """That deleted blobs stay for some days, where they do."""
        if not self.days_kept:
            return None
        return f"the account keeps what is deleted for {self.days_kept} days, and its space with it"

    def holds(self) -> list[str]:
        """Which policies hold the container's blobs. Raises an ArtifactError."""
        found: Any = self._ask(self._client.get_container_properties, READER)
        policies = {
            "an immutability policy": found.has_immutability_policy,
            "a legal hold": found.has_legal_hold,
            "immutability of versions": found.immutable_storage_with_versioning_enabled,
        }
        return [name for name, is_set in policies.items() if is_set]
