"""PixelAPI image: generate, status, models, balance, usage."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Query

from tunes_dagster.core.clock import iso
from tunes_dagster.core.recipe import PromptRequest, RenderSettings
from tunes_dagster.gateway.accepting import View
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.dialect import desk, manners
from tunes_dagster.gateway.dialects.pixelapi.tunes import expired
from tunes_dagster.gateway.dialects.pixelapi.wire import (
    BASES,
    BODY,
    HOURS,
    KEYS,
    NAME,
    GenerateBody,
    credits,
    error,
    even,
    own_id,
    prompt_status,
    unknown_fields,
)
from tunes_dagster.gateway.problems import invalid
from tunes_dagster.gateway.rehearsal import rehearsable
from tunes_dagster.registry import ApiObject, Prompt, Reservation

router = APIRouter(prefix="/v1", route_class=manners(NAME, error, KEYS, BODY), tags=["images"])
Mine = Depends(desk)

# Model → range of steps, what it does. The last two need their weights (`tunes bases pull`).
_MODELS: dict[str, tuple[tuple[int, int], str]] = {
    "sdxl": ((20, 50), "text-to-image"),
    "flux-schnell": ((1, 8), "text-to-image"),
    "upscale-4x": ((1, 50), "upscale"),
    "cogvideo-2b": ((1, 50), "text-to-video"),
}


@router.post("/image/generate")
@rehearsable
def generate(body: GenerateBody, mine: Desk = Mine) -> dict[str, Any]:
    """Render one picture on a plain base."""
    if body.model not in _MODELS:
        raise invalid("model", f"is {body.model!r}; known are {', '.join(_MODELS)}")
    (low, high), kind = _MODELS[body.model]
    base = BASES.get(body.model, body.model)
    if kind != "upscale" and not body.prompt.strip():
        raise invalid("prompt", "is required")
    if body.steps is not None and not low <= body.steps <= high:
        raise invalid("steps", f"must be {low} to {high} for {body.model}")
    settings = _settings(mine, body, kind)
    request = PromptRequest(text=body.prompt, base=base, settings=settings)
    view = View(NAME, {"kind": "image", "model": body.model})
    mine.headers.update(unknown_fields(body))
    prompt = mine.accept_prompt(request, view)
    answer = {
        "generation_id": _public(prompt),
        "status": "queued",
        "model": body.model,
        "credits_used": credits(mine.price_of(prompt.id)),
    }
    if kind == "text-to-image" and (settings.width, settings.height) != (body.width, body.height):
        answer |= {"width": settings.width, "height": settings.height}
    return answer


def _settings(mine: Desk, body: GenerateBody, kind: str) -> RenderSettings:
    """Return what a model takes of the fields."""
    image = mine.picture("image_url", body.image_url) or mine.picture("image", body.image)
    guidance = body.guidance_scale
    if kind == "upscale":
        return RenderSettings(seed=body.seed, steps=body.steps, guidance_scale=guidance, input_image=image)
    if kind == "text-to-video":
        if image:
            raise invalid("image_url", f"is not taken by {body.model}")
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
def status(generation_id: str, mine: Desk = Mine) -> dict[str, Any]:
    """Report a picture."""
    prompt, seen = mine.prompt(own_id(generation_id), "Generation")
    held = mine.registry.prices_of([prompt.id]).get(prompt.id)
    return {**_described(mine, prompt, seen, held), "error": prompt.failure_message or None}


# Paths that the vendor's own SDKs use beside the documented one.
router.add_api_route("/jobs/{generation_id}", status, methods=["GET"], include_in_schema=False)
router.add_api_route("/generation/{generation_id}", status, methods=["GET"], include_in_schema=False)


def _described(
    mine: Desk, prompt: Prompt, seen: ApiObject | None, held: Reservation | None
) -> dict[str, Any]:
    images = [] if expired(prompt.done_at) else mine.images(prompt, HOURS)
    return {
        "id": _public(prompt),
        "status": prompt_status(prompt.status),
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
def balance(mine: Desk = Mine) -> dict[str, Any]:
    """Credits that can be spent now."""
    wallet = mine.wallet()
    return {"credits_remaining": credits(wallet.available), "plan": wallet.plan, "email": wallet.email}


router.add_api_route("/account/credits", balance, methods=["GET"], include_in_schema=False)


@router.get("/account/usage")
def usage(limit: int = Query(default=20, ge=1, le=100), mine: Desk = Mine) -> dict[str, Any]:
    """List the latest pictures with what each cost."""
    rows = mine.registry.page_prompts(mine.account_id, limit=limit)
    held = mine.registry.prices_of([prompt.id for prompt, _ in rows])
    listed = [
        {**_described(mine, prompt, seen, held.get(prompt.id)), "prompt": prompt.text}
        for prompt, seen in rows
    ]
    return {"usage": listed, "total": mine.registry.count_prompts(mine.account_id)}


router.add_api_route("/usage", usage, methods=["GET"], include_in_schema=False)
