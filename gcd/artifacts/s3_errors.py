"""Says in gcd's errors what a store that speaks S3's protocol refused, and what mends it.

It must never take a refusal for an empty answer, nor hold a credential in what it says.
"""

from __future__ import annotations

import ssl

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from gcd.artifacts.buckets import Denied, NoBucket, NotOffered, Refused
from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError

FOREIGN = (BotoCoreError, ClientError, ResponseParserError, HTTPError, OSError, ValueError)
"""What comes out of a call; ValueError where a reply holds what is no date or no number."""
GONE = frozenset({"NoSuchKey", "NoSuchVersion", "NoSuchUpload"})
THROTTLING = frozenset(
    {
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestThrottled",
        "RequestLimitExceeded",
        "TooManyRequests",
        "ServiceUnavailable",
        "429",
        "503",
    }
)
PASSING = frozenset({"InternalError", "RequestTimeout", "OperationAborted", "500", "502", "504"})
NOT_OFFERED = frozenset({"NotImplemented", "MethodNotAllowed", "XNotImplemented", "501", "405"})
DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "UnauthorizedAccess", "Forbidden", "403"})
WHOLE_STORE = {
    "NoSuchBucket": "create the bucket, or correct the endpoint (MLFLOW_S3_ENDPOINT_URL)",
    "InvalidAccessKeyId": "check the access key, and that the endpoint is the one it belongs to",
    "SignatureDoesNotMatch": "check the secret key",
    "InvalidClientTokenId": "check the access key",
    "InvalidToken": "renew the session token",
    "ExpiredToken": "renew the session token",
    "TokenRefreshRequired": "renew the session token",
    "RequestTimeTooSkewed": "set this host's clock by NTP",
    "AuthorizationHeaderMalformed": "check the region (AWS_DEFAULT_REGION)",
    "PermanentRedirect": "check the region and the endpoint",
    "IllegalLocationConstraintException": "check the region (AWS_DEFAULT_REGION)",
}
"""Codes that say nothing of one tree: what mends them makes everything go on by itself."""
MESSAGE_CHARACTERS = 200


def code_of(error: BaseException) -> str:
    """The code of an error that the store answered with, empty for one that it did not."""
    if not isinstance(error, ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))


def translated(error: BaseException, where: str, action: str) -> ArtifactError:
    """An SDK's error as gcd's. `action` is the permission that the request needs."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        text = str(error.response.get("Error", {}).get("Message", ""))
        return of_code(code_of(error), text, where, action, status)
    return of_library(error, where)


def of_code(code: str, text: str, where: str, action: str, status: int = 0) -> ArtifactError:
    """The error for a code that the store answered with, for a request or for one key of it."""
    said = f"{where}: {code or status} {text}".strip()[:MESSAGE_CHARACTERS]
    if code == "NoSuchBucket":
        return NoBucket(said, hint=WHOLE_STORE[code])
    if code in WHOLE_STORE:
        return TransientArtifactError(said, hint=WHOLE_STORE[code])
    if code in THROTTLING or status in (429, 503):
        return Refused(said)
    if code in NOT_OFFERED or status in (405, 501):
        return NotOffered(said)
    if code in PASSING or status >= 500:
        return TransientArtifactError(said)
    if code in DENIED or status == 403:
        return Denied(said, hint=f"allow {action}")
    return PermanentArtifactError(said)


def of_library(error: BaseException, where: str) -> ArtifactError:
    """The error for what never came to be an answer."""
    what = f"{type(error).__name__}: {error}"[:MESSAGE_CHARACTERS]
    said = f"{where}: {what}"
    match error:
        case NoCredentialsError() | PartialCredentialsError() | ProfileNotFound():
            hint = "give the credentials that MLflow uses: environment, profile or role"
            return TransientArtifactError(said, hint=hint)
        case ParamValidationError():
            return PermanentArtifactError(said)
        case SSLError() | ssl.SSLError():
            hint = "AWS_CA_BUNDLE names the certificates to trust"
            return TransientArtifactError(said, hint=hint)
    return TransientArtifactError(said, hint="is the endpoint right, and does it answer?")
