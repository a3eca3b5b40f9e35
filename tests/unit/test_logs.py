"""Logs: no secret is ever written, whatever it hides in, and a record never stops a cycle."""

from __future__ import annotations

import json
import logging
import os
import pty
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcd.logs import StderrHandler, configure, mask

SECRET = "hunter2"
logger = logging.getLogger("gcd.test")


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:{}@db/mlflow",
        "postgresql+psycopg2://me:{}@db:5432/mlflow?sslmode=require",
        "could not open postgresql://me:{}@db/mlflow: refused",
        "two: mysql://a:{}@h/x and mssql://b:{}@h/y",
        "postgresql://a:{}@h,postgresql://b:{}@k",
        "['postgresql://a:{}@h','mysql://b:{}@k']",
        "redis://:{}@cache",
        "postgresql://ann@corp.com:{}@host/db",
        "postgresql:/me:{}@db/mlflow",
        "postgresql:me:{}@db/mlflow",
        "postgresql:///me:{}@db/mlflow",
        "https://bucket.example/key?X-Amz-Signature={}&X-Amz-Credential={}&X-Amz-Date=1",
        "https://b/k?AWSAccessKeyId={}&Signature={}&Expires=1",
        "s3://k?aws_secret_access_key={}&aws_session_token={}&aws_access_key_id={}",
        "https://account.blob.core.windows.net/c?sv=2020&sig={}&se=1",
        "postgresql://db/mlflow?user=me&password={}&sslpassword={}",
        "https://gitlab/api?access_token={}&token={}&api_key={}&client_secret={}",
        "host=db user=me password={} dbname=x",
        "host=db password='{} and more' dbname=x",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Dme%3BPWD%3D{}",
        "DRIVER=x;UID=me;PWD={{{}}};Server=y",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={}==;EndpointSuffix=core",
        "connect({{'user': 'me', 'password': '{}', 'host': 'db'}})",
        '{{"password": "{} and more", "host": "db"}}',
    ],
)
def test_secrets_are_masked(text: str) -> None:
    masked = mask(text.replace("{}", SECRET).replace("{{", "{").replace("}}", "}"))
    assert SECRET not in masked
    assert "and more" not in masked
    assert masked.count("***") == text.count("{}")
    assert mask(masked) == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://me:pw@db/mlflow?x=1", "postgresql://me:***@db/mlflow?x=1"),
        ("postgresql://me:p@ss/w:r#d?@db/mlflow", "postgresql://me:***@db/mlflow"),
        ("postgresql://me:two words@db/mlflow", "postgresql://me:***@db/mlflow"),
        ("postgresql://me:12 w@rds@db/mlflow", "postgresql://me:***@db/mlflow"),
        ("no answer from mysql://me:two words@db", "no answer from mysql://me:***@db"),
        ("(mysql://me:pw@db) failed", "(mysql://me:***@db) failed"),
        ("'https://a/x?sig=abc': denied", "'https://a/x?sig=***': denied"),
        ("x?password=a&next=b", "x?password=***&next=b"),
    ],
)
def test_no_more_than_the_secret_is_masked(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "postgresql://mlflow@db:5432/mlflow",
        "sqlite:////srv/mlflow/mlflow.db",
        "file:///srv/a:b@c/x",
        "s3://bucket/2026-01-01T10:00:00@x/artifacts",
        "wasbs://container@account.blob.core.windows.net/a:b@c",
        "http://tracking:5000 does not answer, ask ops@example.com",
        "password authentication failed for user 'me'",
        "12:30:00 mail me@example.com",
        "retention.older_than = 30d, design=3, tokens=7",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert mask(text) == text


awkward = st.text(
    alphabet=string.ascii_letters + string.digits + "!$%^&*()_-+[]{}#~'\"@:/?;.,<>|\\`= é",
    min_size=1,
    max_size=20,
).filter(lambda text: "://" not in text)


@given(awkward.filter(lambda text: text.strip() == text))
def test_any_password_in_a_uri_is_masked(password: str) -> None:
    secret = f"Zq{password}qZ"
    masked = mask(f"postgresql://me:{secret}@db/mlflow")
    assert masked == "postgresql://me:***@db/mlflow"
    encoded = mask(f"at postgresql://me:{quote(secret, safe='')}@db/mlflow: no")
    assert encoded == "at postgresql://me:***@db/mlflow: no"


@given(awkward)
def test_any_encoded_parameter_is_masked(password: str) -> None:
    secret = quote(f"Zq{password}qZ", safe="")
    masked = mask(f"https://h/p?a=1&sslpassword={secret}&b=2")
    assert masked == "https://h/p?a=1&sslpassword=***&b=2"


pieces = st.sampled_from(
    ":// : @ / a 1 ' \" , password = sig= { } *** mysql: %3D & ? ; \udcff é \n  ".split(" ")  # noqa: SIM905
)


@given(st.lists(pieces, max_size=30).map("".join))
def test_masking_twice_masks_nothing_more(text: str) -> None:
    assert mask(mask(text)) == mask(text)


def test_a_long_text_is_masked_in_no_time() -> None:
    started = time.monotonic()
    for piece in ("a", "://a:", "://a:@", "password", "'", "postgresql:", "@", ":@://", "pwd='"):
        mask(piece * (100_000 // len(piece)))
    assert time.monotonic() - started < 30


# -- records -------------------------------------------------------------------------------------


class Told:
    """What was written to stderr so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Told]:
    root, gcd = logging.getLogger(), logging.getLogger("gcd")
    before = root.level, gcd.level
    yield Told(capsys)
    for handler in [each for each in root.handlers if isinstance(each, StderrHandler)]:
        root.removeHandler(handler)
    root.setLevel(before[0])
    gcd.setLevel(before[1])


URI = f"postgresql://me:{SECRET}@db/mlflow"


def test_a_json_line_has_all_fields(stderr: Told) -> None:
    configure("info", "json")
    logger.warning("swept %s", "run-1", extra={"cycle": 7, "store": URI, "entity": "run-1"})
    line = json.loads(stderr.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "gcd.test",
        "event": "swept run-1",
        "cycle": 7,
        "store": "postgresql://me:***@db/mlflow",
        "entity": "run-1",
    }


@pytest.mark.parametrize("format", ["text", "json"])
def test_secrets_in_messages_arguments_and_exceptions_are_masked(stderr: Told, format: str) -> None:
    configure("debug", format)
    logger.info(f"in the message {URI}")  # noqa: G004, that somebody does it is what is tested
    logger.info("an argument: %s", URI)
    logger.info("a mapping: %(uri)s", {"uri": URI})
    logger.info("with spaces: %s, x@y", f"mysql://me:12 {SECRET}@db")
    logger.info("an object: %s", ValueError(URI))
    try:
        try:
            raise ValueError(URI)
        except ValueError as error:
            raise RuntimeError("outer") from error
    except RuntimeError:
        logger.exception("it failed")
    written = stderr.getvalue()
    assert SECRET not in written
    assert written.count("postgresql://me:***@db/mlflow") == 5
    assert "RuntimeError: outer" in written
    assert "Traceback" in written


def test_each_record_is_one_json_line_whatever_it_says(stderr: Told) -> None:
    configure("debug", "json")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("first\nsecond \x1b[31m \udcff")
    line = json.loads(stderr.getvalue())
    assert stderr.getvalue().count("\n") == 1
    assert line["event"] == r"first\nsecond \x1b[31m \udcff"
    assert line["error"].endswith("ValueError: two\nlines")


def test_a_text_forges_no_line(stderr: Told) -> None:
    configure("info", "text")
    logger.info("run %s", "x\n2026-01-01 00:00:00 error: forged \x1b[2J")
    assert stderr.getvalue().count("\n") == 1
    assert "\x1b" not in stderr.getvalue()


def test_text_has_time_level_and_event(stderr: Told) -> None:
    configure("info", "text")
    logger.warning("kept run %s", "r")
    day, time, rest = stderr.getvalue().split(" ", 2)
    assert (len(day), len(time)) == (10, 8)
    assert rest == "warning: kept run r\n"


def test_a_call_that_contradicts_its_format_is_told_masked(stderr: Told) -> None:
    configure("info", "text")
    # Only gcd's handler gets these: pytest's own would raise.
    (handler,) = (each for each in logging.getLogger().handlers if isinstance(each, StderrHandler))
    calls = [("%d runs of %s", ("many", URI)), ("too few %s %s", (URI,)), (URI, ("too many",))]
    for message, arguments in calls:
        record = logging.LogRecord("gcd", logging.INFO, __file__, 1, message, arguments, None)
        handler.handle(record)
    assert SECRET not in stderr.getvalue()
    assert stderr.getvalue().count("me:***@db") == 3


def test_the_level_is_gcds_and_others_only_warn(stderr: Told) -> None:
    configure("debug", "text")
    logger.debug("ours")
    logging.getLogger("sqlalchemy.engine").info("SELECT secrets")
    logging.getLogger("sqlalchemy.pool").warning("theirs")
    assert "ours" in stderr.getvalue()
    assert "theirs" in stderr.getvalue()
    assert "SELECT" not in stderr.getvalue()
    configure("error", "text")
    logger.warning("quiet")
    assert "quiet" not in stderr.getvalue()


def test_configuring_twice_writes_once(stderr: Told) -> None:
    configure("info", "text")
    configure("info", "json")
    logger.info("once")
    assert json.loads(stderr.getvalue())["event"] == "once"


@pytest.mark.parametrize("format", ["text", "json"])
def test_journald_gets_a_priority_on_each_line(stderr: Told, format: str) -> None:
    configure("debug", format, journald=True)
    logger.debug("d")
    logger.info("i")
    logger.warning("w")
    logger.error("e")
    try:
        raise ValueError("x")
    except ValueError:
        logger.critical("c", exc_info=True)
    lines = stderr.getvalue().splitlines()
    assert [line[:3] for line in lines[:5]] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
    assert all(line.startswith("<2>") for line in lines[4:])
    if format == "json":
        assert json.loads(lines[0][3:])["level"] == "debug"


SCRIPT = """
import logging, sys
from gcd.logs import configure
configure("info", "auto")
logging.getLogger("gcd").info("hello")
"""


def test_auto_is_text_on_a_terminal_and_json_elsewhere() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stderr)["event"] == "hello"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", SCRIPT], stderr=theirs, check=True)
    os.close(theirs)
    assert b"info: hello" in os.read(ours, 1000)
    os.close(ours)


def test_a_stderr_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    closed = (
        f"import os\n{SCRIPT}\nsys.stderr.close()\nlogging.getLogger('gcd').info('x')\nprint('on')"
    )
    full = f"{SCRIPT}\nprint('on')\nsys.stderr = None"
    done = subprocess.run(
        [sys.executable, "-c", closed], capture_output=True, text=True, check=True
    )
    assert done.stdout == "on\n"
    with open("/dev/full", "w") as device:
        done = subprocess.run(
            [sys.executable, "-c", full],
            stdout=subprocess.PIPE,
            stderr=device,
            text=True,
            check=True,
        )
    assert done.stdout == "on\n"
    shell = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, f"{SCRIPT}\nprint('on')"]
    assert subprocess.run(shell, stdout=subprocess.PIPE, text=True, check=True).stdout == "on\n"
