"""The requests that gcd sends to one bucket: listings, deletions, uploads, settings.

It must never change a key on its way, nor take a reply that is no listing for an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from threading import Lock, Semaphore
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

from gcd.artifacts.pace import Pace
from gcd.artifacts.s3_errors import (
    FOREIGN,
    GONE,
    NotOffered,
    Refused,
    code_of,
    translated,
)
from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError

ATTEMPTS = 5
"""How often a request is sent that the store answers with a reason to try again."""
ACTIONS = {
    "list_objects_v2": "s3:ListBucket",
    "list_object_versions": "s3:ListBucketVersions",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "delete_objects": "s3:DeleteObject",
    "delete_object": "s3:DeleteObject",
    "get_bucket_versioning": "s3:GetBucketVersioning",
    "get_bucket_lifecycle_configuration": "s3:GetLifecycleConfiguration",
    "get_object_lock_configuration": "s3:GetBucketObjectLockConfiguration",
    "get_object_retention": "s3:GetObjectRetention",
    "get_object_legal_hold": "s3:GetObjectLegalHold",
}
LISTINGS = frozenset({"list_objects_v2", "list_object_versions", "list_multipart_uploads"})
UNSET = frozenset(
    {
        "NoSuchLifecycleConfiguration",
        "ObjectLockConfigurationNotFoundError",
        "NoSuchObjectLockConfiguration",
    }
)
"""Codes by which a store says that a bucket has no such setting."""


class Item(NamedTuple):
    """One object, or one of its versions or delete markers."""

    key: str
    version: str | None
    size: int
    changed_at: datetime | None
    is_marker: bool = False


class Failure(NamedTuple):
    """Why the store did not delete one key of many."""

    code: str
    message: str


class Bucket:
    """One bucket at one endpoint. Threads share it."""

    def __init__(
        self,
        name: str,
        client: Any,
        identity: str,
        *,
        owner: Mapping[str, str],
        slots: Semaphore,
        pace: Pace,
    ) -> None:
        self.name = name
        self.identity = identity
        self.slots = slots
        self.pace = pace
        self.takes_one_by_one = False
        """Whether the store knows no deletion of many keys."""
        self.tells_uploads = True
        self._client = client
        self._fixed = {"Bucket": name, **owner}
        self._versioning: str | None = None
        self._lock = Lock()

    # -- requests ----------------------------------------------------------------------------------

    def once(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Send one request, in a slot that the caller holds. Raises an ArtifactError."""
        try:
            reply = getattr(self._client, operation)(**self._fixed, **parameters)
        except FOREIGN as error:
            failure = translated(error, f"bucket {self.name}", ACTIONS[operation])
            self._count(failure)
            raise failure from error
        self.pace.succeeded()
        return dict(reply)

    def _count(self, failure: ArtifactError) -> None:
        if isinstance(failure, Refused):
            self.pace.throttled()
        if isinstance(failure, TransientArtifactError):
            self.pace.failed(failure.message)
        else:
            self.pace.succeeded()  # it answered

    def ask(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """A request that may be sent twice, tried again where that may help."""
        attempt = 0
        while True:
            self.pace.check()
            try:
                with self.slots:
                    reply = self.once(operation, **parameters)
                if operation in LISTINGS:
                    self._refuse_no_listing(reply)
                return reply
            except TransientArtifactError as error:
                attempt += 1
                # A hint means that something is to be mended: trying again at once mends nothing.
                if attempt >= (2 if error.hint else ATTEMPTS):
                    raise
                self.pace.pause(attempt)

    # -- listings ----------------------------------------------------------------------------------

    def pages(self, prefix: str, *, all_versions: bool, **limit: int) -> Iterator[list[Item]]:
        """Everything below a prefix, page by page, keys as the store has them."""
        if all_versions:
            try:
                yield from self._version_pages(prefix, **limit)
                return
            except NotOffered:
                pass  # a store without versions
        yield from self._object_pages(prefix, **limit)

    def is_empty(self, prefix: str, *, all_versions: bool) -> bool:
        """Whether nothing is below a prefix."""
        return not any(self.pages(prefix, all_versions=all_versions, MaxKeys=1))

    def _object_pages(self, prefix: str, **limit: int) -> Iterator[list[Item]]:
        more: dict[str, str] = {}
        while True:
            reply = self.ask("list_objects_v2", Prefix=prefix, **limit, **more)
            page = [self._item(each, prefix) for each in reply.get("Contents", ())]
            yield page
            if not reply["IsTruncated"]:
                return
            token = reply.get("NextContinuationToken")
            more = self._progress(more, {"ContinuationToken": token})

    def _version_pages(self, prefix: str, **limit: int) -> Iterator[list[Item]]:
        more: dict[str, str] = {}
        while True:
            reply = self.ask("list_object_versions", Prefix=prefix, **limit, **more)
            page = [self._item(each, prefix) for each in reply.get("Versions", ())]
            markers = reply.get("DeleteMarkers", ())
            page += [self._item(each, prefix)._replace(is_marker=True) for each in markers]
            yield page
            if not reply["IsTruncated"]:
                return
            names = {"KeyMarker": reply.get("NextKeyMarker")}
            if reply.get("NextVersionIdMarker"):
                names["VersionIdMarker"] = reply["NextVersionIdMarker"]
            more = self._progress(more, names)

    def _item(self, found: Mapping[str, Any], prefix: str) -> Item:
        key = found["Key"]
        if not key.startswith(prefix):
            text = f"bucket {self.name}: a listing of {prefix!r} answers with the key {key!r}"
            raise PermanentArtifactError(text)
        version = found.get("VersionId")
        return Item(key, version, int(found.get("Size") or 0), found.get("LastModified"))

    def _refuse_no_listing(self, reply: Mapping[str, Any]) -> None:
        """What a proxy answers in the store's stead must not be taken for an empty listing."""
        found = len(reply.get("Contents", ())) + len(reply.get("CommonPrefixes", ()))
        if "IsTruncated" not in reply or int(reply.get("KeyCount") or 0) > found:
            raise TransientArtifactError(
                f"bucket {self.name}: the reply is no whole listing",
                hint="is the endpoint a store that speaks S3's protocol?",
            )

    def _progress(self, before: Mapping[str, str], after: Mapping[str, Any]) -> dict[str, str]:
        """Where the next page begins: a store that says the same twice would never end."""
        if not all(after.values()) or before == after:
            text = f"bucket {self.name}: a listing that never ends"
            raise TransientArtifactError(text)
        return dict(after)

    # -- deletions ---------------------------------------------------------------------------------

    def delete(self, items: Sequence[Item]) -> dict[Item, Failure]:
        """Delete with one request: what the reply says was not deleted, and why.

        What the reply is silent about is known by the listing afterwards. The caller holds a slot.
        """
        names = [self._name(item) for item in items]
        reply = self.once("delete_objects", Delete={"Objects": names, "Quiet": False})
        by_key: dict[str, list[Item]] = {}
        for item in items if reply.get("Errors") else ():
            by_key.setdefault(item.key, []).append(item)
        failed: dict[Item, Failure] = {}
        for each in reply.get("Errors", ()):
            why = Failure(each.get("Code", ""), each.get("Message", ""))
            for item in by_key.get(each.get("Key", ""), ()):
                if each.get("VersionId") in (None, item.version):  # some stores name no version
                    failed[item] = why
        return failed

    def delete_one(self, item: Item) -> Failure | None:
        """Delete one by itself; why the store did not. The caller holds a slot."""
        try:
            self.once("delete_object", **self._name(item))
        except PermanentArtifactError as error:
            return Failure(code_of(error.__cause__ or error), error.message)
        return None

    def _name(self, item: Item) -> dict[str, str]:
        return {"Key": item.key} | ({"VersionId": item.version} if item.version else {})

    # -- uploads -----------------------------------------------------------------------------------

    def uploads(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Key and id of each upload below a prefix that was begun and not finished."""
        more: dict[str, str] = {}
        while True:
            reply = self.ask("list_multipart_uploads", Prefix=prefix, EncodingType="url", **more)
            decode = unquote_plus if reply.get("EncodingType") == "url" else str
            for each in reply.get("Uploads", ()):
                yield decode(each["Key"]), each["UploadId"]
            if not reply["IsTruncated"]:
                return
            key = reply.get("NextKeyMarker")
            names = {"KeyMarker": key and decode(key)}
            if reply.get("NextUploadIdMarker"):
                names["UploadIdMarker"] = reply["NextUploadIdMarker"]
            more = self._progress(more, names)

    def abort(self, key: str, upload: str) -> None:
        """Abort an upload; one that is gone is aborted."""
        try:
            self.ask("abort_multipart_upload", Key=key, UploadId=upload)
        except PermanentArtifactError as error:
            if code_of(error.__cause__ or error) not in GONE:
                raise

    # -- settings ----------------------------------------------------------------------------------

    @property
    def versioning(self) -> str:
        """Enabled, Suspended, Off, or empty where the store does not say; asked once."""
        with self._lock:
            if self._versioning is None:
                try:
                    reply = self.ask("get_bucket_versioning")
                    self._versioning = str(reply.get("Status") or "Off")
                except PermanentArtifactError:
                    self._versioning = ""
            return self._versioning

    def setting(self, operation: str) -> dict[str, Any] | None:
        """A setting of the bucket, None where it has none. Raises Denied, NotOffered."""
        try:
            return self.ask(operation)
        except (PermanentArtifactError, TransientArtifactError) as error:
            if code_of(error.__cause__ or error) in UNSET:
                return None
            raise

    def locked_until(self, item: Item) -> datetime | None:
        """Until when the store retains a version, None where it does not, or does not say."""
        until = self._held("get_object_retention", item).get("Retention", {}).get("RetainUntilDate")
        return until if isinstance(until, datetime) else None

    def has_legal_hold(self, item: Item) -> bool:
        """Whether somebody put a legal hold on a version."""
        hold = self._held("get_object_legal_hold", item).get("LegalHold", {})
        return str(hold.get("Status")) == "ON"

    def _held(self, operation: str, item: Item) -> dict[str, Any]:
        try:
            with self.slots:
                return self.once(operation, **self._name(item))
        except (PermanentArtifactError, TransientArtifactError):
            return {}
