"""A session that computes nothing and writes everything: the rows of its work, and its journal in the registry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunes_dagster.core.failures import Cancelled, Failure
from tunes_dagster.registry import Registry, Work
from tunes_dagster.sessions.journal import Outcome
from tunes_dagster.sessions.recording import Recorded

TRAINED = {
    "weights_key": "k",
    "steps": 12,
    "seconds": 3.5,
    "checkpoints": ["a", "b"],
    "weights_recipe_hash": "h",
}


CHECKS = ("finite_weights", "loads_into_fresh_pipeline", "differs_from_base")


@dataclass(frozen=True)
class Answer:
    """What a session found out."""

    name: str
    passed: bool
    said: str = "Looked at."
    numbers: dict[str, Any] = field(default_factory=dict)


class Seen:
    """What a real session would hand to its journal, of which the answers are told."""

    def __init__(self, answers: list[Answer]) -> None:
        self.answers = answers
        self.device = None


class PaperSession:
    """Takes work of the registry as a session does."""

    def __init__(self, registry: Registry, name: str = "session_paper") -> None:
        self.registry, self.name = registry, name
        self.journal = Recorded(registry)

    def beat(self) -> None:
        """Say that it is there."""
        self.registry.sessions.beat(self.name, "here", "cpu")

    def begin(self, kind: str, subject_id: str) -> Work:
        """Take a piece of work and say so."""
        work = self.registry.work.claim(kind, subject_id, self.name, origin="sensor")
        self.journal.began(work)
        return work

    def finish(self, work: Work, result: dict[str, Any] | None = None, passed: bool = True) -> None:
        """End it well."""
        if work.kind == "train":
            result = {**TRAINED, **(result or {})}
            result["checks"] = dict.fromkeys(CHECKS, passed)
            self.journal.materialized(work, Seen([Answer(name, passed) for name in CHECKS]))
        elif work.kind == "render":
            for prompt in self.registry.prompts.rows(batch_id=work.subject_id):
                self.registry.prompts.done(prompt.id, work.id, self.name, ["batches/x/1.png"], {})
            self.journal.materialized(work, Seen([Answer("not_blank", passed)]))
        self.registry.work.finish(work.id, self.name, result=result or {})
        self.journal.ended(work, Outcome("done"))

    def fail(self, work: Work, failure: Failure) -> None:
        """End it badly."""
        after = self.registry.work.fail(work.id, self.name, failure)
        state = "cancelled" if isinstance(failure, Cancelled) else "failed"
        self.journal.ended(work, Outcome(state, failure, after.state == "queued"))

    def obey(self, work: Work) -> bool:
        """End it as cancelled if somebody asked for that, as a real one does at its next step."""
        if self.registry.work.heartbeat(work.id, self.name) != "cancel":
            return False
        self.fail(work, Cancelled())
        return True
