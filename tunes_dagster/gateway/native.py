"""The project's own endpoints, for what no vendor's API has: health, timelines, cancel, captions, weights, callbacks.

They serve every tune and prompt of the account, whichever dialect it came through, by id, number or public id.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from tunes_dagster.callbacks.bodies import failure_facts, tune_body
from tunes_dagster.core.clock import iso
from tunes_dagster.core.work import WorkKind
from tunes_dagster.gateway.accepting import GUESS_SECONDS
from tunes_dagster.gateway.answers import answers
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.dialect import Dialect, Form, desk, header_key, manners, service_of
from tunes_dagster.gateway.dialects.pixelapi.wire import own_id
from tunes_dagster.gateway.files import FILE_ANSWERS, answer
from tunes_dagster.gateway.native_answers import (
    AccountFacts,
    CallbackFacts,
    CallbackLog,
    Captions,
    CompositionFacts,
    Health,
    PromptTimeline,
    Timeline,
    TuneFacts,
)
from tunes_dagster.gateway.native_imports import ImportBody, take_in
from tunes_dagster.gateway.nesting import read_body
from tunes_dagster.gateway.problems import HttpProblem, not_found
from tunes_dagster.gateway.rehearsal import Report, rehearsable
from tunes_dagster.gateway.service import Service
from tunes_dagster.registry import Callback, Prompt, Tune
from tunes_dagster.registry.filters import Page, TuneFilter
from tunes_dagster.registry.outbox import Sample
from tunes_dagster.rendering.styles import compositions
from tunes_dagster.service.checks import check_callback_url
from tunes_dagster.service.download import served


def _error(problem: HttpProblem) -> tuple[int, Any]:
    body = {"code": problem.code or "error", "message": problem.message, "fields": problem.fields}
    return problem.status, {"error": body}


KEYS = header_key("authorization", "x-api-key", "ocp-apim-subscription-key")
router = APIRouter(route_class=manners("native", _error, KEYS))
DIALECT = Dialect(
    name="native",
    title="tunes-dagster",
    router=router,
    key_prefix="tk_",
    error=_error,
    paths=("/native/v1",),
    about="What no vendor's API has: health, timelines, cancelling, captions, weights, callbacks, of every tune and "
    "prompt of the account, whichever API it came through, by any of its ids.",
    keys=("authorization", "x-api-key", "ocp-apim-subscription-key"),
    forms={"POST /tunes/import": Form(model=ImportBody, files=("file",))},
    problem={
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                    "fields": {
                        "type": "object",
                        "additionalProperties": {"type": "array", "items": {"type": "string"}},
                    },
                },
            }
        },
    },
)

Mine = Depends(desk)
# The daemon looks for work every few seconds.
_STALLED_SECONDS = 300.0


class CancelBody(BaseModel):
    """How a tune is stopped."""

    model_config = ConfigDict(extra="forbid")

    keep: bool = Field(default=False, description="Make the tune ready with what it learned so far.")


class CaptionsBody(BaseModel):
    """Captions by file name or content hash."""

    model_config = ConfigDict(extra="forbid")

    captions: dict[str, str] = Field(max_length=2000)


class SampleBody(BaseModel):
    """Where a sample callback goes."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=4000)
    dialect: Literal["native", "pixelapi", "pixu", "astria"] = Field(
        default="native", description="In whose form; those of the others tell of your latest tune."
    )


@router.get("/health")
@answers(Health)
def health(request: Request) -> dict[str, Any]:
    """Say which bases are there, how much waits and since when, and how long one more tune would take to be begun."""
    service: Service = service_of(request)
    catalog, folder = service.catalog, service.settings.bases_folder
    real = {entry.base_id: catalog.real(entry) for entry in catalog.entries.values()}
    bases = [
        {"base": base_id, "trains_on": entry.base_id, "installed": entry.installed(folder)}
        for base_id, entry in real.items()
    ]
    lengths = service.registry.figures.queue_lengths()
    waiting = sum(row["count"] for row in lengths["work"] if row["kind"] != WorkKind.RENDER)
    ready = sorted({str(base["trains_on"]) for base in bases if base["installed"]})
    status = "stalled" if _stalled(lengths["work"], service.registry.now()) else "ok"
    for row in lengths["work"]:
        row["since"] = iso(row["since"])
    return {
        "status": status,
        "profile": catalog.profile,
        "bases": bases,
        "queue": lengths,
        "expected_wait_seconds": {
            base: round(waiting * (service.recent_seconds(base) or GUESS_SECONDS)) for base in ready
        },
    }


def _stalled(work: list[dict[str, Any]], now: datetime) -> bool:
    """Whether something waits for long while nothing is done: then no daemon is there to do it."""
    since = min((row["since"] for row in work if row["state"] == "queued"), default=None)
    busy = any(row["state"] != "queued" for row in work)
    return not busy and since is not None and (now - since).total_seconds() > _STALLED_SECONDS


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    text, kind = request.app.state.meters.text(request.headers.get("accept", ""))
    return Response(text, media_type=kind)


def tune_facts(tune: Tune) -> dict[str, Any]:
    """Return what the owner of a tune may know about it."""
    return {
        "id": tune.id,
        "number": tune.number,
        "title": tune.title,
        "name": tune.class_name,
        "token": tune.token,
        "base": tune.base,
        "trained_on": tune.base_id,
        "status": tune.status,
        "phase": tune.phase,
        "message": tune.message,
        **_steps(tune),
        "progress": round(tune.progress, 1),
        "seconds_left": tune.seconds_left,
        "cancel": tune.cancel,
        "recipe_hash": tune.recipe_hash,
        "files": [{"form": one.form, "name": one.name, "programs": one.programs} for one in served(tune)],
        "failure": failure_facts(tune),
        "warnings": tune.warnings,
        "findings": tune.findings,
        "verdict": tune.verdict,
        "created_at": iso(tune.created_at),
        "started_at": iso(tune.started_at),
        "ready_at": iso(tune.ready_at),
    }


def _steps(tune: Tune) -> dict[str, int | None]:
    """Return how far a training is, and of a ready tune which of its steps was published."""
    if tune.status == "ready":
        made = tune.made
        step = made.steps if made.published_step is None else made.published_step
        return {"step": step, "total_steps": made.steps}
    return {"step": tune.step, "total_steps": tune.total_steps}


@router.post("/tunes/import", status_code=201)
@answers(TuneFacts)
@rehearsable
async def import_tune(request: Body, mine: Desk = Mine) -> dict[str, Any] | Response:
    """Take in a LoRA, LoHa, LoKr, DoRA or embedding of another program as a tune: a file, or the address of one.

    What cannot be taken whole and at its own strength is refused by name.
    """
    taken = await run_in_threadpool(take_in, mine, await read_body(request))
    return taken if isinstance(taken, Report) else tune_facts(taken)


@router.get("/tunes/{key}")
@answers(TuneFacts)
def tune(key: str, mine: Desk = Mine) -> dict[str, Any]:
    """Describe one tune."""
    row, _seen = mine.tune(own_id(key))
    return tune_facts(row)


@router.get("/tunes/{key}/timeline")
@answers(Timeline)
def timeline(key: str, mine: Desk = Mine) -> dict[str, Any]:
    """List the phases of a tune with start, end and words; its speed, expected end and last sample now."""
    row, seen = mine.tune(own_id(key))
    phases = _phases(mine, row.id)
    asked = {"request_id": seen.asked.get("request_id") if seen else None}
    return {
        **tune_facts(row),
        **asked,
        **_pace(row, phases, mine.registry.now()),
        "last_sample": _last_sample(mine, row),
        "phases": phases,
    }


@router.get("/prompts/{key}/timeline")
@answers(PromptTimeline)
def prompt_timeline(key: str, mine: Desk = Mine) -> dict[str, Any]:
    """List the phases of a prompt with start, end and words."""
    row, _seen = mine.prompt(own_id(key))
    return {**prompt_facts(mine, row), "phases": _phases(mine, row.id)}


def prompt_facts(mine: Desk, row: Prompt) -> dict[str, Any]:
    """Return what the owner of a prompt may know about it."""
    return {
        "id": row.id,
        "number": row.number,
        "tune_id": row.tune_id,
        "base": row.base,
        "text": row.text,
        "settings": row.settings,
        "status": row.status,
        "progress": mine.progress(row),
        "images": mine.images(row),
        "result": row.result,
        "failure": failure_facts(row),
        "warnings": row.warnings,
        "findings": row.findings,
        "created_at": iso(row.created_at),
        "done_at": iso(row.done_at),
    }


def _phases(mine: Desk, subject_id: str) -> list[dict[str, Any]]:
    """Return the phases in their order; what was said inside one is under `said`."""
    phases: list[dict[str, Any]] = []
    for event in mine.registry.events.of(subject_id):
        if not phases or phases[-1]["phase"] != event.phase:
            if phases:
                phases[-1]["end"] = iso(event.at)
            phases.append({"phase": event.phase, "start": iso(event.at), "end": None, "said": []})
        phases[-1]["message"] = event.message
        if "run_id" in event.data:
            phases[-1]["run_id"] = event.data["run_id"]
        phases[-1]["said"].append({"at": iso(event.at), "message": event.message})
    return phases


def _pace(tune: Tune, phases: list[dict[str, Any]], now: datetime) -> dict[str, Any]:
    """Return how fast a training goes and when it should end; nothing when it is not training."""
    began = next((p["start"] for p in reversed(phases) if p["phase"] == "training"), None)
    if tune.status != "training" or began is None:
        return {"steps_per_second": None, "eta": None}
    seconds = (now - datetime.fromisoformat(began)).total_seconds()
    ends = None if tune.seconds_left is None else now + timedelta(seconds=tune.seconds_left)
    return {"steps_per_second": round(tune.step / seconds, 3) if seconds > 1 else None, "eta": iso(ends)}


def _last_sample(mine: Desk, tune: Tune) -> str | None:
    """Return the URL of the newest picture that shows what a tune has learned, or None."""
    if tune.status not in ("training", "trained", "finishing", "ready"):
        return None
    names = (name for name in mine.service.store.list(f"tunes/{tune.id}/lora") if name.endswith(".png"))
    shown = sorted(name for name in names if "/samples" in name or "sheet" in name)
    return mine.url(shown[-1], None, 1.0) if shown else None


@router.post("/tunes/{key}/cancel")
@answers(TuneFacts)
def cancel(key: str, body: CancelBody | None = None, mine: Desk = Mine) -> dict[str, Any]:
    """Stop a tune, which costs the part of its training that was done; with `keep` it becomes ready, at its price."""
    row, _seen = mine.tune(own_id(key))
    keep = body.keep if body else False
    return tune_facts(mine.registry.work.cancel_tune(row.id, keep=keep, by_caller=True))


@router.get("/tunes/{key}/weights/{form}", responses=FILE_ANSWERS)
def weights(key: str, form: str, mine: Desk = Mine) -> Response:
    """Deliver the weights as `diffusers` or `kohya` safetensors; a whole model as the zip of its diffusers folder.

    `embeddings` are the words that a tune of the kind pti has learned for its token.
    """
    row, _seen = mine.tune(own_id(key))
    wanted = next((one for one in served(row) if one.form == form), None)
    if wanted is None:
        raise not_found("Weights")
    try:
        return answer(mine.service.store, wanted.key, wanted.name)
    except FileNotFoundError:
        raise not_found("Weights") from None


@router.get("/tunes/{key}/captions")
@answers(Captions)
def captions(key: str, mine: Desk = Mine) -> dict[str, Any]:
    """List the captions of a tune's pictures with where each came from."""
    from tunes_dagster.intake.captions import CaptionTable

    row, _seen = mine.tune(own_id(key))
    try:
        table = CaptionTable.load(mine.service.store, row.id)
    except FileNotFoundError:
        raise not_found("Captions") from None
    rows = [
        {"picture": one.hash, "name": one.name, "caption": one.caption, "source": one.source}
        for one in table.rows
    ]
    return {"version": table.version, "captions": rows}


@router.put("/tunes/{key}/captions")
@answers(Captions)
def edit_captions(key: str, body: CaptionsBody, mine: Desk = Mine) -> dict[str, Any]:
    """Change captions; they count from the next training on."""
    from tunes_dagster.intake.captions import set_captions

    row, _seen = mine.tune(own_id(key))
    try:
        set_captions(row.id, body.captions, mine.service.store)
    except FileNotFoundError:
        raise not_found("Captions") from None
    return captions(key, mine)


@router.get("/account")
@answers(AccountFacts)
def account(mine: Desk = Mine) -> dict[str, Any]:
    """Say what the account may spend, and what it did last."""
    wallet = mine.wallet()
    entries = [
        {
            "at": iso(entry.at),
            "kind": entry.kind,
            "of": entry.subject_id,
            "memo": entry.memo,
            "usd": moved / 1e6,
        }
        for entry, moved in mine.registry.ledger.entries(mine.account_id)
    ]
    return {
        "account": mine.account_id,
        "plan": wallet.plan,
        "available_usd": wallet.available / 1e6,
        "reserved_usd": wallet.reserved / 1e6,
        "requests_per_minute": wallet.requests_per_minute,
        "tunes": mine.registry.objects.count_open(mine.account_id),
        "ledger": entries,
    }


def _callback_facts(row: Callback) -> dict[str, Any]:
    return {
        "id": row.id,
        "event": row.event,
        "of": row.subject_id,
        "url": row.url,
        "state": row.state,
        "attempts": row.attempts,
        "next_attempt_at": iso(row.next_attempt_at),
        "delivered_at": iso(row.delivered_at),
    }


def _own_callback(mine: Desk, callback_id: str) -> Callback:
    rows = mine.registry.outbox.rows(limit=1, callback_id=callback_id)
    if not rows or rows[0].account_id != mine.account_id:
        raise not_found("Callback")
    return rows[0]


@router.get("/callbacks")
@answers(list[CallbackFacts])
def callbacks(mine: Desk = Mine) -> list[dict[str, Any]]:
    """List the account's callbacks, newest first."""
    return [_callback_facts(row) for row in mine.registry.outbox.of_account(mine.account_id)]


@router.get("/callbacks/{callback_id}")
@answers(CallbackLog)
def callback_log(callback_id: str, mine: Desk = Mine) -> dict[str, Any]:
    """Show every attempt at a callback with what the receiver answered."""
    row = _own_callback(mine, callback_id)
    attempts = [
        {
            "attempt": one.attempt,
            "at": iso(one.started_at),
            "status": one.status_code,
            "error": one.error,
            "answer": one.response_head,
        }
        for one in mine.registry.outbox.deliveries(row.id)
    ]
    return {**_callback_facts(row), "deliveries": attempts}


@router.post("/callbacks/{callback_id}/replay")
@answers(CallbackFacts)
def replay(callback_id: str, mine: Desk = Mine) -> dict[str, Any]:
    """Send a callback again that did not arrive."""
    row = _own_callback(mine, callback_id)
    return _callback_facts(mine.registry.outbox.replay(row.id))


@router.post("/callbacks/sample", status_code=201)
@answers(CallbackFacts)
def sample(body: SampleBody, mine: Desk = Mine) -> dict[str, Any]:
    """Send a sample callback to an address, signed if the account signs, in the form of an API."""
    check_callback_url(body.url, mine.service.settings)
    if made := mine.made_before():
        return _callback_facts(_own_callback(mine, made[0]))
    mine.service.hit_sample(mine.account_id)

    if body.dialect == "native":
        told = {"type": "sample", "data": {"message": "This is a sample callback."}}
        shown = Sample(url=body.url, body=told)
    else:
        shown = _sample_of(mine, body.url, body.dialect)
    return _callback_facts(mine.registry.outbox.add(mine.account_id, shown, mine.claim))


def _sample_of(mine: Desk, url: str, dialect: str) -> Sample:
    """Return a sample in the form of a dialect: what would be said of the newest tune that came through it.

    Raises:
        HttpProblem: 404 when none did.
    """
    rows = mine.registry.objects.page_tunes(mine.account_id, Page(limit=1), TuneFilter(dialect=dialect))
    if not rows:
        raise not_found(f"A tune that came through {dialect}")
    tune, event = rows[0][0], "tune.ready"
    told = tune_body(event, tune, mine.registry.now())
    return Sample(url=url, body=told, event=event, subject_id=tune.id, form=dialect, on_unknown="hold")


@router.get("/compositions")
@answers(list[CompositionFacts])
def list_compositions(mine: Desk = Mine) -> list[dict[str, str]]:
    """List the stored compositions that prompts may name."""
    return [{"id": one.id, "name": name, "text": one.text} for name, one in compositions().items()]
