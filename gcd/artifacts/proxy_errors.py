"""Says in gcd's errors what an MLflow server, or somebody in its stead, answered, and what mends it.

It must never take a refusal for an empty answer, nor hold a credential in what it says.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError

from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError

FOREIGN = (HTTPError, OSError)
"""What comes out of a request that was not answered, or not to the end."""
PASSING = frozenset({408, 409, 425, 499})
NO_SERVER = "is artifacts_proxy the URL of an MLflow server, with the path that it serves below?"
DESTINATION = "or give artifacts_destination, which needs no server"
MESSAGE_CHARACTERS = 200


class Refused(TransientArtifactError):
    """The server did nothing, and asks for patience: for so many seconds, if it says that."""

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message)
        self.seconds = seconds


class Answer(NamedTuple):
    """A reply that is no success."""

    status: int
    text: str
    """The beginning of its body."""
    retry_after: str | None = None
    location: str | None = None

    @property
    def code(self) -> str:
        """MLflow's own code for the error, empty where it was not MLflow that answered."""
        return str(self._said().get("error_code", ""))

    @property
    def message(self) -> str:
        """What it says, in one line."""
        said = self._said()
        text = str(said.get("message") or said.get("detail") or self.text)
        return " ".join(re.sub(r"<[^<>]*>", " ", text).split())[:MESSAGE_CHARACTERS]

    def _said(self) -> dict[str, object]:
        try:
            found = json.loads(self.text)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def of_answer(answer: Answer, where: str) -> ArtifactError:
    """The error for a reply."""
    status = answer.status
    said = f"{where}: {status} {answer.code} {answer.message}".replace("  ", " ").strip()
    if 300 <= status < 400:
        return TransientArtifactError(f"{where}: {status}, elsewhere", hint=_elsewhere(answer))
    if hint := _whole_server(answer):
        return TransientArtifactError(said, hint=hint)
    if status in (429, 503):
        return Refused(said, _seconds(answer.retry_after))
    if status == 403:
        hint = (
            "let the user of MLFLOW_TRACKING_USERNAME manage the experiment, or be an administrator"
        )
        return PermanentArtifactError(said, hint=hint)
    if status == 501 or (answer.code and "not implemented" in answer.message.lower()):
        hint = "the server cannot delete there: give artifacts_destination"
        return PermanentArtifactError(said, hint=hint)
    if status >= 500 or status in PASSING or status < 300:
        return TransientArtifactError(said)
    if answer.code == "RESOURCE_DOES_NOT_EXIST":
        # A bucket that is gone is told so: it proves nothing of the tree.
        return TransientArtifactError(said, hint="is the server's --artifacts-destination there?")
    return PermanentArtifactError(said)


def _whole_server(answer: Answer) -> str | None:
    """The mend where an answer says nothing of one tree: with it everything goes on by itself."""
    text = answer.text.lower()
    if answer.status == 401:
        return "give the credentials that MLflow uses: MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN"
    if answer.status == 403 and "host header" in text:
        return "let the server take this host's name: its --allowed-hosts"
    if answer.status == 407:
        return "a proxy in between wants credentials: let gcd reach the server without it"
    if answer.status == 503 and "serve-artifacts" in text:
        return f"start the server with --serve-artifacts, {DESTINATION}"
    if answer.status == 405:
        return f"the server is too old to delete: MLflow 2.0 can; {DESTINATION}"
    if answer.status in (404, 410) and not answer.code:
        return NO_SERVER
    return None


def _elsewhere(answer: Answer) -> str:
    host = re.match(r"[a-z]+://[^/?#@]*", answer.location or "")
    to = f" to {host[0]}" if host else ""
    return f"the server sends gcd{to}, where it does not go: is that a login page? {NO_SERVER}"


def _seconds(text: str | None) -> float | None:
    """What Retry-After says, None where it says nothing that can be read."""
    if text is None:
        return None
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", text):
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    zoned = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (zoned - datetime.now(UTC)).total_seconds())


def of_library(error: BaseException, where: str) -> ArtifactError:
    """The error for what never came to be an answer."""
    said = f"{where}: {type(error).__name__}: {error}"[:MESSAGE_CHARACTERS]
    match error:
        case SSLError():
            hint = "MLFLOW_TRACKING_SERVER_CERT_PATH names the certificates to trust"
        case NewConnectionError() | ConnectTimeoutError():
            hint = "is artifacts_proxy right, and does it answer?"
        case _:
            return TransientArtifactError(said)
    return TransientArtifactError(said, hint=hint)


def no_listing(where: str, why: object) -> TransientArtifactError:
    """The error for an answer that says it is well and is not what was asked for."""
    return TransientArtifactError(f"{where}: the reply is no listing: {why}", hint=NO_SERVER)
