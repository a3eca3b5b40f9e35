"""The MLflow server's own endpoint: what is asked of it, what it may answer, what is never asked."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from gcd.artifacts import proxy, proxy_server, proxy_session
from gcd.artifacts.base import Deleted, Options, Order
from gcd.artifacts.pace import Pace
from gcd.artifacts.proxy import ProxyArtifactStore
from gcd.artifacts.registry import Registry
from gcd.errors import (
    ArtifactError,
    BackendError,
    PermanentArtifactError,
    TransientArtifactError,
    UnsafeTarget,
)
from gcd.model import Place, Probe, Root, Target, Usage
from tests.proxy_stub import HTML, Fault, Stub, page, proxy_stub, said

TREE = "7/run/artifacts/"
FILES = {f"{TREE}f": b"abc", f"{TREE}model/w": b"de", f"{TREE}model/data/deep": b"f"}
OTHERS = {"7/run2/artifacts/f": b"x", "7/run/artifacts2/f": b"x", "7/live/artifacts/f": b"x"}


@pytest.fixture
def stub() -> Iterator[Stub]:
    with proxy_stub() as started:
        started.keys = {**FILES, **OTHERS}
        yield started


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pauses are short; nothing of this machine's user is read."""
    monkeypatch.setattr(Pace, "pause", lambda self, attempt: None)
    monkeypatch.setattr(proxy_session, "CREDENTIALS_FILE", str(tmp_path / "credentials"))


def store(stub: Stub, **environment: str) -> ProxyArtifactStore:
    options = Options(proxy=stub.url, environment=environment)
    return ProxyArtifactStore.with_options(options)


def root_of(stub: Stub, **found: object) -> Root:
    place = Place("mlflow-artifacts", stub.authority, "")
    return Root(place, Probe(True, **found))  # type: ignore[arg-type]


def target(stub: Stub, path: str = TREE) -> Target:
    root = root_of(stub).place
    return Target(replace(root, path=path), root)


def deletion(stub: Stub, path: str = TREE, **environment: str) -> Deleted:
    return store(stub, **environment).delete(target(stub, path), root_of(stub))


def failure(call: Callable[[], object]) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        call()
    return caught.value


# What is asked ----------------------------------------------------------------------------------


def test_a_tree_is_looked_through_then_deleted_then_looked_for(stub: Stub) -> None:
    assert deletion(stub) == Deleted(Usage(3, 6), None)
    assert stub.keys == OTHERS
    folders = ["7/run/artifacts", "7/run/artifacts/model", "7/run/artifacts/model/data"]
    assert stub.seen == [
        *(("GET", folder) for folder in folders),
        ("DELETE", "7/run/artifacts"),
        ("GET", "7/run/artifacts"),
    ]


def test_connections_are_kept(stub: Stub) -> None:
    kept = store(stub)
    for number in range(20):
        stub.keys[f"7/{number}/artifacts/f"] = b"x"
        kept.delete(target(stub, f"7/{number}/artifacts/"), root_of(stub))
    assert stub.connections == 1


@pytest.mark.parametrize(
    "path",
    [
        *("", "7/", "run/", "7", "7/run", "7/run/artifacts", "/7/run/artifacts/", "7//artifacts/"),
        *("7/../artifacts/", "7/./artifacts/", "../7/run/", "7/run/../", "7/%2e%2e/x/", "7/%2F/x/"),
        *(
            "7/a?b/x/",
            "7/a#b/x/",
            "7/a\nb/x/",
            "7/a\tb/x/",
            "7/\x7f/x/",
            "7/\udcff/x/",
            " 7/run/x/",
        ),
        *("7/run/x;/", "7/run/x?/", "FILE:x/run/artifacts/", "7/run//", "7/%25/x/"),
    ],
)
def test_what_the_server_may_take_for_another_path_is_never_asked(stub: Stub, path: str) -> None:
    kept = store(stub)
    unsafe = target(stub, path)
    for call in (
        lambda: kept.delete(unsafe, root_of(stub)),
        lambda: kept.measure(unsafe),
        lambda: kept.examine(unsafe),
    ):
        assert isinstance(failure(call), UnsafeTarget)
    kept.probe(unsafe.root, [unsafe.place])
    assert set(stub.seen) <= {("GET", each) for each in ("", "7", "run")}
    assert stub.keys == {**FILES, **OTHERS}


@pytest.mark.parametrize(
    "name",
    ["a b", "100%", "a+b&c=d", "n\u00e4me", "\U0001f680", "a;b", "..a", "[x]", "~", "a:b", "'\""],
)
def test_every_other_name_is_asked_for_as_it_is(stub: Stub, name: str) -> None:
    path = f"7/{name}/artifacts/"
    stub.keys[path + "f"] = b"x"
    assert deletion(stub, path).usage == Usage(1, 1)
    assert stub.paths("DELETE") == [f"7/{name}/artifacts"]
    assert stub.keys == {**FILES, **OTHERS}


def test_the_server_serves_below_a_path(stub: Stub) -> None:
    below = ProxyArtifactStore(stub.url + "/mlflow/", Options())
    error = failure(lambda: below.delete(target(stub), root_of(stub)))
    assert "with the path that it serves below" in str(error.hint)
    assert stub.paths("DELETE") == []


def test_a_permit_is_asked_before_each_deletion(stub: Stub) -> None:
    stub.faults["DELETE"] = deque([page(503), Fault("part")])
    asked = []
    order = Order(target(stub), root_of(stub), permit=lambda: asked.append(len(stub.seen)))
    [done] = store(stub).delete_many([order])
    assert done.result == Deleted(Usage(3, 6), None)
    assert len(asked) == len(stub.paths("DELETE")) == 3


def test_what_is_forbidden_meanwhile_stays(stub: Stub) -> None:
    def permit() -> None:
        if stub.paths("DELETE"):
            raise PermissionError("live again")

    stub.faults["DELETE"] = deque([Fault("part")])
    [done] = store(stub).delete_many([Order(target(stub), root_of(stub), permit)])
    assert isinstance(done.result, PermissionError)
    assert len(set(FILES) & set(stub.keys)) == 2


def test_many_trees_are_not_read_ahead_without_end(stub: Stub) -> None:
    made = []

    def orders() -> Iterator[Order]:
        for number in range(500):
            made.append(number)
            yield Order(target(stub, f"7/{number}/artifacts/"), root_of(stub), lambda: None)

    deletions = store(stub).delete_many(orders())
    next(deletions)
    assert len(made) < 100
    deletions.close()  # type: ignore[attr-defined]


# What may be answered ---------------------------------------------------------------------------

ELSEWHERE = page(302, "", Location="https://sso.example/login?token=secret")
NO_SERVE = page(503, "Endpoint disabled due to the server running with `--no-serve-artifacts`")
ANSWERS = [
    (page(200), TransientArtifactError, "is artifacts_proxy the URL of an MLflow server"),
    (page(200, ""), TransientArtifactError, "is artifacts_proxy the URL"),
    (page(200, "[]"), TransientArtifactError, "is artifacts_proxy the URL"),
    (page(200, '{"files": [{"path": "8/x/f"}]}'), TransientArtifactError, "is artifacts_proxy"),
    (page(200, '{"files": [], "files'), TransientArtifactError, "is artifacts_proxy the URL"),
    (page(200, "{}{}"), TransientArtifactError, "is artifacts_proxy the URL"),
    (ELSEWHERE, TransientArtifactError, "is that a login page?"),
    (page(401), TransientArtifactError, "MLFLOW_TRACKING_USERNAME and _PASSWORD"),
    (page(403, "Permission denied"), PermanentArtifactError, "manage the experiment"),
    (said(403, "PERMISSION_DENIED"), PermanentArtifactError, "manage the experiment"),
    (page(403, "Invalid Host header"), TransientArtifactError, "--allowed-hosts"),
    (page(404), TransientArtifactError, "is artifacts_proxy the URL of an MLflow server"),
    (page(404, '{"detail":"Not Found"}'), TransientArtifactError, "is artifacts_proxy the URL"),
    (said(404, "RESOURCE_DOES_NOT_EXIST"), TransientArtifactError, "--artifacts-destination there"),
    (page(405), TransientArtifactError, "too old to delete"),
    (page(407), TransientArtifactError, "a proxy in between"),
    (said(400, "INVALID_PARAMETER_VALUE", "Invalid path"), PermanentArtifactError, "None"),
    (page(413), PermanentArtifactError, "None"),
    (page(429), TransientArtifactError, "None"),
    (page(500), TransientArtifactError, "None"),
    (said(500, "INTERNAL_ERROR", "Not implemented yet"), PermanentArtifactError, "cannot delete"),
    (said(501, "NOT_IMPLEMENTED"), PermanentArtifactError, "cannot delete"),
    (NO_SERVE, TransientArtifactError, "start the server with --serve-artifacts"),
    (page(503), TransientArtifactError, "None"),
    (page(204, ""), TransientArtifactError, "None"),
    (page(504), TransientArtifactError, "None"),
    (Fault("reset"), TransientArtifactError, "None"),
    (Fault("half"), TransientArtifactError, "None"),
]


@pytest.mark.parametrize(("answer", "kind", "hint"), ANSWERS)
def test_nothing_is_deleted_where_nothing_can_be_listed(
    stub: Stub, answer: Fault, kind: type[ArtifactError], hint: str
) -> None:
    stub.always["GET"] = answer
    error = failure(lambda: deletion(stub))
    assert isinstance(error, kind)
    assert hint in str(error.hint)
    assert error.message.startswith(f"MLflow server {stub.authority}: listing '7/run/artifacts/'")
    assert "secret" not in f"{error.message}{error.hint}"
    assert "<html" not in error.message
    assert len(error.message) < 400
    assert stub.paths("DELETE") == []
    stub.always.clear()
    deletion(stub)
    assert stub.keys == OTHERS


@pytest.mark.parametrize(
    ("answer", "kind", "hint"),
    [each for each in ANSWERS if each[0].how == "answer" and each[0].status >= 300],
)
def test_a_deletion_that_somebody_refuses_is_told_and_can_be_made_good(
    stub: Stub, answer: Fault, kind: type[ArtifactError], hint: str
) -> None:
    stub.always["DELETE"] = answer
    error = failure(lambda: deletion(stub))
    assert isinstance(error, kind)
    assert hint in str(error.hint)
    assert stub.keys == {**FILES, **OTHERS}
    stub.always.clear()
    deletion(stub)
    assert stub.keys == OTHERS


@pytest.mark.parametrize("answer", [page(200), page(200, ""), page(204, ""), page(202, "{}")])
def test_what_somebody_else_says_is_well_is_looked_for(stub: Stub, answer: Fault) -> None:
    stub.always["DELETE"] = answer
    assert "still listed" in failure(lambda: deletion(stub)).message
    assert stub.keys == {**FILES, **OTHERS}


def test_what_the_server_says_it_deleted_and_still_lists_is_not_gone(stub: Stub) -> None:
    stub.always["DELETE"] = Fault("lie")
    error = failure(lambda: deletion(stub))
    assert isinstance(error, TransientArtifactError)
    assert "still listed" in error.message
    assert len(stub.paths("DELETE")) == proxy.ROUNDS
    stub.always.clear()
    assert deletion(stub).usage == Usage(3, 6)
    assert stub.keys == OTHERS


def test_what_is_left_is_asked_for_again(stub: Stub) -> None:
    stub.faults["DELETE"] = deque([Fault("part"), Fault("part")])
    assert deletion(stub).usage == Usage(3, 6)
    assert stub.keys == OTHERS


def test_an_error_over_what_is_gone_is_none(stub: Stub) -> None:
    """MLflow's Azure repository answers so where nothing is left."""
    gone = said(500, "INTERNAL_ERROR", "No such file or directory")
    stub.always["DELETE"] = gone
    assert deletion(stub, "7/missing/artifacts/") == Deleted(Usage(), None)
    assert failure(lambda: deletion(stub)).message.endswith("No such file or directory")


@pytest.mark.parametrize("how", ["broken", "reset"])
def test_a_deletion_that_was_not_answered_is_not_sent_again_at_once(stub: Stub, how: str) -> None:
    stub.faults["DELETE"] = deque([Fault(how)])
    error = failure(lambda: deletion(stub))
    assert isinstance(error, TransientArtifactError)
    assert len(stub.paths("DELETE")) == 1
    deletion(stub)
    assert stub.keys == OTHERS


def test_a_server_that_does_not_answer_is_not_waited_for_without_end(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_session, "READ_SECONDS", 0.1)
    monkeypatch.setattr(proxy_server, "DELETE_SECONDS", 0.1)
    monkeypatch.setattr(proxy_server, "ATTEMPTS", 2)
    stub.faults["GET"] = deque([Fault("slow")] * 2)
    stub.faults["DELETE"] = deque([Fault("slow")])
    for _ in range(2):
        error = failure(lambda: deletion(stub))
        assert isinstance(error, TransientArtifactError)
        assert "timed out" in error.message


def test_nobody_at_the_port_is_one_clear_sentence() -> None:
    down = ProxyArtifactStore("http://127.0.0.1:9", Options())
    place = Place("mlflow-artifacts", "127.0.0.1:9", "")
    error = failure(
        lambda: down.delete(Target(replace(place, path=TREE), place), Root(place, Probe(True)))
    )
    assert isinstance(error, TransientArtifactError)
    assert error.hint == "is artifacts_proxy right, and does it answer?"
    probe = down.probe(place, ())
    assert not probe.is_there
    assert "does it answer?" in str(probe.problem)


def test_patience_that_is_asked_for_is_had(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(proxy_server.time, "sleep", waited.append)
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    stub.faults["GET"] = deque([page(429, Retry_After="3"), page(503, Retry_After="soon")])
    stub.faults["DELETE"] = deque([page(503, Retry_After="2"), page(429, Retry_After=later)])
    deletion(stub)
    assert waited[:2] == [3.0, 2.0]
    assert 15 < waited[2] <= 20
    assert stub.keys == OTHERS


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_patience_without_end_is_not_had(stub: Stub, method: str) -> None:
    stub.faults[method] = deque([page(503, Retry_After="3600")])
    assert isinstance(failure(lambda: deletion(stub)), TransientArtifactError)
    assert len(stub.paths(method)) == 1


def test_a_server_that_fails_all_the_time_is_left_alone(stub: Stub) -> None:
    stub.always["GET"] = page(500)
    kept = store(stub)
    for _ in range(5):
        error = failure(lambda: kept.delete(target(stub), root_of(stub)))
    assert "not tried" in error.message
    assert len(stub.seen) < 10


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_nobody_is_followed_elsewhere(stub: Stub, method: str, status: int) -> None:
    with proxy_stub() as other:
        other.keys = dict(stub.keys)
        stub.always[method] = page(status, "", Location=other.url + "/7/run/artifacts")
        error = failure(lambda: deletion(stub, MLFLOW_TRACKING_TOKEN="secret"))
        assert other.url in str(error.hint)
        assert other.seen == []
        assert other.connections == 0


# What is missing --------------------------------------------------------------------------------


def test_a_missing_tree_is_success_where_the_server_lists_anything(stub: Stub) -> None:
    assert deletion(stub, "7/missing/artifacts/") == Deleted(Usage(), None)
    assert stub.keys == {**FILES, **OTHERS}


def test_a_missing_tree_proves_nothing_where_the_server_lists_nothing(stub: Stub) -> None:
    """An unmounted disk behind the server is an existing, empty folder."""
    stub.keys.clear()
    error = failure(lambda: deletion(stub))
    assert isinstance(error, TransientArtifactError)
    assert f"gcd doctor --accept-root mlflow-artifacts://{stub.authority}/" in str(error.hint)
    assert stub.paths("DELETE") == []
    found = root_of(stub, is_named_found=True)
    failure(lambda: store(stub).delete(target(stub), found))
    accepted = replace(root_of(stub), is_accepted=True)
    assert store(stub).delete(target(stub), accepted) == Deleted(Usage(), None)


def test_what_was_seen_a_moment_ago_is_proof_and_later_is_none(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store(stub)
    kept.delete(target(stub), root_of(stub))
    stub.keys.clear()
    assert kept.delete(target(stub), root_of(stub)) == Deleted(Usage(), None)
    monkeypatch.setattr(proxy, "FRESH", 0.0)
    assert isinstance(
        failure(lambda: kept.delete(target(stub), root_of(stub))), TransientArtifactError
    )


def test_a_probe_finds_what_is_named_and_gives_no_root_an_identity(stub: Stub) -> None:
    kept, root = store(stub), root_of(stub).place
    named = [replace(root, path=path) for path in ("7/missing/artifacts/", "7/run/artifacts/")]
    assert kept.probe(root, named) == Probe(True, is_named_found=True)
    assert kept.probe(root, named[:1]) == Probe(True)
    other = Place("mlflow-artifacts", "other:5000", "")
    assert not kept.probe(other, [replace(other, path=TREE)]).is_there


def test_a_probe_finds_out_that_the_server_cannot_delete(stub: Stub) -> None:
    stub.offered = "PUT, GET, HEAD, OPTIONS"
    probe = store(stub).probe(root_of(stub).place, ())
    assert probe.is_there
    assert "too old to delete" in str(probe.problem)
    stub.always["GET"] = page(401)
    probe = store(stub).probe(root_of(stub).place, ())
    assert (probe.is_there, "MLFLOW_TRACKING" in str(probe.problem)) == (False, True)


def test_another_server_has_not_these_files(stub: Stub) -> None:
    place = Place("mlflow-artifacts", "old:5000", "")
    old = Target(replace(place, path=TREE), place)
    error = failure(lambda: store(stub).delete(old, Root(place, Probe(True))))
    assert isinstance(error, TransientArtifactError)
    assert "with old:5000" in error.message
    assert isinstance(failure(lambda: store(stub).measure(old)), TransientArtifactError)
    assert "old:5000" in str(store(stub).probe(place, ()).problem)
    assert stub.seen == []


# What a tree holds ------------------------------------------------------------------------------


def test_folders_that_go_in_circles_are_counted_once_in_a_while(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's local repository follows links to folders when it lists."""
    monkeypatch.setattr(proxy, "WALKED", 30)
    circle = '{"files": [{"path": "again", "is_dir": true}, {"path": "f", "file_size": 2}]}'
    stub.always["GET"] = page(200, circle)
    assert store(stub).measure(target(stub)) == Usage(31, 62)
    monkeypatch.setattr(proxy, "WALKED", 10_000)
    assert store(stub).measure(target(stub)).objects == proxy.DEEPEST + 1


def test_what_cannot_be_asked_for_inside_goes_with_the_rest(stub: Stub) -> None:
    for name in ("tab\tbed", "%2e%2e", "..", "."):
        stub.keys[f"{TREE}{name}/f"] = b"xyz"
    assert deletion(stub).usage == Usage(3, 6)
    assert stub.keys == OTHERS
    assert set(stub.paths("GET")) <= {
        "7/run/artifacts",
        *(f"7/run/artifacts/{n}" for n in ("model", "model/data")),
    }


def test_a_folder_inside_that_the_server_does_not_list_goes_with_the_rest(stub: Stub) -> None:
    stub.faults["GET"] = deque([None, said(400, "INVALID_PARAMETER_VALUE", "outside")])
    assert deletion(stub).usage == Usage(1, 3)
    assert stub.keys == OTHERS


# Who asks ---------------------------------------------------------------------------------------

BASIC = "Basic dXM6cMOkc3M="  # us:päss


@pytest.mark.parametrize(
    ("environment", "sent"),
    [
        ({}, None),
        ({"USERNAME": "us", "PASSWORD": "päss"}, BASIC),
        ({"USERNAME": "us", "PASSWORD": "päss", "TOKEN": "t"}, BASIC),
        ({"USERNAME": "us", "TOKEN": "t"}, "Bearer t"),
        ({"TOKEN": "t"}, "Bearer t"),
    ],
)
def test_credentials_are_those_of_mlflow(
    stub: Stub, environment: dict[str, str], sent: str | None
) -> None:
    deletion(stub, **{f"MLFLOW_TRACKING_{name}": value for name, value in environment.items()})
    assert {each.get("authorization") for each in stub.headers} == {sent}


def test_credentials_may_be_in_mlflows_file(stub: Stub) -> None:
    file = Path(proxy_session.CREDENTIALS_FILE)
    file.write_text(
        "[mlflow]\nmlflow_tracking_username = us\nmlflow_tracking_password = päss\n", "utf-8"
    )
    deletion(stub)
    assert stub.headers[0]["authorization"] == BASIC
    deletion(stub, MLFLOW_TRACKING_TOKEN="t")  # somebody else than the file says
    assert stub.headers[-1]["authorization"] == "Bearer t"
    file.write_text("no ini file")
    deletion(stub, "7/run2/artifacts/")
    assert "authorization" not in stub.headers[-1]


@pytest.mark.parametrize("answer", [page(401), page(500), said(403, "PERMISSION_DENIED")])
def test_nobody_is_shown_a_credential(stub: Stub, answer: Fault) -> None:
    stub.always["GET"] = answer
    own = {"MLFLOW_TRACKING_USERNAME": "us", "MLFLOW_TRACKING_PASSWORD": "hidden"}
    error = failure(lambda: deletion(stub, **own))
    assert not re.search("hidden|aGlkZGVu", f"{error.message} {error.hint} {error.__cause__!r}")
    assert "hidden" not in repr(store(stub, **own).options)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"AUTH": "kubernetes"}, "MLFLOW_TRACKING_AUTH is not supported"),
        ({"AWS_SIGV4": "true"}, "MLFLOW_TRACKING_AWS_SIGV4 is not supported"),
        ({"TOKEN": "a\nb"}, "MLFLOW_TRACKING_TOKEN cannot be sent"),
        ({"SERVER_CERT_PATH": "/none"}, "a certificate cannot be used"),
        ({"CLIENT_CERT_PATH": "/none"}, "a certificate cannot be used"),
        ({"SERVER_CERT_PATH": "/none", "INSECURE_TLS": "true"}, "contradict each other"),
    ],
)
def test_what_cannot_be_used_is_told_once(environment: dict[str, str], sentence: str) -> None:
    own = {f"MLFLOW_TRACKING_{name}": value for name, value in environment.items()}
    options = Options(proxy="https://127.0.0.1:1", environment=own)
    assert sentence in str(Registry(options=options).problem("mlflow-artifacts"))


def test_certificates_are_checked_unless_mlflow_does_not() -> None:
    def verified(**environment: str) -> object:
        session = proxy_session.Session("https://127.0.0.1:1", environment, 1)
        return session.checks_tls, session.pool.conn_kw["ssl_context"].verify_mode.name  # type: ignore[attr-defined]

    assert verified() == (True, "CERT_REQUIRED")
    assert verified(MLFLOW_TRACKING_INSECURE_TLS="false") == (True, "CERT_REQUIRED")
    assert verified(MLFLOW_TRACKING_INSECURE_TLS="true") == (False, "CERT_NONE")


def test_the_server_is_not_asked_unless_somebody_said_so() -> None:
    with pytest.raises(BackendError) as caught:
        Registry().open("mlflow-artifacts")
    assert "--artifacts-proxy" in str(caught.value.hint)


def test_a_workspace_is_named_where_the_server_has_them(stub: Stub) -> None:
    path = "workspaces/team-a/7/run/artifacts/"
    for number, has in enumerate((False, True)):
        stub.has_workspaces = has
        stub.keys[path + "f"] = b"x"
        before = len(stub.headers)
        assert deletion(stub, path).usage == Usage(1, 1)
        assert {h.get("x-mlflow-workspace") for h in stub.headers[before:]} == {
            "team-a" if number else None
        }
    deletion(stub)
    assert "x-mlflow-workspace" not in stub.headers[-1]


@pytest.mark.parametrize(
    ("url", "environment", "remarks"),
    [
        ("http://127.0.0.1:1", {}, ["asked over HTTP, without credentials"]),
        ("http://127.0.0.1:1", {"TOKEN": "t"}, ["asked over HTTP, with bearer credentials"]),
        (
            "http://mlflow:1",
            {"USERNAME": "u", "PASSWORD": "p"},
            ["asked over HTTP, with basic credentials", "credentials are sent without encryption"],
        ),
        (
            "https://mlflow",
            {"INSECURE_TLS": "true"},
            ["asked over HTTP, without credentials", "certificates are not checked"],
        ),
    ],
)
def test_doctor_tells_how_the_server_is_spoken_to(
    url: str, environment: dict[str, str], remarks: list[str]
) -> None:
    own = {f"MLFLOW_TRACKING_{name}": value for name, value in environment.items()}
    asked = ProxyArtifactStore(url, Options(environment=own))
    assert [each.seen for each in asked.inspect(Place("mlflow-artifacts", "x", ""))] == remarks


def test_html_of_a_portal_is_told_without_its_marks(stub: Stub) -> None:
    stub.always["GET"] = page(500, HTML)
    assert failure(lambda: deletion(stub)).message.endswith("500 Sign in Welcome to the portal")
