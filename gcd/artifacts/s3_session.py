"""Opens clients for stores that speak S3's protocol, configured as MLflow configures its own.

It must never write a credential anywhere, nor change the process's environment.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.httpsession import create_urllib3_context, get_cert_path

from gcd.errors import BackendError, UnsafeTarget
from gcd.model import Place

SETTINGS = {
    "AWS_SHARED_CREDENTIALS_FILE": "credentials_file",
    "AWS_CONFIG_FILE": "config_file",
    "AWS_CA_BUNDLE": "ca_bundle",
}
"""Variables of a store that botocore takes as settings of a session."""
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
KNOWN = frozenset(
    {
        *SETTINGS,
        *KEYS,
        "AWS_PROFILE",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
    }
)
CONNECT_SECONDS, READ_SECONDS = 5, 60


class Address(NamedTuple):
    """A bucket and, where the URI says it, the endpoint that has it."""

    bucket: str
    endpoint: str | None
    region: str | None = None
    style: str | None = None


def address_of(place: Place) -> Address:
    """The bucket that a place is in. Raises UnsafeTarget where it names none."""
    bucket, _, host = place.authority.partition("@")
    if place.scheme == "s3":
        bucket, host = place.authority, ""
    if not bucket or (place.scheme != "s3" and not host):
        raise UnsafeTarget(f"{place.scheme}://{place.authority} names no bucket")
    if place.scheme == "r2":
        return Address(bucket, f"https://{host}", "auto", "virtual")
    if place.scheme == "b2":
        region = re.fullmatch(r"s3\.([^.]+)\.backblazeb2\.com", host)
        return Address(bucket, f"https://{host}", region and region[1], "path")
    return Address(bucket, None)


class Session:
    """Credentials and settings of one MLflow store: its own variables over the process's."""

    def __init__(self, environment: Mapping[str, str], requests: int) -> None:
        self.environment = environment
        self.requests = requests
        unknown = sorted(n for n in environment if n.startswith("AWS_") and n not in KNOWN)
        if unknown:
            hint = "set it for the process, or name a profile by AWS_PROFILE"
            raise BackendError(f"a store cannot have {', '.join(unknown)} for itself", hint=hint)
        inner = self._inner = botocore.session.Session()
        for name, setting in SETTINGS.items():
            if environment.get(name):
                inner.set_config_variable(setting, environment[name])
        key, secret, token = (environment.get(name) or None for name in KEYS)
        if (key is None) != (secret is None):
            hint = f"a store has {KEYS[0]} and {KEYS[1]}, or neither"
            raise BackendError("the credentials cannot be used: half of a pair", hint=hint)
        try:
            self.session = boto3.Session(
                aws_access_key_id=key,
                aws_secret_access_key=secret,
                aws_session_token=token,
                region_name=self._first("AWS_REGION", "AWS_DEFAULT_REGION"),
                botocore_session=inner,
                profile_name=self._first("AWS_PROFILE"),
            )
        except BotoCoreError as error:
            hint = "check AWS_PROFILE and the files that it is looked for in"
            raise BackendError(f"the credentials cannot be used: {error}", hint=hint) from error

    def _first(self, *names: str) -> str | None:
        return next((self.environment[n] for n in names if self.environment.get(n)), None)

    @property
    def owner(self) -> dict[str, str]:
        """What is said in every call of whose the bucket must be."""
        owner = self.environment.get("MLFLOW_S3_EXPECTED_BUCKET_OWNER")
        return {"ExpectedBucketOwner": owner} if owner else {}

    @property
    def checks_tls(self) -> bool:
        """Whether certificates are looked at."""
        return self.environment.get("MLFLOW_S3_IGNORE_TLS", "").lower() not in ("true", "1")

    def credentials_source(self) -> str | None:
        """Where the credentials come from, in botocore's word; None if there are none."""
        found = self.session.get_credentials()
        return None if found is None else str(found.method)

    def credentials(self) -> Any:
        """The credentials that clients use, which renew themselves; None without any."""
        try:
            return self.session.get_credentials()
        except BotoCoreError:  # the client tells it better, once it needs them
            return None

    def trust(self) -> ssl.SSLContext:
        """Whose certificates are believed, as a client of this session believes them."""
        context: ssl.SSLContext = create_urllib3_context()
        if self.checks_tls:
            bundle = self._inner.get_config_variable("ca_bundle") or True
            context.load_verify_locations(get_cert_path(bundle))
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def client(self, address: Address) -> Any:
        """A client for the endpoint of an address. It never tries again by itself: gcd does."""
        endpoint = address.endpoint or self._first(
            "MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"
        )
        style = address.style or self._first("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE") or "auto"
        client = self.session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=address.region or self.session.region_name,
            verify=None if self.checks_tls else False,
            config=Config(
                signature_version=self._signature(),
                s3={"addressing_style": style},
                retries={"total_max_attempts": 1, "mode": "standard"},
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                max_pool_connections=self.requests,
                user_agent_extra="gcd",
            ),
        )
        client.meta.events.register("before-sign.s3.DeleteObjects", _add_md5)
        return client

    def _signature(self) -> Any:
        version = self._first("MLFLOW_EXPERIMENTAL_S3_SIGNATURE_VERSION") or "s3v4"
        return UNSIGNED if version.lower() == "unsigned" else version


def endpoint_name(client: Any) -> str:
    """Host and port that a client talks to; the same word for all of AWS's regions."""
    host = urlsplit(client.meta.endpoint_url).netloc
    return "aws" if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else host


def _add_md5(request: Any, **_: Any) -> None:
    """Older look-alikes want Content-MD5, where newer ones take the CRC32 that boto3 sends."""
    if "Content-MD5" not in request.headers:
        digest = hashlib.md5(request.body, usedforsecurity=False).digest()
        request.headers["Content-MD5"] = b64encode(digest).decode()
