"""The bodies of callbacks: pure functions from registry rows to JSON.

The form follows Standard Webhooks (https://github.com/standard-webhooks/standard-webhooks): `type`,
`timestamp`, `data`. Pictures and weights are named by their keys in the store.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.clock import iso
from tunes_dagster.core.failures import FailureCode

if TYPE_CHECKING:
    from tunes_dagster.registry.tables import Prompt, Tune


def failure_facts(row: Tune | Prompt) -> dict[str, str | None] | None:
    """Return why something failed as its caller may read it: of a bug only that it was one."""
    if row.failure_code is None:
        return None
    remedy = "" if row.failure_code == FailureCode.INTERNAL else row.failure_remedy
    return {"code": row.failure_code, "message": row.failure_message, "remedy": remedy}


def tune_body(event: str, tune: Tune, now: datetime) -> dict[str, Any]:
    """Return the body that tells of a tune (`tune.ready`, `tune.failed`, `tune.cancelled`)."""
    data = {
        "id": tune.id,
        "number": tune.number,
        "title": tune.title,
        "name": tune.class_name,
        "token": tune.token,
        "base": tune.base,
        "branch": tune.base_id,
        "status": tune.status,
        "labels": tune.labels,
        "recipe_hash": tune.recipe_hash,
        "result": tune.result,
        "failure": failure_facts(tune),
        "warnings": tune.warnings,
        "findings": tune.findings,
        "verdict": tune.verdict,
        "created_at": iso(tune.created_at),
        "started_at": iso(tune.started_at),
        "ready_at": iso(tune.ready_at),
    }
    return {"type": event, "timestamp": iso(now), "data": data}


def prompt_body(event: str, prompt: Prompt, now: datetime) -> dict[str, Any]:
    """Return the body that tells of a prompt (`prompt.done`, `prompt.failed`, `prompt.cancelled`)."""
    data = {
        "id": prompt.id,
        "number": prompt.number,
        "tune_id": prompt.tune_id,
        "base": prompt.base,
        "branch": prompt.base_id,
        "text": prompt.text,
        "settings": prompt.settings,
        "status": prompt.status,
        "images": prompt.images,
        "result": prompt.result,
        "failure": failure_facts(prompt),
        "warnings": prompt.warnings,
        "findings": prompt.findings,
        "created_at": iso(prompt.created_at),
        "done_at": iso(prompt.done_at),
    }
    return {"type": event, "timestamp": iso(now), "data": data}
