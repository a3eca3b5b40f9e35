"""Says in gcd's errors what Google Cloud Storage refused, and what mends it.

It must never take a refusal for an empty answer, nor hold a credential in what it says.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import (
    DefaultCredentialsError,
    GoogleAuthError,
    RefreshError,
    TransportError,
)
from requests import Response
from requests.exceptions import RequestException, SSLError
from urllib3.exceptions import HTTPError

from gcd.artifacts.buckets import Denied, NoBucket, NotOffered, Refused
from gcd.errors import (
    ArtifactError,
    LockedArtifactError,
    PermanentArtifactError,
    TransientArtifactError,
)

FOREIGN = (
    *(GoogleAPICallError, GoogleAuthError, RequestException, HTTPError, OSError),
    *(ValueError, TypeError, AttributeError, LookupError),
)
"""What comes out of a call; the second half where the SDK cannot make sense of a reply."""
CREDENTIALS = (
    "give the credentials that MLflow uses: GOOGLE_APPLICATION_CREDENTIALS, "
    "`gcloud auth application-default login`, or a service account of this machine"
)
RENEW = "renew the credentials: a new key file, or `gcloud auth application-default login`"
ENDPOINT = "is the endpoint (STORAGE_EMULATOR_HOST, if it is set) right, and does it answer?"
HELD = frozenset({"retentionPolicyNotMet", "objectUnderActiveHold", "objectUnderRetention"})
HELD_WORDS = re.compile(r"retention policy|object retention|is under active .*hold", re.IGNORECASE)
"""What the store says of what it holds where it gives no better reason than that it is forbidden."""
THROTTLING = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded"})
WHOLE_STORE = {
    "authError": RENEW,
    "accountDisabled": "see to the billing of the bucket's project",
    "userProjectMissing": "the bucket's requester pays, which MLflow cannot: switch that off",
    "userProjectAccountProblem": "see to the billing of the project that pays",
    "accessNotConfigured": "switch the Cloud Storage API on in the credentials' project",
    "vpcServiceControls": "run gcd inside of the service perimeter, or let it in",
    "domainPolicy": "ask the administrator of the Google domain",
    "sslRequired": "use an endpoint that begins with https:",
}
"""Reasons that say nothing of one tree: what mends them makes everything go on by itself."""
UNTIL = re.compile(r"until (\d{4}-\S+?)[.,]?(?:\s|$)")
MESSAGE_CHARACTERS = 200


class Said(NamedTuple):
    """What a reply says went wrong."""

    status: int
    reason: str
    text: str
    is_the_stores: bool
    """Whether it is worded as the store does; a proxy has other words."""


def said_by(reply: Response) -> Said:
    """What a reply says; nothing of it is trusted to be there."""
    try:
        error = reply.json()["error"]
        first = (error.get("errors") or [{}])[0]
        return Said(
            reply.status_code, str(first.get("reason") or ""), str(error.get("message")), True
        )
    except (ValueError, TypeError, LookupError, AttributeError):
        return Said(reply.status_code, "", reply.reason or "", not reply.content)


def of_reply(reply: Response, where: str, permission: str) -> ArtifactError:
    """The error for a reply to a request, or to one part of it. `permission` is what it needs."""
    status, reason, text, is_the_stores = said_by(reply)
    said = f"{where}: {reason or status} {text}".strip()[:MESSAGE_CHARACTERS]
    if reason in HELD or (status == 403 and HELD_WORDS.search(text)):
        return _held(said, text)
    if reason in THROTTLING or status in (429, 503):
        return Refused(said)
    if status in (405, 501):
        return NotOffered(said)
    if reason in WHOLE_STORE or status == 401:
        return TransientArtifactError(said, hint=WHOLE_STORE.get(reason, CREDENTIALS))
    if status in (408, 409, 412) or status >= 500:
        return TransientArtifactError(said)
    if not is_the_stores:
        return TransientArtifactError(f"{said}, and not as the store says it", hint=ENDPOINT)
    if status == 404:
        return NoBucket(said, hint="create the bucket, or correct its name")
    if status == 403:
        return Denied(said, hint=f"allow {permission}")
    return PermanentArtifactError(said)


def _held(said: str, text: str) -> LockedArtifactError:
    """What the store itself holds, until when it says."""
    if found := UNTIL.search(text):
        try:
            return LockedArtifactError(said, until=datetime.fromisoformat(found[1]))
        except ValueError:
            pass
    return LockedArtifactError(said, hint="when the store lets it go: `gcd retry`")


def translated(error: BaseException, where: str, permission: str) -> ArtifactError:
    """An SDK's error as gcd's."""
    if isinstance(error, GoogleAPICallError) and isinstance(error.response, Response):
        return of_reply(error.response, where, permission)
    return of_library(error, where)


def of_library(error: BaseException, where: str) -> ArtifactError:
    """The error for what never came to be an answer."""
    detail = error.args[0] if error.args else ""  # what follows in it may be a whole reply
    detail = str(error) if isinstance(detail, int) else getattr(detail, "reason", detail)
    said = f"{where}: {type(error).__name__}: {detail}"[:MESSAGE_CHARACTERS]
    match error:
        case UnicodeEncodeError():
            return PermanentArtifactError(f"{where}: no valid Unicode")
        case TransportError():
            hint = "does the network let gcd reach what gives out its tokens?"
            return TransientArtifactError(said, hint=hint)
        case RefreshError():
            return TransientArtifactError(said, hint=RENEW)
        case DefaultCredentialsError() | GoogleAuthError():
            return TransientArtifactError(said, hint=CREDENTIALS)
        case SSLError():
            hint = "REQUESTS_CA_BUNDLE names the certificates to trust"
            return TransientArtifactError(said, hint=hint)
        case RequestException() | HTTPError() | OSError():
            return TransientArtifactError(said, hint=ENDPOINT)
    text = f"{where}: the reply cannot be read ({type(error).__name__})"
    return TransientArtifactError(text, hint=ENDPOINT)
