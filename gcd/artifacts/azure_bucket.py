"""The requests that gcd sends to one container in Azure: listings, deletions, empty folders.

It must never change a name on its way, nor take a reply that is no listing for an empty one.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from threading import Semaphore
from typing import Any, TypeVar

from azure.core import MatchConditions
from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.storage.blob import BlobServiceClient
from azure.storage.filedatalake import DataLakeServiceClient

from gcd.artifacts.azure_batch import Answer, answers
from gcd.artifacts.azure_errors import FOREIGN, GONE, Busy, code_of, of_code, translated
from gcd.artifacts.azure_settings import READER, Settings
from gcd.artifacts.buckets import Bucket, Item, NotOffered
from gcd.artifacts.pace import Pace
from gcd.errors import (
    ArtifactError,
    LockedArtifactError,
    PermanentArtifactError,
    TransientArtifactError,
)

T = TypeVar("T")

DELETER = "the role Storage Blob Data Contributor (a SAS token: d, for versions x)"
WRITER = "the role Storage Blob Data Contributor (a SAS token: cw)"
PAGE = 5000
FOLDERS = 5000
"""Folders of a tree that are held in memory at once; the next listing finds the others."""
SNAPSHOT = "snapshot "
"""What marks the version of an item that is a snapshot."""
DOTS = re.compile(r"(?:^|[/\\])\.\.?(?:[/\\]|$)")
"""Segments that a library or a server on the way resolves: another blob would be deleted."""


class AzureContainer(Bucket):
    """One container of one account. Threads share it."""

    batch = 250
    """Azure takes 256."""

    def __init__(
        self,
        name: str,
        service: BlobServiceClient,
        lake: DataLakeServiceClient,
        identity: str,
        *,
        slots: Semaphore,
        pace: Pace,
    ) -> None:
        super().__init__(name, identity, slots=slots, pace=pace)
        self.settings = Settings(name, service, self.ask)
        self._client = service.get_container_client(name)
        self._lake = lake.get_file_system_client(name)

    # -- requests ----------------------------------------------------------------------------------

    def _call(self, call: Callable[[], T], role: str, where: str = "") -> T:
        try:
            return call()
        except FOREIGN as error:
            self.settings.note(code_of(error))
            # Its text, and that of what caused it, may hold a URL with the signature of a SAS token.
            raise translated(error, where or self._where(), role) from None

    def _where(self, item: Item | None = None) -> str:
        return f"container {self.name}" + (f", blob {item.key!r}" if item else "")

    def ask(self, call: Callable[[], T], role: str) -> T:
        """A request that may be sent twice, tried again where that may help."""
        return self.again(lambda: self._call(call, role))

    # -- listings ----------------------------------------------------------------------------------

    def pages(
        self, prefix: str, *, all_versions: bool, limit: int | None = None
    ) -> Iterator[list[Item]]:
        """Everything below a prefix. Folders come when no blob is left, the deepest first.

        With a limit they come as they are listed.
        """
        found = self._pages(prefix, all_versions=all_versions, limit=limit)
        if limit is not None:
            yield from found
            return
        folders: deque[Item] = deque(maxlen=FOLDERS)
        has_blobs = False
        for page in found:
            blobs = [item for item in page if not item.is_marker]
            has_blobs = has_blobs or bool(blobs)
            if not has_blobs:
                folders.extend(page)
            yield blobs
        if not has_blobs and folders:
            yield list(reversed(folders))  # one is listed before what is in it

    def _pages(self, prefix: str, *, all_versions: bool, limit: int | None) -> Iterator[list[Item]]:
        include = [] if self.settings.has_folders is False else ["metadata"]
        for more in () if self.settings.has_folders else _included(all_versions=all_versions):
            try:
                yield from self._listed(prefix, [*include, *more], limit)
                return
            except NotOffered:
                pass  # an account that has nothing of the kind
        yield from self._listed(prefix, include, limit)

    def _listed(self, prefix: str, include: list[str], limit: int | None) -> Iterator[list[Item]]:
        marker: str | None = None
        while True:
            before = marker
            page, marker = self.ask(partial(self._page, prefix, include, limit, before), READER)
            yield [self._item(each, prefix) for each in page if not each.deleted]
            if marker is None:
                return
            if marker == before:
                raise TransientArtifactError(f"container {self.name}: a listing that never ends")

    def _page(
        self, prefix: str, include: list[str], limit: int | None, marker: str | None
    ) -> tuple[list[Any], str | None]:
        pages: Any = self._client.list_blobs(
            name_starts_with=prefix or None,
            include=include or None,
            results_per_page=limit or PAGE,
            raw_response_hook=self._refuse_no_listing,
        ).by_page(marker)
        return list(next(pages)), pages.continuation_token or None

    def _refuse_no_listing(self, response: Any) -> None:
        """What a proxy answers in the store's stead must not be taken for an empty listing."""
        if response.http_response.status_code != 200:
            return
        body = response.http_response.body()
        is_whole = b"<EnumerationResults" in body[:500] and b"<NextMarker" in body[-10_000:]
        if not is_whole or not body.rstrip().endswith(b"</EnumerationResults>"):
            raise TransientArtifactError(
                f"container {self.name}: the reply is no whole listing",
                hint="is the endpoint Azure's Blob Storage?",
            )

    def _item(self, blob: Any, prefix: str) -> Item:
        name = blob.name if isinstance(blob.name, str) else ""
        version = None
        if blob.snapshot:
            version = SNAPSHOT + blob.snapshot
        elif blob.version_id and not blob.is_current_version:
            version = blob.version_id
        key = self.checked(name, prefix)
        return Item(key, version, blob.size or 0, blob.last_modified, self._is_folder(blob))

    def _is_folder(self, blob: Any) -> bool:
        return self.settings.has_folders is not False and is_folder(blob)

    # -- deletions ---------------------------------------------------------------------------------

    def takes_together(self, item: Item) -> bool:
        """Whether a batch can carry the name; a folder may go only after what is in it."""
        return not (self.takes_one_by_one or item.is_marker or is_unsafe(item.key))

    def delete(self, items: Sequence[Item]) -> Mapping[Item, ArtifactError]:
        """Delete with one request: what the reply says was not deleted, and why."""
        reply = self.counted(lambda: self._call(lambda: self._batch(items), DELETER))
        failed: dict[Item, ArtifactError] = {}
        for number, answer in reply.items():
            if number is None:
                if len(reply) == 1 and answer.status >= 300:
                    raise _of_batch(self._refusal(None, answer))
            elif number < len(items) and not _is_done(answer):
                failed[items[number]] = self._refusal(items[number], answer)
        return failed

    def _batch(self, items: Sequence[Item]) -> dict[int | None, Answer]:
        seen: list[Any] = []
        blobs = [{"name": item.key, **_options(item)} for item in items]
        try:
            self._client.delete_blobs(
                *blobs, raise_on_any_failure=False, raw_response_hook=seen.append
            )
        except FOREIGN as error:
            refusal = translated(error, self._where(), DELETER)
            raise _of_batch(refusal) from None  # see _call
        response = seen[-1].http_response
        try:
            return answers(response.headers.get("Content-Type", ""), response.body())
        except TransientArtifactError as error:
            text = f"{self._where()}: {error.message}"
            raise TransientArtifactError(
                text, hint="is the endpoint Azure's Blob Storage?"
            ) from error

    def _refusal(self, item: Item | None, answer: Answer) -> ArtifactError:
        self.settings.note(answer.code)
        return of_code(answer.code, answer.text, self._where(item), DELETER, answer.status)

    def delete_one(self, item: Item) -> ArtifactError | None:
        """Delete one by itself; why the store did not."""
        if item.is_marker and self.settings.has_folders:
            return self.counted(lambda: self._remove_folder(item, lambda: None))
        if is_unsafe(item.key):
            text = f"{self._where(item)}: a segment of dots, or what is no text, is not sent"
            return PermanentArtifactError(text, hint="delete it by hand, then `gcd retry`")
        options: dict[str, Any] = _options(item)
        blob = self._client.get_blob_client(item.key, snapshot=options.pop("snapshot", None))

        def attempt() -> ArtifactError | None:
            """What concerns this blob alone says nothing of the store."""
            remove = lambda: self._gone(lambda: blob.delete_blob(**options))  # noqa: E731
            try:
                self._call(remove, DELETER, self._where(item))
            except (Busy, PermanentArtifactError, LockedArtifactError) as error:
                return error
            return None

        return self.counted(attempt)

    def _gone(self, call: Callable[[], object]) -> None:
        """A deletion; what is not there is gone, if its container is."""
        try:
            call()
        except ResourceNotFoundError as error:
            if code_of(error) not in GONE:
                raise

    def explained(self, item: Item, error: ArtifactError) -> ArtifactError:
        """Until when a policy holds a blob, where that is what keeps it."""
        if not isinstance(error, LockedArtifactError):
            return error
        try:
            with self.slots:
                found = self.counted(lambda: self._call(lambda: self._properties(item), READER))
        except ArtifactError:
            return error
        if found.has_legal_hold:
            hint = "remove the hold, then `gcd retry`"
            return LockedArtifactError(f"{self._where(item)}: it is under legal hold", hint=hint)
        until = getattr(found.immutability_policy, "expiry_time", None)
        if until is None:
            return error
        return LockedArtifactError(
            f"{self._where(item)}: it is retained until {until}", until=until
        )

    def _properties(self, item: Item) -> Any:
        names: dict[str, Any] = _options(item)
        blob = self._client.get_blob_client(item.key, snapshot=names.get("snapshot"))
        return blob.get_blob_properties(version_id=names.get("version_id"))

    # -- single blobs ------------------------------------------------------------------------------

    def read(self, key: str, most: int) -> bytes | None:
        """The first bytes of a blob."""
        blob = self._client.get_blob_client(key)

        def ask() -> bytes | None:
            try:
                return bytes(blob.download_blob(offset=0, length=most).readall())
            except ResourceNotFoundError as error:
                if code_of(error) not in GONE:
                    raise
                return None

        return self.ask(ask, READER)

    def write(self, key: str, data: bytes, *, is_new: bool) -> bool:
        """Write a blob."""
        blob = self._client.get_blob_client(key)

        def send() -> bool:
            try:
                blob.upload_blob(data, overwrite=not is_new)
            except ResourceExistsError:
                return False
            return True

        return self.ask(send, WRITER)

    # -- folders -----------------------------------------------------------------------------------

    def remove_folder(self, path: str, permit: Callable[[], None] = lambda: None) -> Busy | None:
        """Remove a folder if it is empty, else say so. What is not there is success.

        So is what is no folder: it stays. The caller holds no slot; `permit` is asked immediately
        before. Raises an ArtifactError, and what the permit raises.
        """
        item = Item(path, None, 0, None, is_marker=True)
        return self.again(lambda: self._remove_folder(item, permit))

    def _remove_folder(self, item: Item, permit: Callable[[], None]) -> Busy | None:
        path, where = item.key, self._where(item)
        if is_unsafe(path) or not all(path.split("/")):
            raise PermanentArtifactError(f"{where}: a folder of such a name is not removed")
        found: list[Any] = []
        blob = self._client.get_blob_client(path)
        look = lambda: found.append(blob.get_blob_properties())  # noqa: E731
        self._call(lambda: self._gone(look), READER, where)
        if not found or not is_folder(found[0]):
            return None
        # Of exactly what was looked at; one that holds something is refused (409).
        exactly = {"etag": found[0].etag, "match_condition": MatchConditions.IfNotModified}
        folder = self._lake.get_file_client(path)
        # A client of a directory could only remove it with all that is in it.
        remove = lambda: folder.delete_file(recursive=False, **exactly)  # noqa: E731
        permit()
        try:
            self._call(lambda: self._gone(remove), DELETER, where)
        except Busy as error:
            return error
        return None

    @property
    def keeps(self) -> str | None:
        """That old versions or deleted blobs stay, where they do."""
        return self.settings.keeps


def _included(*, all_versions: bool) -> list[list[str]]:
    """What else is asked for in a listing; less where an account does not offer it.

    An upload that nobody finished is a blob of blocks that nobody committed.
    """
    versions = ["versions", "snapshots"] if all_versions else []
    return [["uncommittedblobs", *versions], *([versions] if versions else [])]


def is_folder(properties: Any) -> bool:
    """Whether a blob stands for a folder."""
    metadata = {name.lower(): value for name, value in (properties.metadata or {}).items()}
    return str(metadata.get("hdi_isfolder", "")).lower() == "true"


def is_unsafe(key: str) -> bool:
    """Whether a name may reach the store as another one, or cannot be said at all."""
    return bool(DOTS.search(key)) or _is_no_text(key)


def _is_no_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return True
    return False


def _options(item: Item) -> dict[str, str]:
    """What names the version of a blob; a blob itself goes with its snapshots."""
    if item.version is None:
        return {"delete_snapshots": "include"}
    if item.version.startswith(SNAPSHOT):
        return {"snapshot": item.version.removeprefix(SNAPSHOT)}
    return {"version_id": item.version}


def _is_done(answer: Answer) -> bool:
    return answer.status < 300 or (answer.status == 404 and answer.code in {*GONE, ""})


def _of_batch(error: ArtifactError) -> ArtifactError:
    """What a whole batch is refused for, where each blob by itself may still go."""
    if isinstance(error, (Busy, LockedArtifactError)):
        return PermanentArtifactError(error.message, hint=error.hint)
    return error
