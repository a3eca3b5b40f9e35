"""Azure's store keeps the contract on azurite, and on a stub with flat and with real folders."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from azure.storage.blob import (
    BlobBlock,
    ContainerClient,
    ContainerSasPermissions,
    generate_container_sas,
)

from gcd.artifacts import pace
from gcd.artifacts.base import Order
from gcd.errors import LockedArtifactError, PermanentArtifactError, TransientArtifactError
from gcd.model import Place, Root, Target, Usage
from gcd.testing import ODD_KEYS, ODD_NAMES, ArtifactStoreContract
from tests.azure_server import HOST, AzureServer, azurite
from tests.azure_stub import ACCOUNT, KEY, Blob, stub_server
from tests.s3_stub import Fault

DOTS = frozenset({"./here", "up/../down", "a/./b"})
"""Never sent: a library or a server on the way would make another name of them."""
NOT_UTF8 = frozenset({"\udcff\udcfe"})
HARD_NAMES = (
    *["a<b>c", "nbsp\u00a0", "bom\ufeff", "dot.", "trailing ", "del\x7f", "cr\rlf", "?a=b#c"],
    *[
        "+",
        "%",
        "%25",
        "a=b/c",
        "dir//",
        "/",
        "..a",
        "a..",
        "x\r\nDELETE /acct/box/1/live HTTP/1.1",
    ],
)

numbers = itertools.count()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FIRST_PAUSE", 0.001)


@pytest.fixture(scope="module")
def server() -> Iterator[AzureServer]:
    with azurite() as started:
        yield started


@pytest.fixture(scope="module")
def container(server: AzureServer) -> ContainerClient:
    return server.new_container()


class TestOnAzurite(ArtifactStoreContract):
    # A backslash is stored as a slash, as by Azure.
    unsupported = DOTS | NOT_UTF8 | {name for name in ODD_NAMES if "\\" in name}

    @pytest.fixture(autouse=True)
    def _fresh(self, server: AzureServer, container: ContainerClient) -> None:
        self.client, self.server, self.store = container, server, server.store()
        name = f"{container.container_name}@{HOST}"
        self.root = Place("wasbs", name, f"t{next(numbers)}/ml-flow/")

    def absent_root(self) -> Place:
        return Place("wasbs", f"gcd-test-absent@{HOST}", self.root.path)

    def put(self, key: str, data: bytes) -> None:
        self.client.upload_blob(self.root.path + key, data, overwrite=True)

    def keys(self) -> set[str]:
        found = self.client.list_blobs(name_starts_with=self.root.path)
        return {each.name.removeprefix(self.root.path) for each in found}

    def test_snapshots_go_with_their_blob(self) -> None:
        self.put("1/run1/artifacts/f", b"xyz")
        blob = self.client.get_blob_client(f"{self.root.path}1/run1/artifacts/f")
        blob.create_snapshot()
        assert self.delete("1/run1/artifacts/").usage == Usage(1, 3)
        self.put("1/run1/artifacts/f", b"xyz")
        blob.create_snapshot()
        self.store = self.server.store(versions="all")
        assert self.delete("1/run1/artifacts/").usage == Usage(2, 6)
        assert not list(self.client.list_blobs(self.root.path, include=["snapshots"]))

    def test_a_leased_blob_is_tried_again_and_the_rest_goes(self) -> None:
        self._put_all({"1/run1/artifacts/f", "1/run1/artifacts/g"})
        blob = self.client.get_blob_client(f"{self.root.path}1/run1/artifacts/f")
        lease = blob.acquire_lease()
        with pytest.raises(TransientArtifactError, match="LeaseIdMissing") as caught:
            self.delete("1/run1/artifacts/")
        assert "break the lease" in str(caught.value.hint)
        assert self.keys() == {"1/run1/artifacts/f"}
        lease.release()
        self.delete("1/run1/artifacts/")
        assert self.keys() == set()

    def test_uploads_that_nobody_finished_go_with_their_tree(self) -> None:
        kept, gone = (
            self.client.get_blob_client(f"{self.root.path}1/{run}/artifacts/unfinished")
            for run in ("run10", "run1")
        )
        for blob in (kept, gone):
            blob.stage_block("AAAA", b"x" * 100)
        self.put("1/run1/artifacts/f", b"x")
        assert self.delete("1/run1/artifacts/").usage.objects == 2
        left = self.client.list_blobs(self.root.path, include=["uncommittedblobs"])
        assert [each.name for each in left] == [kept.blob_name]
        kept.commit_block_list([BlobBlock("AAAA")])

    def test_wrong_credentials_are_one_clear_sentence(self) -> None:
        other = AzureServer(self.server.url, key="c2VjcmV0LWtleQ==")
        problem = other.store().probe(self.root, ()).problem
        assert problem is not None
        assert "Storage Blob Data" in problem
        assert other.key not in problem

    @pytest.mark.parametrize("letters", ["rld", "l"])
    def test_a_signature_allows_what_it_says_and_is_never_shown(self, letters: str) -> None:
        text = self.signed(letters)
        self.store = self.server.store({"AZURE_STORAGE_CONNECTION_STRING": text})
        self._put_all({"1/run1/artifacts/f", "1/run1/artifacts/g", "1/run2/artifacts/f"})
        if letters == "rld":
            assert self.delete("1/run1/artifacts/").usage.objects == 2
            assert self.keys() == {"1/run2/artifacts/f"}
            return
        with pytest.raises(PermanentArtifactError, match="Authorization") as caught:
            self.delete("1/run1/artifacts/")
        assert "a SAS token: d" in str(caught.value.hint)
        assert len(self.keys()) == 3
        said = f"{caught.value}{caught.value.hint}{list(self.store.inspect(self.root))}"
        assert text.rpartition("sig=")[2] not in said

    def signed(self, letters: str) -> str:
        """A connection string that allows the operations of some letters."""
        token = generate_container_sas(
            self.server.account,
            str(self.client.container_name),
            account_key=self.server.key,
            permission=ContainerSasPermissions.from_string(letters),
            expiry=datetime.now(UTC) + timedelta(hours=1),
        )
        return f"BlobEndpoint={self.server.url};SharedAccessSignature={token}"

    def test_what_is_known_of_a_container_is_told(self) -> None:
        said = [each.seen for each in self.store.inspect(self.root)]
        assert said[0] == "credentials from AZURE_STORAGE_CONNECTION_STRING"
        assert self.store.probe(self.root, ()).note is None

    def test_a_lake_is_the_same_container(self) -> None:
        lake = Place("abfss", self.root.authority.replace(".blob.", ".dfs."), self.root.path)
        self.put("1/run1/artifacts/f", b"x")
        there = self.store.probe(lake, [Place("abfss", lake.authority, f"{lake.path}1/run1/")])
        assert there.is_named_found
        assert there.identity == self.store.probe(self.root, ()).identity
        self.root = lake
        assert self.delete("1/run1/artifacts/").usage.objects == 1


class _OnStub(ArtifactStoreContract):
    unsupported = DOTS | NOT_UTF8
    has_folders = False

    @pytest.fixture(autouse=True)
    def _fresh(self) -> Iterator[None]:
        with stub_server() as self.stub:
            self.stub.has_folders = self.has_folders
            self.stub.blobs["box"] = {}
            self.server = AzureServer(f"{self.stub.url}/{ACCOUNT}", ACCOUNT, KEY)
            self.store = self.server.store()
            self.root = Place("abfss", f"box@{ACCOUNT}.dfs.core.windows.net", "ml/flow/")
            if self.has_folders:
                self.stub.blobs["box"] = {
                    "ml": Blob(is_folder=True),
                    "ml/flow": Blob(is_folder=True),
                }
            yield

    def absent_root(self) -> Place:
        return Place("abfss", f"absent@{ACCOUNT}.dfs.core.windows.net", self.root.path)

    def put(self, key: str, data: bytes) -> None:
        self.stub.put("box", self.root.path + key, data)

    def keys(self) -> set[str]:
        return {key.removeprefix(self.root.path) for key in self.stub.keys("box")}

    def folders(self) -> set[str]:
        found = self.stub.folders("box")
        return {f.removeprefix(self.root.path) for f in found if f.startswith(self.root.path)}

    def _supported(self, *names: str) -> list[str]:
        # In the path of a data lake a percent sign has no one meaning: `check` refuses such a tree.
        if names == ODD_NAMES:
            names = tuple(name for name in names if name not in ("%2e%2e", "%2F"))
        return super()._supported(*names)


class TestOnFlatStub(_OnStub):
    @pytest.mark.parametrize("is_batch", [True, False])
    def test_hard_names_of_blobs_are_deleted(self, is_batch: bool) -> None:
        if not is_batch:
            self.stub.always["batch"] = Fault("refuse", "NotImplemented")
        odd = [name for name in (*ODD_NAMES, *ODD_KEYS) if name not in DOTS | NOT_UTF8]
        gone = {f"1/run1/artifacts/{name}" for name in (*HARD_NAMES, *odd, "")}
        self._put_all(gone | {"1/run1", "1/run1/artifacts", "1/run10/artifacts/f", "1/live"})
        assert self.delete("1/run1/artifacts/").usage.objects == len(gone)
        assert self.keys() == {"1/run1", "1/run1/artifacts", "1/run10/artifacts/f", "1/live"}

    @pytest.mark.parametrize("name", ["../f", "a/../../f", "./f", "..", "a\\..\\..\\f", "."])
    def test_a_segment_of_dots_is_never_sent(self, name: str) -> None:
        self._put_all({f"1/run1/artifacts/{name}", "1/run1/artifacts/g", "1/run1/f", "1/f"})
        with pytest.raises(PermanentArtifactError, match="segment of dots"):
            self.delete("1/run1/artifacts/")
        assert self.keys() == {f"1/run1/artifacts/{name}", "1/run1/f", "1/f"}

    def test_markers_of_folders_are_blobs_like_others(self) -> None:
        marker = "ml/flow/1/run1"
        self.stub.blobs["box"] = {
            marker: Blob(is_folder=True),
            f"{marker}/artifacts/model": Blob(is_folder=True),
            f"{marker}/artifacts/model/f": Blob(),
        }
        assert self.delete("1/run1/artifacts/").usage.objects == 2
        assert set(self.stub.blobs["box"]) == {marker}


class TestWithFolders(_OnStub):
    """A hierarchical namespace, as it is documented."""

    has_folders = True
    unsupported = _OnStub.unsupported | {"twice//slashed", "marker/", "/absolute"}

    def test_folders_go_whatever_their_depth_and_number(self) -> None:
        deep = "1/run1/artifacts/" + "d/" * 30
        wide = {f"1/run1/artifacts/w{n}/x/f" for n in range(40)}
        self._put_all({deep + "f", "1/live/artifacts/f", *wide})
        assert self.delete("1/run1/artifacts/").usage.objects == 41
        assert self.folders() == {"1", "1/live", "1/live/artifacts"}

    def test_a_folder_that_is_empty_already_goes(self) -> None:
        self.put("1/run1/artifacts/model/f", b"x")
        del self.stub.blobs["box"]["ml/flow/1/run1/artifacts/model/f"]
        assert self.delete("1/run1/artifacts/").usage == Usage()
        assert self.folders() == {"1"}

    def test_a_veto_that_comes_late_keeps_the_folders(self) -> None:
        self.put("1/run1/artifacts/f", b"x")
        root = self.known_root()

        def permit() -> None:
            if not self.keys():
                raise PermissionError("live again")

        order = Order(self.target("1/run1/artifacts/"), root, permit)
        [deletion] = self.store.delete_many([order])
        assert isinstance(deletion.result, PermissionError)
        assert self.folders() == {"1", "1/run1", "1/run1/artifacts"}

    def test_a_file_in_the_own_folders_place_stays(self) -> None:
        self.stub.blobs["box"]["ml/flow/1/run1"] = Blob(b"x")
        assert self.delete("1/run1/artifacts/").usage == Usage()
        assert self.keys() == {"1/run1"}

    def test_what_is_written_meanwhile_is_not_deleted_with_its_folder(self) -> None:
        self.put("1/run1/artifacts/f", b"x")
        remove = self.stub.remove

        def meanwhile(container: str, key: str, query: dict[str, str], match: str | None) -> None:
            if key.endswith("/run1/artifacts"):
                self.stub.put("box", f"{key}/late")
            remove(container, key, query, match)

        self.stub.remove = meanwhile  # type: ignore[method-assign]
        with pytest.raises(TransientArtifactError, match="DirectoryNotEmpty"):
            self.delete("1/run1/artifacts/")
        assert self.keys() == {"1/run1/artifacts/late"}
        self.stub.remove = remove  # type: ignore[method-assign]
        self.delete("1/run1/artifacts/")
        assert (self.keys(), self.folders()) == (set(), {"1"})

    def test_an_experiments_folder_is_pruned_if_it_is_empty(self) -> None:
        self._put_all({"1/models/m-1/artifacts/f", "1/run1/artifacts/f", "2/run1/artifacts/f"})
        for tree in ("1/models/m-1/artifacts/", "1/run1/artifacts/"):
            self.delete(tree)
        for folder in ("1/", "2/", "3/"):
            self.store.prune(self.target(folder))
        assert self.folders() == {"2", "2/run1", "2/run1/artifacts"}
        self.store.prune(Target(self.root, self.root))
        assert "ml/flow" in self.stub.folders("box")

    def test_where_the_store_does_not_say_it_folders_are_found_out(self) -> None:
        self.put("1/run1/artifacts/model/f", b"x")
        self.stub.always["account"] = Fault("refuse", "AuthorizationPermissionMismatch")
        assert any("unknown" in each.seen for each in self.store.inspect(self.root))
        assert self.delete("1/run1/artifacts/").usage.objects == 1
        assert self.folders() == {"1"}

    def test_a_folder_is_never_removed_with_what_is_in_it(self) -> None:
        self.put("1/run1/artifacts/model/f", b"x")
        bucket = self.store.bucket(self.root)
        for path in ("1", "1/run1", "1/run1/artifacts/model"):
            assert "DirectoryNotEmpty" in str(bucket.remove_folder(f"ml/flow/{path}"))
        for path in ("/ml/flow", "ml/flow/1/", "ml//flow", "ml/flow/.."):
            with pytest.raises(PermanentArtifactError, match="not removed"):
                bucket.remove_folder(path)
        assert bucket.remove_folder("ml/flow/1/run1/artifacts/model/f") is None
        assert self.keys() == {"1/run1/artifacts/model/f"}


class TestVersions:
    """A flat account that keeps versions."""

    tree = "ml/1/run1/artifacts/"

    @pytest.fixture(autouse=True)
    def _fresh(self) -> Iterator[None]:
        with stub_server() as self.stub:
            self.stub.is_versioned, self.stub.days_kept = True, 7
            self.stub.blobs["box"] = {}
            for key in (f"{self.tree}a", f"{self.tree}b c", "ml/1/run10/artifacts/a"):
                for data in (b"1", b"22", b"333"):
                    self.stub.put("box", key, data)
            self.server = AzureServer(f"{self.stub.url}/{ACCOUNT}", ACCOUNT, KEY)
            self.root = Place("wasbs", f"box@{ACCOUNT}.blob.core.windows.net", "ml/")
            self.target = Target(Place("wasbs", self.root.authority, self.tree), self.root)
            yield

    def delete(self, versions: str) -> Usage:
        store = self.server.store(versions=versions)
        return store.delete(self.target, Root(self.root, store.probe(self.root, ()))).usage

    def old(self, prefix: str) -> int:
        return sum(key.startswith(prefix) for _, key, _ in self.stub.old)

    def test_current_versions_go_and_the_operator_is_told(self) -> None:
        store = self.server.store()
        assert "keeps old versions" in str(store.probe(self.root, ()).note)
        assert self.delete("current") == Usage(2, 6)
        assert self.stub.keys("box") == {"ml/1/run10/artifacts/a"}
        assert self.old(self.tree) == 6
        said = {each.seen: each.mend for each in store.inspect(self.root)}
        assert [mend for seen, mend in said.items() if "keeps old versions" in seen] != [None]
        assert any("keeps what is deleted for 7 days" in seen for seen in said)
        assert any("an immutability policy is on" in seen for seen in said)
        self.stub.always["service"] = Fault("refuse", "AuthorizationPermissionMismatch")
        self.stub.always["container"] = Fault("refuse", "AuthorizationPermissionMismatch")
        told = {each.seen: each.mend for each in self.server.store().inspect(self.root)}
        unknown = "it is unknown whether the account keeps deleted blobs"
        assert told[unknown] == "allow Microsoft.Storage/storageAccounts/blobServices/read"
        assert any("Storage Blob Data Reader" in (mend or "") for mend in told.values())

    def test_every_version_goes_where_that_is_asked_for(self) -> None:
        assert self.delete("all") == Usage(6, 12)
        assert self.old(self.tree) == 0
        assert self.old("ml/1/run10/") == 2
        note = self.server.store(versions="all").probe(self.root, ()).note
        assert note is not None
        assert "7 days" in note

    def test_versions_go_where_the_account_lists_no_unfinished_uploads(self) -> None:
        self.stub.refused = {"uncommittedblobs"}
        assert self.delete("all") == Usage(6, 12)
        assert self.old(self.tree) == 0

    def test_what_a_policy_holds_is_told_with_its_end_and_the_rest_goes(self) -> None:
        until = (datetime.now(UTC) + timedelta(days=3)).replace(microsecond=0)
        self.stub.blobs["box"][f"{self.tree}a"].held_until = until
        with pytest.raises(LockedArtifactError, match="retained until") as caught:
            self.delete("current")
        assert caught.value.until == until
        assert self.stub.keys("box") == {f"{self.tree}a", "ml/1/run10/artifacts/a"}

    def test_a_legal_hold_has_no_end(self) -> None:
        self.stub.blobs["box"][f"{self.tree}a"].has_legal_hold = True
        with pytest.raises(LockedArtifactError, match="legal hold") as caught:
            self.delete("current")
        assert caught.value.until is None
