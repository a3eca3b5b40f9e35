"""The requests that gcd sends to one bucket: listings, deletions, uploads, settings.

It must never change a key on its way, nor take a reply that is no listing for an empty one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from threading import Lock, Semaphore
from typing import Any
from urllib.parse import unquote_plus

from botocore.exceptions import ParamValidationError

from gcd.artifacts.buckets import Bucket, Denied, Item, NotOffered
from gcd.artifacts.pace import Pace
from gcd.artifacts.s3_errors import FOREIGN, GONE, code_of, of_code, translated
from gcd.artifacts.s3_uploads import abort_uploads
from gcd.artifacts.s3_wire import Wire
from gcd.artifacts.tree import Tree
from gcd.errors import (
    ArtifactError,
    LockedArtifactError,
    PermanentArtifactError,
    TransientArtifactError,
)

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
READ, WRITE = "s3:GetObject", "s3:PutObject"
EXISTS = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412"})
"""Codes by which a store says that an object is there already."""
LISTINGS = frozenset({"list_objects_v2", "list_object_versions", "list_multipart_uploads"})
UNSET = frozenset(
    {
        "NoSuchLifecycleConfiguration",
        "ObjectLockConfigurationNotFoundError",
        "NoSuchObjectLockConfiguration",
    }
)
"""Codes by which a store says that a bucket has no such setting."""


NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that a request for many keys cannot carry: the store would look for another key."""
KEEPS_VERSIONS = (
    "the bucket keeps old versions: what is deleted frees space only by its own lifecycle rules; "
    'artifacts.versions = "all" deletes every version'
)


class S3Bucket(Bucket):
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
        wire: Wire,
    ) -> None:
        super().__init__(name, identity, slots=slots, pace=pace)
        self.tells_uploads = self.walks = True
        self._client, self._wire = client, wire
        self._fixed = {"Bucket": name, **owner}
        self._versioning: str | None = None
        self._lock = Lock()

    # -- requests ----------------------------------------------------------------------------------

    def once(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Send one request, in a slot that the caller holds. Raises an ArtifactError."""
        return self.counted(lambda: self._call(operation, parameters))

    def ask(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """A request that may be sent twice, tried again where that may help."""
        return self.again(lambda: self._call(operation, parameters))

    def _call(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        try:
            reply = self._wire.call(operation, parameters)
            if reply is None:
                reply = dict(getattr(self._client, operation)(**self._fixed, **parameters))
                self._wire.confirm()
        except FOREIGN as error:
            raise translated(error, f"bucket {self.name}", ACTIONS[operation]) from error
        if operation in LISTINGS:
            self._refuse_no_listing(reply)
        return reply

    def close(self) -> None:
        """End the connections of the SDK and those past it."""
        self._client.close()
        self._wire.close()

    # -- listings ----------------------------------------------------------------------------------

    def pages(
        self, prefix: str, *, all_versions: bool, limit: int | None = None
    ) -> Iterator[list[Item]]:
        """Everything below a prefix, page by page, keys as the store has them."""
        size = {} if limit is None else {"MaxKeys": limit}
        if all_versions:
            try:
                yield from self._version_pages(prefix, **size)
                return
            except NotOffered:
                pass  # a store without versions
        yield from self._object_pages(prefix, **size)

    def _object_pages(self, prefix: str, **size: int) -> Iterator[list[Item]]:
        more: dict[str, str] = {}
        while True:
            reply = self.ask("list_objects_v2", Prefix=prefix, **size, **more)
            page = [self._item(each, prefix) for each in reply.get("Contents", ())]
            yield page
            if not reply["IsTruncated"]:
                return
            token = reply.get("NextContinuationToken")
            more = self._progress(more, {"ContinuationToken": token})

    def page_after(self, prefix: str, key: str) -> tuple[list[Item], bool]:
        """A page of what is below a prefix and behind a key, and whether more is behind it."""
        reply = self.ask("list_objects_v2", Prefix=prefix, StartAfter=key)
        found = [self._item(each, prefix) for each in reply.get("Contents", ())]
        return found, bool(reply["IsTruncated"])

    def _version_pages(self, prefix: str, **size: int) -> Iterator[list[Item]]:
        more: dict[str, str] = {}
        while True:
            reply = self.ask("list_object_versions", Prefix=prefix, **size, **more)
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
        key = self.checked(found["Key"], prefix)
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

    def takes_together(self, item: Item) -> bool:
        """Whether the key can be said in XML, to a store that deletes many keys at once."""
        return not (self.takes_one_by_one or NOT_IN_XML.search(item.key))

    def delete(self, items: Sequence[Item]) -> Mapping[Item, ArtifactError]:
        """Delete with one request: what the reply says was not deleted, and why."""
        names = [self._name(item) for item in items]
        reply = self.once("delete_objects", Delete={"Objects": names, "Quiet": False})
        by_key: dict[str, list[Item]] = {}
        for item in items if reply.get("Errors") else ():
            by_key.setdefault(item.key, []).append(item)
        failed: dict[Item, ArtifactError] = {}
        for each in reply.get("Errors", ()):
            code, text = each.get("Code", ""), each.get("Message", "")
            for item in by_key.get(each.get("Key", ""), ()) if code not in GONE else ():
                if each.get("VersionId") in (None, item.version):  # some stores name no version
                    failed[item] = self._refusal(item, code, text)
        return failed

    def delete_one(self, item: Item) -> ArtifactError | None:
        """Delete one by itself; why the store did not."""
        try:
            self.once("delete_object", **self._name(item))
        except PermanentArtifactError as error:
            code = code_of(error.__cause__ or error)
            return None if code in GONE else self._refusal(item, code, error.message)
        return None

    def _refusal(self, item: Item, code: str, text: str) -> ArtifactError:
        action = "s3:DeleteObjectVersion" if item.version else "s3:DeleteObject"
        return of_code(code, text, self._where(item), action)

    def _where(self, item: Item) -> str:
        return f"bucket {self.name}, key {item.key!r}"

    def explained(self, item: Item, error: ArtifactError) -> ArtifactError:
        """The hold that the store has on a version, where that is what denies it."""
        if not (isinstance(error, Denied) and item.version):
            return error
        if self.has_legal_hold(item):
            hint = "remove the hold, then `gcd retry`"
            text = f"{self._where(item)}: a version is under legal hold"
            return LockedArtifactError(text, hint=hint)
        until = self.locked_until(item)
        if until is None:
            return error
        text = f"{self._where(item)}: a version is retained until {until}"
        return LockedArtifactError(text, until=until)

    def _name(self, item: Item) -> dict[str, str]:
        return {"Key": item.key} | ({"VersionId": item.version} if item.version else {})

    # -- single objects ----------------------------------------------------------------------------

    def read(self, key: str, most: int) -> bytes | None:
        """The first bytes of an object."""

        def ask() -> bytes | None:
            try:
                reply = self._client.get_object(Key=key, **self._fixed)
                with closing(reply["Body"]) as body:
                    return bytes(body.read(most))
            except FOREIGN as error:
                if code_of(error) in GONE:
                    return None
                raise translated(error, f"bucket {self.name}, key {key!r}", READ) from error

        return self.again(ask)

    def write(self, key: str, data: bytes, *, is_new: bool) -> bool:
        """Write an object; where the store knows no condition, without one."""
        condition = {"IfNoneMatch": "*"} if is_new else {}
        try:
            return self.again(lambda: self._put(key, data, condition))
        except (NotOffered, PermanentArtifactError) as error:
            is_unknown = isinstance(error, NotOffered) or isinstance(
                error.__cause__, ParamValidationError
            )
            if not (is_new and is_unknown):
                raise
        return self.again(lambda: self._put(key, data, {}))

    def _put(self, key: str, data: bytes, condition: Mapping[str, str]) -> bool:
        about = {"Key": key, "Body": data, "ContentType": "application/json"}
        try:
            self._client.put_object(**about, **condition, **self._fixed)
        except FOREIGN as error:
            if code_of(error) in EXISTS:
                return False
            raise translated(error, f"bucket {self.name}, key {key!r}", WRITE) from error
        return True

    # -- uploads -----------------------------------------------------------------------------------

    def clear_unseen(self, trees: Sequence[Tree]) -> None:
        """Abort the uploads that nobody finished."""
        abort_uploads(self, trees)

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

    @property
    def keeps(self) -> str | None:
        """That old versions stay, where they do."""
        return KEEPS_VERSIONS if self.versioning in ("Enabled", "Suspended") else None

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
