"""PixelAPI tunes: train, upload, status, infer, models, delete."""

from __future__ import annotations

import hmac
import secrets
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from tunes_dagster.callbacks.bodies import failure_facts
from tunes_dagster.core.clock import iso
from tunes_dagster.core.recipe import PromptRequest, RenderSettings, TrainingOptions, TuneRequest
from tunes_dagster.gateway.accepting import View, token_hash
from tunes_dagster.gateway.answers import answers
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.desk import Desk, desk_for
from tunes_dagster.gateway.dialect import base_url, desk, manners, service_of
from tunes_dagster.gateway.dialects.pixelapi.answers import (
    Config,
    Deleted,
    InferAnswer,
    RenderStatus,
    TrainAnswer,
    TrainedModel,
    TrainingStatus,
    UploadAnswer,
)
from tunes_dagster.gateway.dialects.pixelapi.wire import (
    BASES,
    HOURS,
    KEYS,
    NAME,
    SOUGHT_PICTURES,
    InferBody,
    TrainBody,
    credits,
    error,
    even,
    lora_id,
    own_id,
    prompt_status,
    read_fields,
    tune_status,
    unknown_fields,
    whole,
)
from tunes_dagster.gateway.problems import HttpProblem, invalid, not_found
from tunes_dagster.gateway.rehearsal import Report, in_form, refuse_unless, rehearsable, truth
from tunes_dagster.gateway.uploads import files_of, keep_files, read_form
from tunes_dagster.registry import Prompt, Tune
from tunes_dagster.registry.filters import Page, TuneFilter
from tunes_dagster.registry.retrying import may_have_been_kept
from tunes_dagster.service.download import served_key

router = APIRouter(prefix="/v1/tunes", route_class=manners(NAME, error, KEYS), tags=["tunes"])
Mine = Depends(desk)
_EVENTS = ("tune.ready", "tune.failed", "tune.cancelled")


@router.get("/config")
@answers(Config)
def config(request: Request) -> dict[str, Any]:
    """Prices, models and limits; needs no key."""
    service = service_of(request)

    def price(model: str, **more: Any) -> dict[str, Any]:
        entry = service.catalog.resolve(BASES[model])
        if more:
            micro = service.prices.picture(entry.base_id, entry.family, tuned=True)
        else:
            micro = service.prices.training(entry.base_id, entry.family, "lora")
        return {"credits": whole(micro), "usd": micro / 1e6, **more}

    low, high = SOUGHT_PICTURES
    return {
        "service": "tunesapi",
        "pricing": {
            "train_sdxl": price("sdxl"),
            "train_flux": price("flux"),
            "infer_sdxl": price("sdxl", per="image"),
            "infer_flux": price("flux", per="image"),
        },
        "models": ["sdxl", "flux"],
        "max_training_images": high,
        "min_training_images": low,
    }


@router.post("/train")
@answers(TrainAnswer)
@rehearsable
async def train(request: Body, mine: Desk = Mine) -> dict[str, Any] | Response:
    """Open a training job, which waits for its pictures."""
    body, _files = await read_fields(request, TrainBody)
    return await run_in_threadpool(_train, mine, body)


def _train(mine: Desk, body: TrainBody) -> dict[str, Any] | Response:
    low, high = SOUGHT_PICTURES
    request = TuneRequest(
        name="subject",
        title=body.trigger_word,
        token=body.trigger_word,
        base=BASES[body.model],
        dataset={"min_pictures": low, "max_pictures": high},
        training=TrainingOptions(steps=body.steps, rank=body.rank, learning_rate=body.learning_rate),
        callback_url=body.webhook_url or None,
    )
    view = View(dialect=NAME, asked={"model": body.model}, events=_EVENTS, awaits_pictures=True)
    mine.headers.update(unknown_fields(body))
    tune = mine.accept_tune(request, view)
    if isinstance(tune, Report):
        return tune
    return {
        "job_id": tune.id,
        "status": "awaiting_images",
        "model": body.model,
        "estimated_time_seconds": round(mine.estimated_seconds(request.base)),
        "credits_cost": whole(mine.price_of(tune.id)),
        "credits_remaining": credits(mine.wallet().available),
        "upload_url": f"/v1/tunes/{tune.id}/upload?token={mine.upload_token(tune.id)}",
    }


@router.post("/infer")
@answers(InferAnswer)
@rehearsable
async def infer(request: Body, mine: Desk = Mine) -> dict[str, Any] | Response:
    """Render pictures with a tune, which may still be in training."""
    body, _files = await read_fields(request, InferBody)
    return await run_in_threadpool(_infer, mine, body)


def _infer(mine: Desk, body: InferBody) -> dict[str, Any] | Response:
    tune, seen = mine.tune(own_id(body.tune_id), "Tune")
    made_on = (seen.asked.get("model") if seen else None) or ("flux" if "flux" in tune.base else "sdxl")
    if body.model is not None and body.model.removesuffix("-pro") != made_on:
        raise invalid("model", f"is {body.model}, but the tune was trained on {made_on}")
    settings = RenderSettings(
        num_images=body.num_images,
        steps=50 if body.model == "flux-pro" and body.steps is None else body.steps,
        guidance_scale=body.guidance_scale,
        negative_prompt=body.negative_prompt,
        width=even(body.width),
        height=even(body.height),
    )
    request = PromptRequest(text=body.prompt, tune=tune.id, settings=settings)
    quality = "pro" if body.model == "flux-pro" else ""
    view = View(dialect=NAME, asked={"kind": "infer", "model": body.model or made_on}, quality=quality)
    mine.headers.update(unknown_fields(body))
    prompt = mine.accept_prompt(request, view)
    if isinstance(prompt, Report):
        return prompt
    answer: dict[str, Any] = {
        "job_id": "inf_" + prompt.id.removeprefix("prompt_"),
        "status": "queued",
        "credits_cost": whole(mine.price_of(prompt.id)),
        "credits_remaining": credits(mine.wallet().available),
    }
    if (settings.width, settings.height) != (body.width, body.height):
        answer |= {"width": settings.width, "height": settings.height}
    return answer


@router.get("/models")
@answers(list[TrainedModel])
def models(mine: Desk = Mine) -> list[dict[str, Any]]:
    """List trained models, newest first."""
    rows = mine.registry.objects.page_tunes(mine.account_id, Page(limit=1000), TuneFilter(status="ready"))
    return [
        {
            "tune_id": lora_id(tune.id),
            "trigger_word": tune.token,
            "base_model": (seen.asked.get("model") if seen else None) or tune.base,
            "status": "ready",
            "created_at": iso(tune.created_at),
            "file_size_mb": _megabytes(mine, tune),
        }
        for tune, seen in rows
    ]


def _megabytes(mine: Desk, tune: Tune) -> float:
    key = served_key(tune)
    try:
        return round(mine.service.store.size(key) / 1e6, 1) if key else 0.0
    except FileNotFoundError:
        return 0.0


@router.post("/{job_id}/upload")
@answers(UploadAnswer)
async def upload(job_id: str, request: Body, token: str = "") -> dict[str, Any]:
    """Take the pictures of a job; whoever holds the token may send them."""
    service = service_of(request)
    seen = await run_in_threadpool(service.registry.objects.get, job_id)
    good = seen is not None and seen.upload_hash and hmac.compare_digest(seen.upload_hash, token_hash(token))
    if not good or seen is None:
        raise HttpProblem(403, "Invalid or expired upload token", code="forbidden")
    expired = seen.upload_expires_at is not None and seen.upload_expires_at < service.registry.now()
    if expired:
        raise HttpProblem(403, "Invalid or expired upload token", code="forbidden")
    tune = await run_in_threadpool(service.registry.tunes.get, job_id)
    _still_waiting(tune)
    wallet = await run_in_threadpool(service.registry.ledger.wallet, seen.account_id)
    request.state.account = seen.account_id  # the token stands for the key from here on
    form = await read_form(request, wallet.options)
    try:
        for value in in_form(form):
            if truth(value):
                refuse_unless(upload)
        files = files_of(form, "images", "images[]")
        low, high = SOUGHT_PICTURES
        if not low <= len(files) <= high:
            raise invalid(
                "images", f"has {len(files)} files, but {low} to {high} are needed; send all in one request"
            )
        mine = desk_for(service, seen.account_id, base_url(request))
        await run_in_threadpool(_receive, mine, tune, files)
    finally:
        await form.close()
    request.state.subject = tune.id
    return {
        "status": "queued",
        "job_id": tune.id,
        "images_uploaded": len(files),
        "message": "Images uploaded. Training will start when a GPU worker is available.",
    }


def _still_waiting(tune: Tune) -> None:
    if tune.status == "deleted":
        raise not_found("Job")
    if tune.status != "awaiting_images":
        raise HttpProblem(
            409, f"The job has its images already: it is {tune_status(tune.status)}", code="conflict"
        )


def _receive(mine: Desk, tune: Tune, files: list[Any]) -> None:
    # Two uploads at once must not write over each other's files; the one that loses takes its own away.
    keys = keep_files(mine.service.store, tune.id, files, first=secrets.randbelow(9000))
    try:
        mine.registry.uploads.receive(tune.id, keys)
    except Exception as refused:
        for key in () if may_have_been_kept(refused) else keys:
            mine.service.store.delete(key)
        raise


@router.get("/{job_id}")
@answers(TrainingStatus | RenderStatus)
def status(job_id: str, mine: Desk = Mine) -> dict[str, Any]:
    """Report a training job (`tune_…`) or a render job (`inf_…`)."""
    if job_id.startswith("inf_"):
        prompt, _seen = mine.prompt(own_id(job_id), "Job")
        return infer_status(mine, prompt)
    tune, _seen = mine.tune(own_id(job_id), "Job")
    word = tune_status(tune.status)
    answer: dict[str, Any] = {
        "job_id": tune.id,
        "status": word,
        "progress": round(tune.progress, 1),
        "created_at": iso(tune.created_at),
        "completed_at": iso(tune.ready_at),
    }
    if word == "completed":
        answer["tune_id"] = lora_id(tune.id)
    elif word == "failed":
        failure = failure_facts(tune) or {"message": "The job was cancelled.", "remedy": ""}
        answer["error"] = f"{failure['message']} {failure['remedy']}".strip()
    else:
        answer["phase"], answer["message"] = tune.phase, tune.message
    return answer


def infer_status(mine: Desk, prompt: Prompt) -> dict[str, Any]:
    """Return the status of a render job with its pictures."""
    images = [] if expired(mine, prompt.done_at) else mine.images(prompt, HOURS)
    answer: dict[str, Any] = {
        "job_id": "inf_" + prompt.id.removeprefix("prompt_"),
        "status": prompt_status(prompt.status),
        "progress": mine.progress(prompt),
        "created_at": iso(prompt.created_at),
        "completed_at": iso(prompt.done_at) if prompt.status == "done" else None,
        "images": images,
        "output_url": images[0] if images else None,
        "output_urls": images,
    }
    if prompt.failure_message:
        answer["error"] = prompt.failure_message
    return answer


def expired(mine: Desk, done_at: datetime | None) -> bool:
    """Whether a day has passed since the pictures were made."""
    return done_at is not None and (mine.registry.now() - done_at).total_seconds() > HOURS * 3600


@router.delete("/{tune_id}")
@answers(Deleted)
def delete(tune_id: str, mine: Desk = Mine) -> dict[str, Any]:
    """Delete a model with its files, or a job."""
    tune, _seen = mine.tune(own_id(tune_id), "Tune")
    mine.delete_tune(tune)
    return {"status": "deleted", "tune_id": tune_id}
