"""What a session has in its hands: rows that it claimed, from then until registry and journal know how each ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, as_failure
from tunes_dagster.registry.retrying import DatabaseAway
from tunes_dagster.sessions import attempts
from tunes_dagster.sessions.journal import Journal, Outcome
from tunes_dagster.sessions.reporting import Pulse
from tunes_dagster.sessions.telling import Between, Drained, Told, outcome_of

if TYPE_CHECKING:
    from tunes_dagster.registry import Registry, Work
    from tunes_dagster.service.installation import Installation
    from tunes_dagster.sessions.attempts import Attempt

log = logging.getLogger("tunes.session")

# For what names people: it stands in the rows already, and the output of a process is kept by whoever started it.
QUIET = logging.getLogger("tunes.session.quiet")
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False


class Hands:
    """Claims rows under a session's name, keeps them alive, and tells how they end.

    Args:
        installation: Its registry holds the rows.
        name: Of the session.
        journal: Told of each.
        turn: Called wherever a piece of work may be interrupted.
        end: Ends the process when everything was given to others and it does not notice; None never does.
    """

    def __init__(
        self,
        installation: Installation,
        name: str,
        journal: Journal,
        turn: Callable[[], None],
        end: Callable[[], None] | None,
    ) -> None:
        self._installation, self._name, self._journal, self._turn = installation, name, journal, turn
        settings = installation.settings
        self.pulse = Pulse(
            settings.heartbeat_seconds, log, settings.lost_after_seconds, end or (lambda: None)
        )

    def claimed(self, rows: Registry, kind: str, limit: int) -> list[Work]:
        """Take queued rows, longest waiting first, and return those that are this session's now.

        Args:
            rows: The registry, with the patience of who asks.
            kind: Of work.
            limit: Most rows.
        """
        queued = rows.work.queued(kind, limit=limit) if limit else []
        won = rows.work.submit([work.id for work in queued]) if queued else []
        claim = self._installation.registry.work.claim
        taken = []
        for work in won:
            try:
                taken.append(claim(work.kind, work.subject_id, self._name, run_key=work.run_key))
            except DatabaseAway:
                raise
            except Failure as refused:  # it was cancelled meanwhile
                log.info("%s", refused)
        return taken

    def own(self, work: Work) -> Attempt:
        """Take a claimed row into care."""
        self._journal.began(work)
        watching, between = [Told(self._journal, work)], [Between(self._turn)]
        return attempts.own(self._installation, work, self._name, self.pulse, watching, between)

    def done(self, mine: Attempt) -> None:
        """Let go of what its row knows to be done."""
        self.pulse.remove(mine.member)
        self._journal.ended(mine.work, Outcome("done"))

    def closed(self, mine: Attempt, error: BaseException) -> Failure | None:
        """Tell row and journal of an end that was not good, unless they know; returns the failure as it was told."""
        if mine.member.closed:
            return error if isinstance(error, Failure) else None
        self.pulse.remove(mine.member)
        if mine.member.lost is not None:
            self._journal.ended(mine.work, Outcome("returned", mine.member.lost, again=True))
            return mine.member.lost
        if isinstance(error, Drained) or not isinstance(error, Exception):
            with _refusals_do_not_matter():
                mine.give_back("The session was asked to stop; the work will resume.")
            self._journal.ended(mine.work, outcome_of(Drained(), again=True))
            return Drained()
        failure = as_failure(error)
        unexpected = None if isinstance(error, Failure) else error
        log.info("%s of %s: %s", mine.work.kind, mine.work.subject_id, failure.code, exc_info=unexpected)
        mine.fail(failure)
        again = self._installation.registry.work.get(mine.work.id).state == "queued"
        self._journal.ended(mine.work, outcome_of(failure, again))
        return failure


@contextmanager
def _refusals_do_not_matter() -> Iterator[None]:
    """Another attempt may own the row by now."""
    try:
        yield
    except DatabaseAway:
        raise
    except Failure as refused:
        log.info("%s", refused)
