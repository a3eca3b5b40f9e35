"""Gives each store its turns: by its schedule, to look again, and never two at once.

It must never drop a turn that is due: a late one is made up once, however many were missed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from gcd import clock
from gcd.daemon.duties import Duties, Duty
from gcd.daemon.turn import Call, Wait, back_off
from gcd.daemon.work import Turn, Worker

logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Stores that have their turn at the same time."""
LATE = timedelta(minutes=2)
"""A turn that has not begun so long after its time shows that the scheduler is stuck."""
Told = Callable[[Duty, Turn, timedelta], None]
"""Called after each turn with how long it took."""


class Fires(BaseTrigger):  # type: ignore[misc]
    """A store's timetable as APScheduler asks for it."""

    def __init__(self, duty: Duty) -> None:
        self.duty = duty

    def get_next_fire_time(
        self, previous_fire_time: datetime | None, now: datetime
    ) -> datetime | None:
        """The next fire after now."""
        return self.duty.timetable.after(previous_fire_time, now)


@dataclass(slots=True)
class State:
    """How a store's turns go."""

    call: Call = Call.LOOK
    """What its next turn is for."""
    last: Turn | None = None
    """The last turn that was more than a look."""
    stop: threading.Event | None = None
    """Stops the turn that it has now."""
    failures: int = 0
    """How often in a row its database did not answer."""
    is_busy: bool = False
    """Whether it has its turn now."""
    again: Call | None = None
    """What the turn is for that came during the one that it has now."""


class Roster:
    """The turns of all stores."""

    def __init__(
        self, worker: Worker, told: Told, now: Callable[[], datetime] = clock.utc_now
    ) -> None:
        self.states: dict[str, State] = {}
        self._duties: dict[str, Duty] = {}
        self._worker = worker
        self._told = told
        self._now = now
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(AT_ONCE)},
            job_defaults={
                "coalesce": True,
                # Never two turns at once, yet one that comes during another is noted, not dropped.
                "max_instances": 3,
                # Its default of one second would drop a turn that is late, and say nothing.
                "misfire_grace_time": None,
            },
        )

    def start(self) -> None:
        """Begin to give turns."""
        self._scheduler.start()

    def assign(self, duties: Duties) -> None:
        """Look after these stores from now on; each is looked at at once.

        A turn under way goes on as it began.
        """
        for name in self._duties.keys() - {duty.name for duty in duties.stores}:
            self._scheduler.remove_job(name)
            del self._duties[name]
        for duty in duties.stores:
            is_new = duty.name not in self.states
            state = self.states.setdefault(duty.name, State())
            state.call = Call.START if is_new and duty.runs_at_start else Call.LOOK
            now = self._now()
            first: datetime | None = now
            if state.stop is not None:  # it has its turn now, which is look enough
                state.call, first = Call.DUE, duty.timetable.after(None, now)
            self._duties[duty.name] = duty
            self._scheduler.add_job(
                self._come,
                Fires(duty),
                args=[duty.name],
                id=duty.name,
                replace_existing=True,
                next_run_time=first,
            )

    # -- one turn --------------------------------------------------------------------------------

    def _come(self, name: str) -> None:
        """Give a store its turn; one that comes during another follows it, once."""
        state = self.states[name]
        with self._lock:
            if state.is_busy:
                state.again, state.call = state.call, Call.DUE
                return
            state.is_busy = True
        try:
            self._take_turn(name)
        finally:
            with self._lock:
                again, state.again, state.is_busy = state.again, None, False
        if again is not None:
            self._wait(name, Wait(self._now(), again))

    def _take_turn(self, name: str) -> None:
        duty, state = self._duties.get(name), self.states[name]
        if duty is None or self._stopping.is_set():
            return
        call, state.call = state.call, Call.DUE
        own = self.next_turn(name) or self._now()
        opens = duty.timetable.opens(self._now())
        if opens > self._now():
            self._wait(name, Wait(opens, call))
            return
        state.stop = threading.Event()
        if self._stopping.is_set():  # since it was looked at above
            state.stop.set()
        began = clock.monotonic()
        try:
            turn = self._worker.take(duty, call, own, state.stop)
            took = timedelta(seconds=clock.monotonic() - began)
            self._note(duty, state, turn, own, call)
            self._told(duty, turn, took)  # still at work meanwhile: a stop waits for it
        finally:
            state.stop = None

    def _note(self, duty: Duty, state: State, turn: Turn, own: datetime, call: Call) -> None:
        """Remember what came of a turn, and see to the next one."""
        wait = turn.wait
        if turn.result != "waits":
            state.last = turn
        elif state.last is not None and state.last.reason == "unreachable":
            state.last = None  # it answers again
        state.failures = state.failures + 1 if turn.reason == "unreachable" else 0
        if state.failures:
            wait = back_off(state.failures, self._now(), own)
            if call is Call.START:  # the database may be the later one to start
                wait = Wait(wait.until, call)
        if self._duties.get(duty.name) is not duty:  # assigned anew: what was asked for is stale
            wait = Wait(self._now(), Call.LOOK)
        if wait is not None:
            self._wait(duty.name, wait)

    def _wait(self, name: str, wait: Wait) -> None:
        state = self.states[name]
        state.call = wait.call
        try:
            self._scheduler.modify_job(name, next_run_time=wait.until)
        except JobLookupError:
            return  # it was dismissed meanwhile

    # -- what others ask -------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The stores that are looked after."""
        return sorted(self._duties)

    def next_turn(self, name: str) -> datetime | None:
        """When a store has its next turn."""
        job = self._scheduler.get_job(name)
        return None if job is None else job.next_run_time

    def running(self) -> list[str]:
        """The stores that have their turn now."""
        return sorted(name for name, state in list(self.states.items()) if state.stop is not None)

    def late(self) -> Iterator[str]:
        """The stores whose turn is due and does not begin."""
        latest = self._now() - LATE
        for name in self.names():
            due = self.next_turn(name)
            if due is not None and due < latest and self.states[name].stop is None:
                yield name

    # -- stopping --------------------------------------------------------------------------------

    def close_windows(self) -> None:
        """Ask each turn to stop whose window has closed."""
        for name, state in list(self.states.items()):
            duty, stop = self._duties.get(name), state.stop
            if duty is None or stop is None or stop.is_set():
                continue
            if not duty.timetable.is_open(self._now()):
                logger.info("the window closes: stopping", extra={"store": name})
                stop.set()

    def stop(self) -> None:
        """Give no more turns, and ask those under way to stop after the batch in hand."""
        self._stopping.set()
        for state in list(self.states.values()):
            if state.stop is not None:
                state.stop.set()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
