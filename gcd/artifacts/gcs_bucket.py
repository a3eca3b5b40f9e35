"""The requests that gcd sends to one bucket of Google Cloud Storage: listings, deletions, settings.

It must never change a key on its way, nor take a reply that is no listing for an empty one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from threading import Lock, Semaphore
from typing import Any, TypeVar

from google.api_core.exceptions import PreconditionFailed, RequestRangeNotSatisfiable
from google.cloud.exceptions import NotFound
from google.cloud.storage import Blob
from google.cloud.storage.batch import Batch

from gcd.artifacts.buckets import Bucket, Denied, Item, NotOffered
from gcd.artifacts.gcs_errors import CREDENTIALS, FOREIGN, of_reply, translated
from gcd.artifacts.gcs_session import TIMEOUT
from gcd.artifacts.pace import Pace
from gcd.durations import format_duration
from gcd.errors import (
    ArtifactError,
    LockedArtifactError,
    PermanentArtifactError,
    TransientArtifactError,
)

T = TypeVar("T")

LIST, GET, DELETE = "storage.objects.list", "storage.objects.get", "storage.objects.delete"
MAKE, LOOK = "storage.objects.create", "storage.buckets.get"
ONCE: Mapping[str, Any] = {"retry": None, "timeout": TIMEOUT}
"""The SDK never tries again by itself: gcd does."""
PAGE = 1000
FIELDS = "kind,nextPageToken,items(name,generation,size,timeCreated)"
KEEPS_VERSIONS = (
    "the bucket keeps old versions: what is deleted frees space only by its own lifecycle rules; "
    'artifacts.versions = "all" deletes every version'
)


class GCSBucket(Bucket):
    """One bucket. Threads share it."""

    batch = 100
    """The most that the store takes in one request."""

    def __init__(
        self,
        name: str,
        client: Any,
        identity: str,
        *,
        all_versions: bool,
        lack: str = "",
        slots: Semaphore,
        pace: Pace,
    ) -> None:
        super().__init__(name, identity, slots=slots, pace=pace)
        self.all_versions = all_versions
        """Whether each generation is deleted for good; else the live one, as MLflow deletes it."""
        self._lack = lack
        self._client = client
        self._bucket = client.bucket(name)
        self._settings: Any = None
        self._is_asked = False
        self._lock = Lock()

    # -- requests ----------------------------------------------------------------------------------

    def _call(self, call: Callable[[], T], permission: str, where: str = "") -> T:
        """One call of the SDK. Raises an ArtifactError."""
        try:
            return call()
        except FOREIGN as error:
            found = translated(error, where or f"bucket {self.name}", permission)
            if self._lack and found.hint == CREDENTIALS:
                found.hint = f"{CREDENTIALS}; none were found: {self._lack}"
            raise found from error

    # -- listings ----------------------------------------------------------------------------------

    def pages(
        self, prefix: str, *, all_versions: bool, limit: int | None = None
    ) -> Iterator[list[Item]]:
        """Everything below a prefix, page by page, keys as the store has them."""
        token: str | None = None
        seen = set()
        while True:
            page, token = self._page(prefix, token, all_versions, limit or PAGE)
            yield page
            if not token:
                return
            if token in seen:
                raise TransientArtifactError(f"bucket {self.name}: a listing that never ends")
            seen.add(token)

    def _page(
        self, prefix: str, token: str | None, all_versions: bool, size: int
    ) -> tuple[list[Item], str | None]:
        """One page, and where the next one begins."""

        def ask() -> tuple[list[Item], str | None]:
            found = self._client.list_blobs(
                self._bucket,
                prefix=prefix,
                page_token=token,
                page_size=size,
                versions=all_versions or None,
                fields=FIELDS,
                **ONCE,
            )
            reply = next(found.pages).raw_page
            if reply["kind"] != "storage#objects":
                raise ValueError(reply["kind"])  # what a proxy answers is no empty listing
            items = [self._item(each, prefix) for each in reply.get("items", ())]
            return items, reply.get("nextPageToken")

        return self.again(lambda: self._call(ask, LIST))

    def _item(self, found: Mapping[str, Any], prefix: str) -> Item:
        key = self.checked(found["name"], prefix)
        made_at = datetime.fromisoformat(found["timeCreated"])
        return Item(key, str(found["generation"]), int(found["size"]), made_at)

    # -- deletions ---------------------------------------------------------------------------------

    def delete(self, items: Sequence[Item]) -> Mapping[Item, ArtifactError]:
        """Delete with one request: what the reply says was not deleted, and why."""
        replies = self.counted(lambda: self._call(lambda: self._sent(items), DELETE))
        return {
            item: of_reply(reply, self._where(item), DELETE)
            for item, reply in zip(items, replies, strict=True)
            if not (200 <= reply.status_code < 300 or reply.status_code == 404)
        }

    def _sent(self, items: Sequence[Item]) -> list[Any]:
        """The replies to a batch, as many as items and in their order; ValueError where they are not.

        The batch is nobody else's: the client's own stack of them is not used.
        """
        batch = Batch(self._client, raise_exception=False)
        for item in items:
            batch.api_request(
                method="DELETE",
                path=self._path(item),
                query_params=self._exactly(item, "generation", "ifGenerationMatch"),
                expect_json=False,
                timeout=TIMEOUT,
            )
        try:
            return list(batch.finish(raise_exception=False))
        except NotFound as error:  # no object: the way to delete many
            raise NotOffered(f"bucket {self.name}: no batches at this endpoint") from error

    def _path(self, item: Item) -> str:
        try:
            return str(Blob.path_helper(self._bucket.path, item.key))
        except UnicodeEncodeError as error:
            raise PermanentArtifactError(f"{self._where(item)}: no valid Unicode") from error

    def _exactly(self, item: Item, for_good: str, if_it_is: str) -> dict[str, Any]:
        """That what was listed is meant, and nothing that was put in its place since.

        A generation that is named goes for good. A condition on it leaves an old version, where the
        bucket keeps those, as a deletion by MLflow does.
        """
        return {for_good if self.all_versions else if_it_is: int(item.version or 0)}

    def delete_one(self, item: Item) -> ArtifactError | None:
        """Delete one by itself; why the store did not."""

        def send() -> None:
            exactly = self._exactly(item, "generation", "if_generation_match")
            try:
                self._bucket.delete_blob(item.key, **exactly, **ONCE)
            except NotFound:
                return  # gone, as the next listing will show

        try:
            self.counted(lambda: self._call(send, DELETE, self._where(item)))
        except (PermanentArtifactError, LockedArtifactError) as error:
            return error
        return None

    def _where(self, item: Item) -> str:
        return f"bucket {self.name}, key {item.key!r}"

    def explained(self, item: Item, error: ArtifactError) -> ArtifactError:
        """Until when the store holds an object, where its refusal does not say that."""
        if not isinstance(error, LockedArtifactError) or error.until is not None:
            return error
        try:
            with self.slots:
                blob = self.counted(lambda: self._call(lambda: self._look_at(item), GET))
        except ArtifactError:
            return error
        if blob is None:
            return error
        if blob.temporary_hold or blob.event_based_hold:
            hint = "release the hold, then `gcd retry`"
            return LockedArtifactError(f"{self._where(item)}: it is under a hold", hint=hint)
        until = _latest(blob)
        if until is None:
            return error
        return LockedArtifactError(f"{self._where(item)}: retained until {until}", until=until)

    def _look_at(self, item: Item) -> Any:
        return self._bucket.get_blob(item.key, generation=int(item.version or 0), **ONCE)

    # -- single objects ----------------------------------------------------------------------------

    def read(self, key: str, most: int) -> bytes | None:
        """The first bytes of an object."""

        def ask() -> bytes | None:
            try:
                blob = self._bucket.blob(key)
                data = blob.download_as_bytes(end=most - 1, checksum=None, **ONCE)
                return bytes(data[:most])  # not every emulator knows ranges
            except NotFound:
                return None
            except RequestRangeNotSatisfiable:
                return b""  # it is empty

        return self.again(lambda: self._call(ask, GET, f"bucket {self.name}, key {key!r}"))

    def write(self, key: str, data: bytes, *, is_new: bool) -> bool:
        """Write an object; with `is_new` only where there is none with this key."""
        condition = {"if_generation_match": 0} if is_new else {}

        def send() -> bool:
            try:
                self._bucket.blob(key).upload_from_string(
                    data, content_type="application/json", **condition, **ONCE
                )
            except PreconditionFailed:
                return False
            return True

        return self.again(lambda: self._call(send, MAKE, f"bucket {self.name}, key {key!r}"))

    # -- settings ----------------------------------------------------------------------------------

    @property
    def settings(self) -> Any:
        """The bucket's own settings, None where they may not be looked at; asked once."""
        with self._lock:
            if not self._is_asked:
                try:
                    self._settings = self.looked_at()
                except (Denied, NotOffered):
                    self._settings = None
                self._is_asked = True
            return self._settings

    def looked_at(self) -> Any:
        """The bucket's settings now. Raises an ArtifactError."""
        return self.again(
            lambda: self._call(lambda: self._client.get_bucket(self.name, **ONCE), LOOK)
        )

    def lacking(self, permissions: Sequence[str]) -> list[str]:
        """Those permissions that the credentials do not have for the whole bucket."""
        granted = self.again(
            lambda: self._call(lambda: self._bucket.test_iam_permissions(permissions, **ONCE), LOOK)
        )
        return [each for each in permissions if each not in granted]

    @property
    def kept_for(self) -> timedelta:
        """How long deleted objects are kept, as far as the settings are known."""
        policy = self.settings.soft_delete_policy if self.settings else None
        return timedelta(seconds=int((policy and policy.retention_duration_seconds) or 0))

    @property
    def keeps(self) -> str | None:
        """That old versions stay, or deleted objects for a while, where they do."""
        told = []
        if self.settings and self.settings.versioning_enabled and not self.all_versions:
            told.append(KEEPS_VERSIONS)
        if self.kept_for:
            told.append(
                f"the bucket keeps deleted objects for {format_duration(self.kept_for)} (soft delete): "
                "their space is freed only then"
            )
        return "; ".join(told) or None


def _latest(blob: Any) -> datetime | None:
    """When the last of what retains an object ends, as far as it says."""
    own = blob.retention.retain_until_time if blob.retention else None
    ends = [each for each in (blob.retention_expiration_time, own) if isinstance(each, datetime)]
    return max(ends, default=None)
