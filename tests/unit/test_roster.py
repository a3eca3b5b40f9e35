"""The roster: each store has its turns, one at a time, and no turn that is due is lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from gcd.config import load_config
from gcd.daemon import turn as turns
from gcd.daemon.duties import Duties, Duty, duties
from gcd.daemon.roster import LATE, Roster
from gcd.daemon.turn import Call, Wait
from gcd.daemon.work import Turn, Worker
from gcd.timetable import Every, Timetable, parse_window

SOON, FAR = timedelta(milliseconds=50), timedelta(hours=6)
MINUTE = timedelta(minutes=1)
DONE, LOOKED = Turn("done"), Turn("waits")


class Script(Timetable):
    """Fires at the times of a list, then not for hours."""

    def __init__(self, *ahead: timedelta, windows: Sequence[str] = ()) -> None:
        super().__init__(Every(FAR), windows=tuple(map(parse_window, windows)))
        began = datetime.now(UTC)
        object.__setattr__(self, "fires", [began + each for each in ahead])

    def after(self, previous: datetime | None, now: datetime) -> datetime | None:
        fires: list[datetime] = self.fires  # type: ignore[attr-defined]
        return next((each for each in fires if each > now), now + FAR)


@dataclass
class Taken:
    """One turn, as the worker was given it."""

    duty: Duty
    call: Call
    own: datetime
    stop: threading.Event
    at: float = field(default_factory=time.monotonic)


class Fake:
    """A worker that does what the test says."""

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.told: list[tuple[str, Turn, timedelta]] = []
        self.results: dict[str, list[Turn]] = {}
        """What the next turns of a store come to; then DONE."""
        self.held: dict[str, threading.Event] = {}
        """Stores whose turns last until this is set."""
        self.at_once: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.while_telling: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    def take(self, duty: Duty, call: Call, own: datetime, stop: threading.Event) -> Turn:
        name = duty.name
        with self._lock:
            self.taken.append(Taken(duty, call, own, stop))
            self.at_once[name] = self.at_once.get(name, 0) + 1
            self.most[name] = max(self.most.get(name, 0), self.at_once[name])
        if name in self.held:
            assert self.held[name].wait(30)
        with self._lock:
            self.at_once[name] -= 1
            waiting = self.results.get(name)
            return waiting.pop(0) if waiting else DONE

    def hear(self, duty: Duty, turn: Turn, took: timedelta) -> None:
        self.while_telling()
        self.told.append((duty.name, turn, took))

    def hold(self, name: str) -> threading.Event:
        return self.held.setdefault(name, threading.Event())

    def calls(self, name: str = "main") -> list[Call]:
        return [each.call for each in list(self.taken) if each.duty.name == name]

    def had(self, count: int, name: str = "main") -> bool:
        """Whether a store has had so many turns, and no more within a moment."""
        if not within(10, lambda: len(self.calls(name)) >= count):
            return False
        time.sleep(0.15)
        return len(self.calls(name)) == count


class Clock:
    """The host's time, and what the test adds to it."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def show(self, at: datetime) -> None:
        self.ahead = at - datetime.now(UTC)


def within(seconds: float, is_so: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.005)
    return is_so()


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def now() -> Clock:
    return Clock()


@pytest.fixture
def roster(fake: Fake, now: Clock) -> Iterator[Roster]:
    found = Roster(cast(Worker, fake), fake.hear, now)
    found.start()
    yield found
    found.stop()
    for held in fake.held.values():
        held.set()
    assert within(10, lambda: not found.running())


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Duties]:
    """Makes the duties for stores, each with its timetable."""

    def make(*, at_start: bool = False, **timetables: Timetable) -> Duties:
        path = tmp_path / "it.toml"
        path.write_text(
            "".join(f"[stores.{n}]\nbackend_store_uri = 'sqlite:///{n}'\n" for n in timetables)
        )
        found = duties(load_config(path, environ={}))
        return Duties(
            found.config,
            [
                replace(each, timetable=timetables[each.name], runs_at_start=at_start)
                for each in found.stores
            ],
        )

    return make


Plan = Callable[..., Duties]


# -- when there is a turn ------------------------------------------------------------------------


def test_a_store_is_looked_at_at_once_and_then_has_its_fires(
    roster: Roster, fake: Fake, plan: Plan
) -> None:
    began = datetime.now(UTC)
    table = Script(6 * SOON, 12 * SOON)
    roster.assign(plan(main=table))
    assert fake.had(3)
    assert fake.calls() == [Call.LOOK, Call.DUE, Call.DUE]
    fires: list[datetime] = table.fires  # type: ignore[attr-defined]
    assert [each.own for each in fake.taken[:2]] == fires
    assert fake.taken[2].own > began + FAR
    assert roster.next_turn("main") == fake.taken[2].own
    assert [(name, turn) for name, turn, _ in fake.told] == [("main", DONE)] * 3


def test_a_store_starts_with_a_cycle_where_that_is_wanted_once(
    roster: Roster, fake: Fake, plan: Plan
) -> None:
    roster.assign(plan(at_start=True, main=Script()))
    assert fake.had(1)
    roster.assign(plan(at_start=True, main=Script(), lab=Script()))
    assert fake.had(2)
    assert fake.calls() == [Call.START, Call.LOOK]
    assert fake.had(1, "lab")
    assert fake.calls("lab") == [Call.START]


def test_what_to_wait_for_is_waited_for(roster: Roster, fake: Fake, plan: Plan) -> None:
    until = datetime.now(UTC) + 6 * SOON
    later = datetime.now(UTC) + timedelta(hours=1)
    fake.results["main"] = [
        Turn("waits", wait=Wait(until, Call.LOOK)),
        Turn("waits", wait=Wait(later)),
    ]
    roster.assign(plan(main=Script()))
    assert fake.had(2)
    assert fake.calls() == [Call.LOOK, Call.LOOK]
    assert fake.taken[1].at - fake.taken[0].at >= 0.2
    assert roster.next_turn("main") == later
    assert roster.states["main"].call is Call.DUE
    assert roster.states["main"].last is None


def test_what_is_to_come_at_once_comes_at_once(roster: Roster, fake: Fake, plan: Plan) -> None:
    """Also where its time has come before the turn that asks for it has ended."""
    fake.results["main"] = [Turn("waits", wait=Wait(datetime.now(UTC)))] * 20
    roster.assign(plan(main=Script()))
    assert fake.had(21)
    assert fake.calls() == [Call.LOOK, *[Call.DUE] * 20]
    assert fake.most == {"main": 1}


# -- never two at once ---------------------------------------------------------------------------


def test_a_store_has_one_turn_at_a_time_and_others_theirs_meanwhile(
    roster: Roster, fake: Fake, plan: Plan
) -> None:
    held = fake.hold("main")
    fires = [n * SOON / 10 for n in range(1, 100)]
    roster.assign(plan(main=Script(*fires), lab=Script(*fires)))
    assert within(10, lambda: len(fake.calls("lab")) > 10)
    assert fake.calls("main") == [Call.LOOK]
    assert "main" in roster.running()
    held.set()
    assert within(10, lambda: len(fake.calls("main")) > 2)
    time.sleep(0.5)
    assert fake.most == {"main": 1, "lab": 1}


def test_fires_during_a_turn_are_made_up_once(
    roster: Roster, fake: Fake, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    held = fake.hold("main")
    roster.assign(plan(main=Script(SOON, 2 * SOON, 3 * SOON)))
    assert fake.had(1)
    time.sleep(0.2)
    assert fake.had(1)
    held.set()
    assert fake.had(2)
    assert fake.calls() == [Call.LOOK, Call.DUE]
    assert fake.taken[1].own > datetime.now(UTC) + FAR - MINUTE
    assert caplog.text == ""  # nothing was skipped


def test_a_reload_during_a_turn_loses_no_fire(roster: Roster, fake: Fake, plan: Plan) -> None:
    held = fake.hold("main")
    roster.assign(plan(main=Script()))
    assert fake.had(1)
    new = plan(main=Script(10 * SOON))
    roster.assign(new)
    assert fake.had(1)
    held.set()
    assert fake.had(3)
    # What is asked for now is looked at, and then comes the fire: as a fire, not as a look.
    assert fake.calls() == [Call.LOOK, Call.LOOK, Call.DUE]
    assert fake.taken[0].duty is not new.stores[0]
    assert {id(each.duty) for each in fake.taken[1:]} == {id(new.stores[0])}


def test_what_an_old_configuration_waits_for_is_not_waited_for(
    roster: Roster, fake: Fake, plan: Plan
) -> None:
    held = fake.hold("main")
    in_a_year = datetime.now(UTC) + timedelta(days=365)
    fake.results["main"] = [Turn("waits", wait=Wait(in_a_year))]
    roster.assign(plan(main=Script()))
    assert fake.had(1)
    roster.assign(plan(main=Script()))
    held.set()
    assert fake.had(2)
    following = roster.next_turn("main")
    assert following is not None
    assert following < datetime.now(UTC) + 2 * FAR


# -- a store that does not answer ----------------------------------------------------------------


def test_a_store_that_does_not_answer_is_tried_less_and_less(
    roster: Roster, fake: Fake, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LOOK_AGAIN", 2 * SOON)
    lost = Turn("failed", reason="unreachable")
    fake.results["main"] = [lost, lost, lost, LOOKED]
    roster.assign(plan(main=Script()))
    assert within(10, lambda: len(fake.calls()) == 3)
    assert within(5, lambda: roster.states["main"].failures == 3)
    assert roster.states["main"].last == lost
    assert within(10, lambda: len(fake.calls()) == 4)
    pauses = [b.at - a.at for a, b in zip(fake.taken, fake.taken[1:], strict=False)]
    assert pauses[0] >= 0.09
    assert pauses[1] >= 0.19
    assert pauses[2] >= 0.39
    assert fake.calls() == [Call.LOOK] * 4
    assert fake.had(4)
    assert roster.states["main"].failures == 0
    assert roster.states["main"].last is None  # it answers again


def test_another_failure_waits_for_the_schedule_and_stays_visible(
    roster: Roster, fake: Fake, plan: Plan
) -> None:
    blown = Turn("failed", reason="fuse")
    fake.results["main"] = [blown, LOOKED]
    roster.assign(plan(main=Script(4 * SOON)))
    assert fake.had(2)
    assert roster.states["main"].failures == 0
    assert roster.states["main"].last == blown


def test_a_worker_that_raises_ends_its_own_turn_only(
    roster: Roster, fake: Fake, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        fake.while_telling = lambda: None
        raise ZeroDivisionError

    fake.while_telling = fail
    with caplog.at_level(logging.ERROR):
        roster.assign(plan(main=Script(4 * SOON)))
        assert fake.had(2)
    assert "ZeroDivisionError" in caplog.text
    assert roster.running() == []


# -- windows -------------------------------------------------------------------------------------

NIGHT = datetime(2126, 11, 25, 23, tzinfo=UTC)
"""In a hundred years: what is due then does not come while the test runs."""


def test_a_turn_outside_the_windows_waits_for_one(
    roster: Roster, fake: Fake, plan: Plan, now: Clock
) -> None:
    now.show(NIGHT.replace(hour=12))
    table = Script(windows=["22:00-06:00"])
    new = plan(at_start=True, main=table)
    roster._scheduler.pause()
    roster.assign(new)
    roster._come("main")
    assert fake.calls() == []
    assert fake.told == []
    assert roster.next_turn("main") == NIGHT.replace(hour=22)
    now.show(NIGHT)
    roster._come("main")
    assert fake.calls() == [Call.START]  # it is still what it was to be


def test_a_turn_is_asked_to_stop_when_its_window_closes(
    roster: Roster, fake: Fake, plan: Plan, now: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    at = datetime.now(UTC)
    opened, closes = f"{at - 60 * MINUTE:%H:%M}", at + 120 * MINUTE
    narrow = Script(windows=[f"{opened}-{closes:%H:%M}"])
    fake.hold("main")
    fake.hold("lab")
    roster.assign(plan(main=narrow, lab=Script()))
    assert fake.had(1)
    assert fake.had(1, "lab")
    stops = {each.duty.name: each.stop for each in fake.taken}
    roster.close_windows()
    assert not stops["main"].is_set()
    now.show(closes + MINUTE)
    roster.close_windows()
    roster.close_windows()
    assert stops["main"].is_set()
    assert not stops["lab"].is_set()
    told = [each for each in caplog.records if "the window closes" in each.message]
    assert [each.store for each in told] == ["main"]  # type: ignore[attr-defined]


# -- who is looked after -------------------------------------------------------------------------


def test_a_reload_drops_stores_and_adds_others(roster: Roster, fake: Fake, plan: Plan) -> None:
    roster.assign(plan(main=Script(8 * SOON), old=Script(8 * SOON)))
    assert fake.had(1, "old")
    assert roster.names() == ["main", "old"]
    roster.assign(plan(main=Script(8 * SOON), new=Script()))
    assert roster.names() == ["main", "new"]
    assert roster.next_turn("old") is None
    assert fake.had(3)
    assert fake.calls("old") == [Call.LOOK]
    assert fake.calls("new") == [Call.LOOK]
    assert fake.calls("main") == [Call.LOOK, Call.LOOK, Call.DUE]


def test_a_store_that_is_dropped_ends_its_turn_and_is_told_of(
    roster: Roster, fake: Fake, plan: Plan
) -> None:
    held = fake.hold("old")
    fake.results["old"] = [Turn("waits", wait=Wait(datetime.now(UTC)))]
    roster.assign(plan(main=Script(), old=Script(SOON)))
    assert within(10, lambda: roster.running() == ["old"])
    time.sleep(0.1)
    roster.assign(plan(main=Script()))
    assert not any(each.stop.is_set() for each in fake.taken)
    held.set()
    assert within(10, lambda: roster.running() == [])
    assert fake.had(1, "old")
    assert [name for name, *_ in fake.told].count("old") == 1


def test_a_store_that_comes_back_is_known_still(roster: Roster, fake: Fake, plan: Plan) -> None:
    blown = Turn("failed", reason="fuse")
    fake.results["main"] = [blown, LOOKED]
    roster.assign(plan(at_start=True, main=Script()))
    assert fake.had(1)
    roster.assign(plan(lab=Script()))
    roster.assign(plan(at_start=True, main=Script()))
    assert fake.had(2)
    assert fake.calls() == [Call.START, Call.LOOK]
    assert roster.states["main"].last == blown


# -- what others ask -----------------------------------------------------------------------------


def test_a_turn_runs_until_it_is_told_of(roster: Roster, fake: Fake, plan: Plan) -> None:
    seen: list[list[str]] = []
    fake.while_telling = lambda: (time.sleep(0.05), seen.append(roster.running()))
    fake.results["main"] = [replace(DONE, error="x")]
    roster.assign(plan(main=Script()))
    assert within(10, lambda: len(fake.told) == 1)
    assert seen == [["main"]]
    assert within(5, lambda: roster.running() == [])
    [(name, turn, took)] = fake.told
    assert (name, turn.error) == ("main", "x")
    assert timedelta(0) <= took < timedelta(seconds=5)


def test_a_turn_that_does_not_begin_is_late(
    roster: Roster, fake: Fake, plan: Plan, now: Clock
) -> None:
    until = datetime.now(UTC) + timedelta(hours=1)
    fake.results = {name: [Turn("waits", wait=Wait(until))] for name in ("main", "busy")}
    roster.assign(plan(main=Script(), busy=Script()))
    assert within(10, lambda: len(fake.told) == 2)
    now.show(until + LATE - MINUTE)
    assert list(roster.late()) == []
    now.show(until + LATE + MINUTE)
    assert sorted(roster.late()) == ["busy", "main"]
    roster.states["busy"].stop = threading.Event()  # at work for long, which the pulse judges
    assert list(roster.late()) == ["main"]
    roster.states["busy"].stop = None


# -- stopping ------------------------------------------------------------------------------------


def test_a_stop_asks_each_turn_to_stop_and_gives_no_more(
    roster: Roster, fake: Fake, plan: Plan
) -> None:
    held = fake.hold("main")
    fake.results["main"] = [Turn("waits", wait=Wait(datetime.now(UTC)))]
    roster.assign(plan(main=Script(SOON), lab=Script(4 * SOON)))
    assert fake.had(1)
    [stop] = [each.stop for each in fake.taken if each.duty.name == "main"]
    roster.stop()
    assert stop.is_set()
    assert roster.running() == ["main"]
    lab = len(fake.calls("lab"))
    held.set()
    assert within(10, lambda: roster.running() == [])
    assert fake.had(1)
    assert len(fake.calls("lab")) == lab
    assert "main" in [name for name, *_ in fake.told]
    roster.stop()  # a second signal
    assert roster.next_turn("main") is None
    assert list(roster.late()) == []


def test_a_roster_that_never_began_can_stop(fake: Fake, now: Clock) -> None:
    Roster(cast(Worker, fake), fake.hear, now).stop()
    assert fake.taken == []
