"""PixelAPI image: generate, status, models, balance, usage."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Query, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from tunes_dagster.core.clock import iso
from tunes_dagster.core.ids import new_id
from tunes_dagster.core.recipe import PromptRequest, RenderSettings
from tunes_dagster.gateway.accepting import View
from tunes_dagster.gateway.answers import answers
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.dialect import desk, manners
from tunes_dagster.gateway.dialects.pixelapi.answers import (
    Balance,
    BatchAnswer,
    BatchStatus,
    GenerateAnswer,
    GenerationStatus,
    ImageModels,
    Usage,
)
from tunes_dagster.gateway.dialects.pixelapi.tunes import expired
from tunes_dagster.gateway.dialects.pixelapi.wire import (
    BASES,
    BODY,
    HOURS,
    KEYS,
    NAME,
    BatchBody,
    GenerateBody,
    PictureBody,
    UpscaleBody,
    VideoBody,
    credits,
    error,
    even,
    own_id,
    prompt_status,
    read_fields,
    sdk_status,
    speaks_sdk,
    unknown_fields,
)
from tunes_dagster.gateway.problems import HttpProblem, invalid, not_found
from tunes_dagster.gateway.rehearsal import Report, rehearsable
from tunes_dagster.registry import ApiObject, Prompt, Reservation
from tunes_dagster.registry.filters import Page

router = APIRouter(prefix="/v1", route_class=manners(NAME, error, KEYS, BODY), tags=["images"])
Mine = Depends(desk)

# Model → range of steps, what it does. The last two need their weights (`tunes bases pull`).
_MODELS: dict[str, tuple[tuple[int, int], str]] = {
    "sdxl": ((20, 50), "text-to-image"),
    "flux-schnell": ((1, 8), "text-to-image"),
    "upscale-4x": ((1, 50), "upscale"),
    "cogvideo-2b": ((1, 50), "text-to-video"),
}
_UPSCALER = "upscale-4x"


@router.post("/image/generate")
@answers(GenerateAnswer)
@rehearsable
async def generate(request: Body, mine: Desk = Mine) -> dict[str, Any] | Response:
    """Render one picture on a plain base."""
    return await run_in_threadpool(_generate, mine, *await read_fields(request, GenerateBody))


@router.post("/video/generate")
@answers(GenerateAnswer)
@rehearsable
async def generate_video(request: Body, mine: Desk = Mine) -> dict[str, Any] | Response:
    """Make a clip."""
    return await run_in_threadpool(_generate, mine, *await read_fields(request, VideoBody))


@router.post("/image/upscale")
@answers(GenerateAnswer)
@rehearsable
async def upscale(request: Body, mine: Desk = Mine) -> dict[str, Any] | Response:
    """Enlarge a picture four times."""
    body, files = await read_fields(request, UpscaleBody)
    return await run_in_threadpool(_upscale, mine, body, files)


@router.post("/image/batch")
@answers(BatchAnswer)
@rehearsable
async def batch(request: Body, mine: Desk = Mine) -> dict[str, Any] | Response:
    """Enlarge up to 100 pictures, all or none."""
    body, _files = await read_fields(request, BatchBody)
    return await run_in_threadpool(_batch, mine, body)


@router.post("/image/{operation}", include_in_schema=False)
def unserved(operation: str, mine: Desk = Mine) -> dict[str, Any]:
    """Say of what the vendor has and this server has not that it is not there."""
    said = "/v1/image/generate, /v1/image/upscale, /v1/image/batch and /v1/video/generate are"
    raise HttpProblem(404, f"/v1/image/{operation[:60]} is not served here; {said}", code="not_found")


def _generate(mine: Desk, body: GenerateBody, files: list[UploadFile]) -> dict[str, Any] | Response:
    if body.model not in _MODELS:
        raise invalid("model", f"is {body.model!r}; known are {', '.join(_MODELS)}")
    (low, high), kind = _MODELS[body.model]
    if isinstance(body, VideoBody) and kind != "text-to-video":
        raise invalid("model", f"is {body.model!r}, which makes pictures: /v1/image/generate")
    if kind != "upscale" and not body.prompt.strip():
        raise invalid("prompt", "is required")
    if body.steps is not None and not low <= body.steps <= high:
        raise invalid("steps", f"must be {low} to {high} for {body.model}")
    settings = _settings(body, kind, _picture(mine, body, files))
    mine.headers.update(unknown_fields(body))
    answer = _accepted(mine, body.model, body.prompt, settings)
    if isinstance(answer, Report):
        return answer
    if kind == "text-to-image" and (settings.width, settings.height) != (body.width, body.height):
        answer |= {"width": settings.width, "height": settings.height}
    return answer


def _accepted(mine: Desk, model: str, text: str, settings: RenderSettings) -> dict[str, Any] | Report:
    request = PromptRequest(text=text, base=BASES.get(model, model), settings=settings)
    prompt = mine.accept_prompt(request, View(dialect=NAME, asked={"kind": "image", "model": model}))
    if isinstance(prompt, Report):
        return prompt
    return {
        "generation_id": _public(prompt),
        "status": _word(mine, "queued"),
        "model": model,
        "credits_used": credits(mine.price_of(prompt.id)),
    }


def _word(mine: Desk, word: str) -> str:
    return sdk_status(word) if speaks_sdk(mine.request) else word


def _picture(mine: Desk, body: PictureBody, files: list[UploadFile]) -> str | None:
    if files:
        return mine.keep_picture(files[0])
    return mine.picture("image_url", body.image_url) or mine.picture("image", body.image)


def _check_scale(scale: int) -> None:
    if scale != 4:
        raise invalid("scale", f"is {scale}; pictures are enlarged 4 times here")


def _upscale(mine: Desk, body: UpscaleBody, files: list[UploadFile]) -> dict[str, Any] | Response:
    _check_scale(body.scale)
    picture = _picture(mine, body, files)
    if picture is None:
        raise invalid("image_url", "is required")
    mine.headers.update(unknown_fields(body))
    return _accepted(mine, _UPSCALER, "", RenderSettings(input_image=picture))


def _batch(mine: Desk, body: BatchBody) -> dict[str, Any] | Response:
    if body.operation not in ("upscale", _UPSCALER):
        raise invalid("operation", f"is {body.operation!r}; known is upscale")
    _check_scale(body.scale)
    mine.headers.update(unknown_fields(body))
    group = new_id("batch")
    view = View(dialect=NAME, asked={"kind": "image", "model": _UPSCALER}, group_id=group)
    pictures = [mine.picture("images", one) for one in body.images]
    orders = [
        (PromptRequest(text="", base=_UPSCALER, settings=RenderSettings(input_image=one)), view)
        for one in pictures
    ]
    prompts = mine.accept_prompts(orders)
    if isinstance(prompts, Report):
        return prompts
    _first, seen = mine.prompt(prompts[0].id)  # of a repeated request, what the first one made
    cost = sum(mine.price_of(prompt.id) for prompt in prompts)
    return {
        "batch_id": (seen.group_id if seen else None) or group,
        "status": _word(mine, "queued"),
        "total": len(prompts),
        "credits_used": credits(cost),
    }


@router.get("/image/batch/{batch_id}")
@answers(BatchStatus)
def batch_status(batch_id: str, mine: Desk = Mine) -> dict[str, Any]:
    """Report a batch: completed when no picture of it is open any more, failed when none came of it."""
    members = [
        one for one in mine.registry.objects.group_members(batch_id) if one[0].account_id == mine.account_id
    ]
    if not members:
        raise not_found("Batch")
    far = mine.registry.groups.progress_of([prompt for prompt, _seen in members])
    results = [_reported(mine, prompt, seen, far[prompt.id]) for prompt, seen in members]
    done = sum(prompt.status == "done" for prompt, _seen in members)
    is_open = any(prompt.status in ("waiting", "queued", "rendering") for prompt, _seen in members)
    status = "processing" if is_open else "completed" if done else "failed"
    return {
        "batch_id": batch_id,
        "status": status,
        "total": len(members),
        "completed": done,
        "results": [] if is_open else results,
        "error": results[0]["error"] if status == "failed" else None,
    }


def _settings(body: GenerateBody, kind: str, image: str | None) -> RenderSettings:
    """Return what a model takes of the fields."""
    guidance = body.guidance_scale
    if kind == "upscale":
        return RenderSettings(seed=body.seed, steps=body.steps, guidance_scale=guidance, input_image=image)
    if kind == "text-to-video":
        if image:
            raise invalid("image_url", f"is not taken by {body.model}")
        frames = body.num_frames if isinstance(body, VideoBody) else None
        given = {
            name: getattr(body, name) // 16 * 16
            for name in ("width", "height")
            if name in body.model_fields_set
        }
        return RenderSettings(
            seed=body.seed,
            steps=body.steps,
            guidance_scale=guidance,
            negative_prompt=body.negative_prompt,
            num_frames=frames,
            **given,
        )
    return RenderSettings(
        seed=body.seed,
        steps=body.steps,
        guidance_scale=guidance,
        negative_prompt=body.negative_prompt,
        width=even(body.width),
        height=even(body.height),
        input_image=image,
    )


def _public(prompt: Prompt) -> str:
    return "gen_" + prompt.id.removeprefix("prompt_")


@router.get("/image/{generation_id}")
@answers(GenerationStatus)
def status(generation_id: str, mine: Desk = Mine) -> dict[str, Any]:
    """Report a picture."""
    prompt, seen = mine.prompt(own_id(generation_id), "Generation")
    return _reported(mine, prompt, seen, mine.progress(prompt))


def _reported(mine: Desk, prompt: Prompt, seen: ApiObject | None, progress: float) -> dict[str, Any]:
    held = mine.registry.ledger.prices_of([prompt.id]).get(prompt.id)
    described, said = _described(mine, prompt, seen, held), prompt.failure_message or None
    # By either name in the vendor's own clients.
    return {
        **described,
        "generation_id": described["id"],
        "progress": progress,
        "error": said,
        "error_message": said,
    }


# Paths that the vendor's own SDKs use beside the documented one.
router.add_api_route("/jobs/{generation_id}", status, methods=["GET"], include_in_schema=False)
router.add_api_route("/generation/{generation_id}", status, methods=["GET"], include_in_schema=False)
router.add_api_route("/image/upscale/{generation_id}", status, methods=["GET"], include_in_schema=False)
router.add_api_route("/video/{generation_id}", status, methods=["GET"], include_in_schema=False)


def _described(
    mine: Desk, prompt: Prompt, seen: ApiObject | None, held: Reservation | None
) -> dict[str, Any]:
    images = [] if expired(mine, prompt.done_at) else mine.images(prompt, HOURS)
    return {
        "id": _public(prompt),
        "status": _word(mine, prompt_status(prompt.status)),
        "output_url": images[0] if images else None,
        "model": (seen.asked.get("model") if seen else None) or prompt.base,
        "credits_used": credits(_charged(held)),
        "created_at": iso(prompt.created_at),
        "completed_at": iso(prompt.done_at) if prompt.status == "done" else None,
    }


def _charged(held: Reservation | None) -> int:
    """Return what a picture costs so far: its price while it is open, then what was really charged."""
    if held is None:
        return 0
    return held.amount if held.state == "open" else held.settled


@router.get("/models")
@answers(ImageModels)
def models(mine: Desk = Mine) -> dict[str, Any]:
    """List models with their prices and whether this server can run them."""
    catalog, folder, rows = mine.service.catalog, mine.service.settings.bases_folder, []
    for name, ((low, high), kind) in _MODELS.items():
        base = BASES.get(name, name)
        rows.append(
            {
                "id": name,
                "type": kind,
                "credits": credits(mine.picture_price(base, tuned=False)),
                "capabilities": {"steps": [low, high], "width": [512, 1536], "height": [512, 1536]},
                "status": "available" if catalog.serves(base, folder) else "unavailable",
            }
        )
    return {"models": rows}


@router.get("/account/balance")
@answers(Balance)
def balance(mine: Desk = Mine) -> dict[str, Any]:
    """Credits that can be spent now."""
    wallet = mine.wallet()
    return {"credits_remaining": credits(wallet.available), "plan": wallet.plan, "email": wallet.email}


router.add_api_route("/account/credits", balance, methods=["GET"], include_in_schema=False)


@router.get("/account/usage")
@answers(Usage)
def usage(limit: int = Query(default=20, ge=1, le=100), mine: Desk = Mine) -> dict[str, Any]:
    """List the latest pictures with what each cost."""
    rows = mine.registry.objects.page_prompts(mine.account_id, Page(limit=limit))
    held = mine.registry.ledger.prices_of([prompt.id for prompt, _ in rows])
    listed = [
        {**_described(mine, prompt, seen, held.get(prompt.id)), "prompt": prompt.text}
        for prompt, seen in rows
    ]
    return {"usage": listed, "total": mine.registry.objects.count_prompts(mine.account_id)}


router.add_api_route("/usage", usage, methods=["GET"], include_in_schema=False)
