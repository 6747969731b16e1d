"""A session: the process that holds a device and does what needs it, for whoever waits, in turns.

It takes work from the registry the moment it is there and owns it under its own name, as a run owns what it claimed.
Bases stay loaded. Whatever it does, it can be asked for a turn where nothing is half done (`telling.Between`): then it
renders what waits. Pictures and what they interrupt share the time, for each second of the one a second of the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import FailureCode, as_failure
from tunes_dagster.core.ids import SESSION, new_id
from tunes_dagster.core.progress import Phase
from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.core.validation import checked
from tunes_dagster.core.work import WorkKind
from tunes_dagster.evaluation.card import CardOptions, options_of
from tunes_dagster.registry.retrying import DatabaseAway
from tunes_dagster.rendering.rooms import Rooms
from tunes_dagster.sessions.aside import undisturbed
from tunes_dagster.sessions.bases import Bases
from tunes_dagster.sessions.cohorts import Place, Trainee, train_trainees, trainee_of
from tunes_dagster.sessions.hands import QUIET, Hands
from tunes_dagster.sessions.journal import Journal, Silent
from tunes_dagster.sessions.packaging import package
from tunes_dagster.sessions.rendering import BatchInHand, Paces
from tunes_dagster.sessions.results import Trained
from tunes_dagster.sessions.scoring import evaluate
from tunes_dagster.sessions.telling import Drained
from tunes_dagster.sessions.waking import Bell

if TYPE_CHECKING:
    from tunes_dagster.evaluation.scoring import Scorers
    from tunes_dagster.registry import Registry, Work
    from tunes_dagster.service.installation import Installation
    from tunes_dagster.sessions.attempts import Attempt
    from tunes_dagster.sessions.hardware import Device

log = logging.getLogger("tunes.session")

# How often a session looks whether there is work: a look is a read of a few bytes (`waking.py`).
LOOK_SECONDS = 0.02
# Of the pictures that are rendered in the middle of other work, or while nothing else waits.
_SLICE_SECONDS, _ALONE_SECONDS = 1.0, 4.0
# Batches that a session holds at a time; the rest waits in the registry, where it finds company.
_PEOPLE, _PATIENT = 2, 1
# People's slices after which a campaign has one, too.
_SLICES_OF_PEOPLE = 4
# Most tunes that join a cohort, as in a run.
_MOST_MEMBERS = 64
# With nothing to do: a GPU's memory serves nobody else meanwhile, and loading FLUX anew takes a minute; what the CPU
# and Apple's chips hold is missing to whoever sits before the machine, and a small base is there in seconds.
_WARM_SECONDS, _WARM_SECONDS_OF_GPU = 120.0, 3600.0
# After a turn that failed.
_NAP_SECONDS = 1.0


class Session:
    """Holds a device.

    Args:
        installation: Opened with `works=True`.
        device: Which.
        journal: Told of each piece of work.
        scorers: Loads the scorers of report cards onto a device; None takes the profile's.
        name: Of the session, which owns rows by it.
        end: Ends the process when all of its work was given to others and it does not notice; None never does.
    """

    def __init__(
        self,
        installation: Installation,
        device: Device,
        journal: Journal | None = None,
        *,
        scorers: Callable[[str], Scorers] | None = None,
        name: str = "",
        end: Callable[[], None] | None = None,
    ) -> None:
        self.name = name or new_id(SESSION)
        self.installation, self.device = installation, device
        self.settings, self.registry = installation.settings, installation.registry
        self.journal: Journal = journal or Silent()
        self.bases = Bases(device)
        self._scorers: Scorers | None = None
        self._open_scorers = scorers
        self._paces = Paces()
        self._bell = Bell(self.registry)
        self._hands = Hands(installation, self.name, self.journal, self._turn, end)
        self.stopping = threading.Event()
        # Told the ids of the work that is computed from now on, and the bases that are loaded.
        self.does: Callable[[Sequence[str], Sequence[str]], None] = lambda work_ids, bases: None
        self._doing: list[str] = []
        self._batches: list[BatchInHand] = []
        self._people_slices = 0
        # How many pieces of work are in the middle of each other, pictures aside.
        self._depth = 0
        self._rendering = False
        self._turn_ended, self._owed = float("-inf"), 0.0
        self._looked = float("-inf")

    # -- its life

    def run(self, until_idle: bool = False, warm_seconds: float | None = None) -> None:
        """Do what waits until asked to stop, or until nothing came for so long.

        Args:
            until_idle: End as soon as nothing waits.
            warm_seconds: How long to stay when nothing does; None takes the setting.
        """
        if warm_seconds is None:
            warm_seconds = self.settings.keep_warm_seconds
        warm = 0.0 if until_idle else _warm_on(self.device) if warm_seconds is None else warm_seconds
        until = time.monotonic() + self.settings.longest_train_seconds
        with self._hands.pulse:
            idle_since = time.monotonic()
            try:
                while not self.stopping.is_set() and time.monotonic() < until:
                    if self._work_once():
                        idle_since = time.monotonic()
                        continue
                    if time.monotonic() - idle_since >= warm:
                        break
                    self.stopping.wait(LOOK_SECONDS)
            finally:
                self._give_back()
                self._bell.close()

    def stop(self) -> None:
        """Ask it to end soon: at the next step of what it does, which is kept and goes on in another session."""
        self.stopping.set()

    def _work_once(self) -> bool:
        """Do one piece of work; returns whether there was one."""
        try:
            if not self._batches and not self._bell.rung():
                return False
            self._refill(self.registry)
            did = self._render(_ALONE_SECONDS) is not None
            return self._other_work() or did
        except Drained:
            return True
        except DatabaseAway as away:
            log.warning("%s", away)
            self.stopping.wait(1.0)
            return False

    def _other_work(self) -> bool:
        """Do one piece that is no rendering, the one nearest to its end first."""
        return self._finish_one() or self._train(WorkKind.EMBED) or self._train(WorkKind.TRAIN)

    def _give_back(self) -> None:
        for batch in self._batches:
            self._hands.closed(batch.mine, Drained())
        self._batches = []

    @contextmanager
    def _computing(self, *work_ids: str) -> Iterator[None]:
        """Say what is computed for the while: if the process dies, that is what it died of."""
        before, self._doing = self._doing, list(work_ids)
        self._say()
        try:
            yield
        finally:
            self._doing = before
            self._say()

    def _say(self) -> None:
        try:
            self.does(self._doing, self.bases.names())
        except DatabaseAway as away:
            log.warning("%s", away)

    # -- turns

    def _turn(self) -> None:
        """Let others have their turn in the middle of a piece of work, where nothing of it is half done.

        Raises:
            Drained: When the session was asked to stop.
        """
        if self.stopping.is_set():
            raise Drained
        now = time.monotonic()
        if self._rendering or now - self._looked < LOOK_SECONDS or now - self._turn_ended < self._owed:
            return
        self._looked = now
        if not self._batches and not self._bell.rung():
            return
        try:
            # Whoever is interrupted does not wait for a database that is away.
            self._refill(self.registry.with_patience(0.0))
            self._turn_of_others()
        except Drained:
            raise
        except Exception as error:  # whatever it is, what was interrupted must not hear of it
            log.warning("A turn in the middle of other work failed.", exc_info=error)
            self._turn_ended, self._owed = time.monotonic(), _NAP_SECONDS

    def _turn_of_others(self) -> None:
        share = self.settings.render_share
        with undisturbed(self.bases.loaded()):
            spent = self._render(_SLICE_SECONDS) or 0.0
            self._turn_ended, self._owed = time.monotonic(), spent * (1 - share) / share
            if self._depth == 1:  # a tune is ready before those that train on have ended
                self._finish_one(beside=True)

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    # -- pictures

    def _refill(self, rows: Registry) -> None:
        """Claim batches as long as there is room for them in this session's hands.

        Args:
            rows: The registry, with the patience of who asks.
        """
        patient = sum(batch.patient for batch in self._batches)
        people = len(self._batches) - patient
        if people >= _PEOPLE and patient >= _PATIENT:
            return
        rooms = Rooms(rows, self.settings)
        room = max(0, _PEOPLE - people) + max(0, _PATIENT - patient)
        if not rows.work.queued("render", limit=room):
            rows.groups.make_batches(
                wait_seconds=0.0,
                max_prompts=self.settings.max_batch_prompts,
                limit=room,
                max_pictures=lambda base_id, shape: rooms.room(base_id, shape).pictures,
                campaign_limit=max(0, _PATIENT - patient),
            )
        for work in self._hands.claimed(rows, "render", room):
            mine = self._hands.own(work)
            try:
                self._batches.append(BatchInHand(self.installation, mine, self._paces))
            except Exception as error:
                self._hands.closed(mine, error)

    def _render(self, seconds: float) -> float | None:
        """Render a slice of the batch whose turn it is; returns the seconds without loading, None without a batch."""
        batch, spent = self._next_batch(), 0.0
        if batch is None:
            return None
        self._rendering = True
        try:
            if batch.left:
                with self._computing(batch.mine.work.id):
                    spent = batch.turn(self.bases, self.device, seconds)
            if not batch.left:
                self._batches.remove(batch)
                rendered = batch.finish(self.device)
                if rendered is not None:
                    self.journal.materialized(batch.mine.work, rendered)
                self._hands.done(batch.mine)
        except BaseException as error:
            if batch in self._batches:
                self._batches.remove(batch)
            self._hands.closed(batch.mine, error)
            if isinstance(error, Drained) or not isinstance(error, Exception):
                raise
        finally:
            self._rendering = False
        return spent

    def _next_batch(self) -> BatchInHand | None:
        """Return the batch whose turn it is: people's first, in turns, and a campaign's now and then."""
        able = [b for b in self._batches if self._depth == 0 or b.usable_beside(self.bases)]
        people = [batch for batch in able if not batch.patient]
        patient = [batch for batch in able if batch.patient]
        if patient and (not people or self._people_slices >= _SLICES_OF_PEOPLE):
            self._people_slices = 0
            return patient[0]
        if not people:
            return None
        self._people_slices += 1
        chosen = people[0]
        self._batches.remove(chosen)  # the next turn is the other one's
        self._batches.append(chosen)
        return chosen

    # -- tunes

    def _train(self, kind: WorkKind) -> bool:
        """Train a cohort of tunes that wait, and whoever joins; returns whether there was one."""
        made = self.registry.groups.make_cohorts(
            wait_seconds=0.0,
            max_cohort=self.settings.max_cohort,
            limit=1,
            kind=kind,
            suspects_alone=True,
        )
        if not made:
            return False
        cohort, members = made[0]
        suspect = any(work.failure_code == FailureCode.RUN_LOST for work in members)
        trainees: list[Trainee] = []

        def recruit(works: Sequence[Work]) -> list[Trainee]:
            fresh = [self._recruited(work) for work in works]
            trainees.extend(fresh)
            self._doing = [one.mine.work.id for one in trainees if not one.mine.member.closed]
            self._say()
            return fresh

        began = time.monotonic()

        def newcomers(free: int) -> list[Trainee]:
            if (
                suspect
                or self.stopping.is_set()
                or time.monotonic() - began > self.settings.longest_train_seconds
            ):
                return []
            room = min(free, _MOST_MEMBERS - len(trainees))
            here = [trainee.tune.id for trainee in trainees]
            try:  # those who train do not wait for those who might
                waits = self.registry.with_patience(0.0)
                return recruit(
                    waits.work.join_cohort(
                        cohort.id, self.name, room, here, patience_seconds=0.0, suspects=False
                    )
                )
            except DatabaseAway:
                return []

        try:
            with self._computing(), self._deeper():
                recruit(self.registry.work.claim_cohort(cohort.id, self.name))
                train_trainees(self._place(), trainees, self._on_trained, newcomers)
        except BaseException as error:
            for trainee in trainees:
                self._hands.closed(trainee.mine, error)
            if not isinstance(error, Exception):
                raise
        return True

    def _recruited(self, work: Work) -> Trainee:
        mine = self._hands.own(work)
        try:
            return trainee_of(mine, self.installation, self.registry.device_runs.changes_of(work))
        except Exception as error:
            trainee = Trainee(mine, self.registry.tunes.get(work.subject_id), TrainingOptions())
            trainee.failure = self._hands.closed(mine, error) or as_failure(error)
            return trainee

    def _on_trained(self, trainee: Trainee, trained: Trained) -> None:
        trainee.mine.finish(trained.row_result(), continue_=True)
        self.journal.materialized(trainee.mine.work, trained)
        self._hands.done(trainee.mine)

    def _finish_one(self, beside: bool = False) -> bool:
        """Score and package the trained tune that waits longest; returns whether there was one.

        Args:
            beside: In the middle of a training, so only where its base can be computed with meanwhile.
        """
        if beside and not all(map(self._usable, self.registry.work.queued("finish", limit=1))):
            return False
        for work in self._hands.claimed(self.registry, "finish", 1):
            mine = self._hands.own(work)
            try:
                with self._computing(work.id), self._deeper():
                    self._score(mine)
            except BaseException as error:
                self._hands.closed(mine, error)
                if not isinstance(error, Exception):
                    raise
            return True
        return False

    def _usable(self, work: Work) -> bool:
        entry, folder = self.installation.usable(self.registry.tunes.get(work.subject_id).base_id)
        return self.bases.usable(entry, folder)

    def _score(self, mine: Attempt) -> None:
        tune = self.registry.tunes.get(mine.work.subject_id)
        asked = {**options_of(self.settings).model_dump(), **self.registry.device_runs.changes_of(mine.work)}
        options = checked(CardOptions, asked, "What the Launchpad says")
        done = evaluate(mine, tune, options, self._place(), self._looking)
        mine.report.phase(Phase.PACKAGING)
        mine.finish(package(tune, done.result, self.installation.store, mine.report))
        self.journal.materialized(mine.work, done)
        self._hands.done(mine)

    def _looking(self, device: str) -> Scorers:
        """Return the scorers, which stay loaded."""
        if self._scorers is None:
            if self._open_scorers is None:
                from tunes_dagster.evaluation.scorers import open_scorers

                self._open_scorers = partial(open_scorers, self.settings)
            self._scorers = self._open_scorers(device)
        return self._scorers

    # -- rows

    def _place(self) -> Place:
        return Place(
            self.installation,
            lease=lambda report: nullcontext(self.device),
            load=self.bases.load,
            close=self._hands.closed,
            log=QUIET,
        )


def _warm_on(device: Device) -> float:
    """Return how long a session keeps its bases on a device unless the operator says."""
    return _WARM_SECONDS_OF_GPU if device.name.startswith("cuda") else _WARM_SECONDS
