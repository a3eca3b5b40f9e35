"""What a database refuses for a moment only is asked for again."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from gcd.store import faults


def refusal(number: int) -> sa.exc.DBAPIError:
    return sa.exc.OperationalError("SELECT 1", {}, Exception(number, "refused"))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults.threading.Event, "wait", lambda *_: True)


def test_a_catalogue_that_leaves_out_a_table_that_is_being_made_is_read_again() -> None:
    answers = [refusal(faults.BEING_CHANGED), refusal(faults.BEING_CHANGED), None]

    def read() -> str:
        if error := answers.pop(0):
            raise error
        return "all of it"

    assert faults.steadily(read) == "all of it"
    assert answers == []


@pytest.mark.parametrize(("number", "asked"), [(faults.BEING_CHANGED, faults.ATTEMPTS), (1054, 1)])
def test_what_does_not_pass_is_told(number: int, asked: int) -> None:
    times = []

    def read() -> None:
        times.append(1)
        raise refusal(number)

    with pytest.raises(sa.exc.DBAPIError):
        faults.steadily(read)
    assert len(times) == asked
