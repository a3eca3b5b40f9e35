"""Says in gcd's errors what Azure's Blob Storage refused, and what mends it.

It must never take a refusal for an empty answer, nor hold a credential in what it says.
"""

from __future__ import annotations

import re

from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

from gcd.artifacts.buckets import Denied, NoBucket, NotOffered, Refused
from gcd.errors import (
    ArtifactError,
    LockedArtifactError,
    PermanentArtifactError,
    TransientArtifactError,
)

FOREIGN = (AzureError, OSError, ValueError, TypeError, AttributeError, LookupError)
"""What comes out of a call; the last four where a reply is not what the SDK expects."""
GONE = frozenset({"BlobNotFound", "ResourceNotFound", "PathNotFound"})
ABSENT = frozenset({"ContainerNotFound", "FilesystemNotFound"})
THROTTLING = frozenset({"ServerBusy", "TooManyRequests", "IngressLimitExceeded"})
PASSING = frozenset({"InternalError", "OperationTimedOut", "ContainerBeingDeleted"})
NOT_OFFERED = frozenset(
    {
        "BlobApiNotYetSupportedForHierarchicalNamespaceAccounts",
        "EndpointUnsupportedAccountFeatures",
        "FeatureNotSupported",
        "NotImplemented",
        "UnsupportedHeader",
        "UnsupportedHttpVerb",
        "UnsupportedQueryParameter",
        "InvalidQueryParameterValue",
    }
)
BUSY = frozenset(
    {
        "SnapshotsPresent",
        "PendingCopyOperation",
        "DirectoryIsNotEmpty",
        "DirectoryNotEmpty",
        "OperationNotSupportedOnDirectory",
        "ConditionNotMet",
        "OperationNotAllowedOnRootBlob",
    }
)
"""Codes by which one blob stays for now; the last one is of a version that is the current one."""
FOLDER = frozenset({"DirectoryIsNotEmpty", "DirectoryNotEmpty", "OperationNotSupportedOnDirectory"})
"""Codes by which an account with real folders gives itself away."""
WHOLE_STORE = {
    "AuthenticationFailed": "check the account key, or whether the SAS token expired, and this host's clock",
    "InvalidAuthenticationInfo": "check the credentials, and this host's clock",
    "NoAuthenticationInformation": "give the credentials that MLflow uses",
    "PublicAccessNotPermitted": "give the credentials that MLflow uses",
    "KeyBasedAuthenticationNotPermitted": "the account takes no keys: give an identity",
    "AccountIsDisabled": "enable the account",
    "ContainerDisabled": "enable the container",
}
"""Codes that say nothing of one tree: what mends them makes everything go on by itself."""
ENDPOINT = "is it Azure's Blob Storage, is the endpoint right, and does it answer?"
MESSAGE_CHARACTERS = 200


class Busy(TransientArtifactError):
    """The store answers that this one blob stays for now: a lease, a folder that is not empty."""


class NotAuthenticated(TransientArtifactError):
    """The store does not believe the credentials, or not here."""


def code_of(error: BaseException) -> str:
    """The code of an error that the store answered with, empty for one that it did not."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def translated(error: BaseException, where: str, role: str) -> ArtifactError:
    """An SDK's error as gcd's. `role` is what the request needs."""
    response = getattr(error, "response", None)
    is_identitys = isinstance(error, ClientAuthenticationError) and not code_of(error)
    if isinstance(error, HttpResponseError) and response is not None and not is_identitys:
        status = int(getattr(response, "status_code", 0) or 0)
        if status >= 300:
            return of_code(code_of(error), error.message or "", where, role, status)
    return of_library(error, where)


def of_code(code: str, text: str, where: str, role: str, status: int = 0) -> ArtifactError:
    """The error for a code that the store answered with, for a request or for one blob of it."""
    said = without_secrets(f"{where}: {code or status} {_sentence(text)}".strip())
    if code in ABSENT:
        return NoBucket(said, hint="create the container, or correct the URI or the credentials")
    if code in WHOLE_STORE:
        return NotAuthenticated(said, hint=WHOLE_STORE[code])
    if code in THROTTLING or status in (429, 503):
        return Refused(said)
    if code in NOT_OFFERED or status in (405, 501):
        return NotOffered(said)
    if code in BUSY or code.startswith("Lease"):
        return Busy(said, hint=None if code in BUSY else "release or break the lease")
    if code in PASSING or status >= 500:
        return TransientArtifactError(said)
    if "Immutable" in code or "LegalHold" in code:
        return LockedArtifactError(said, hint="remove the policy or the hold, then `gcd retry`")
    if status in (401, 403) or code.startswith(("Authorization", "InsufficientAccount")):
        return Denied(said, hint=f"allow {role}; is this host let through the account's firewall?")
    if status < 400 or status == 404:  # nobody there knows of containers
        return TransientArtifactError(said, hint=ENDPOINT)
    return PermanentArtifactError(said)


def of_library(error: BaseException, where: str) -> ArtifactError:
    """The error for what never came to be an answer."""
    text = str(error)
    reason = re.search(r"\[Errno -?\d+\] ([^')\"]+)", text)
    what = reason[1] if reason else f"{type(error).__name__}: {_sentence(text)}"
    said = without_secrets(f"{where}: {what}")
    if isinstance(error, UnicodeError):
        return PermanentArtifactError(said)
    if isinstance(error, ClientAuthenticationError):
        hint = "check the credentials: connection string, access key, SAS token or identity"
        return TransientArtifactError(said, hint=hint)
    if "SSL" in text:
        hint = "REQUESTS_CA_BUNDLE names the certificates to trust"
        return TransientArtifactError(said, hint=hint)
    return TransientArtifactError(said, hint=ENDPOINT)


def without_secrets(text: str) -> str:
    """A text cut to a readable length, without query strings: a SAS token is one."""
    text = re.sub(r"\?\S*", "?…", text)
    text = re.sub(r"(?i)\b(sig|AccountKey|SharedAccessSignature)=[^\s;&]*", r"\1=…", text)
    return text[:MESSAGE_CHARACTERS]


def _sentence(text: str) -> str:
    """The first line: what follows are ids and times of the request."""
    return text.strip().partition("\n")[0].strip()
