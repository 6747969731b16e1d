"""From Astria's fields to canonical requests: which base, how it is trained, how a prompt is rendered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunes_dagster.failures import Failure
from tunes_dagster.gateway.desk import Desk, View
from tunes_dagster.gateway.dialects.astria.wire import (
    BRANCHES,
    GALLERY,
    MC,
    NAME,
    PromptFields,
    TuneFields,
    filled_in,
    kept_fields,
    size_of,
)
from tunes_dagster.gateway.problems import Problem, invalid
from tunes_dagster.recipe import (
    DatasetOptions,
    PromptRequest,
    RenderSettings,
    Sources,
    TrainingOptions,
    TuneRequest,
)
from tunes_dagster.registry import Tune

# Steps by preset: per picture, and at least.
_PRESET_STEPS = {"flux-lora-portrait": 27, "flux-lora-fast": 27, "flux-lora-focus": 100}
_MIN_STEPS = 300
# A receiver that inserts a row per picture must not be told twice.
_CAREFUL = "hold"


@dataclass(frozen=True)
class Base:
    """What a tune is trained on.

    Attributes:
        word: For the catalog.
        branch: As it is shown.
        number: `base_tune_id`.
    """

    word: str
    branch: str
    number: int | None


def base_of(mine: Desk, branch: str | None, number: int | None) -> Base:
    """Return the base that a branch and a `base_tune_id` mean; `fast` wins, then the number.

    Raises:
        Problem: 422 for a number that is neither in the gallery nor one of the account's tunes.
    """
    if branch == "fast" and (number is None or number in GALLERY):
        return Base("fast", "fast", number)
    if number in GALLERY:
        word, _title, shown = GALLERY[number]
        return Base(word, branch or shown, number)
    if number is not None:
        found = mine.registry.find_tune(mine.account_id, number)
        if found is None:
            raise invalid("base_tune_id", "does not exist")
        if branch == "fast":
            return Base("fast", "fast", number)
        shown = (found[1].asked.get("branch") if found[1] else None) or branch or "sd15"
        return Base(found[0].base, shown, number)
    shown = branch or "sd15"
    return Base(BRANCHES[shown], shown, None)


def tune_order(
    mine: Desk, fields: TuneFields, uploads: int = 0, group_id: str | None = None
) -> tuple[TuneRequest, View, list[View]]:
    """Return the canonical request of a tune, how it will be shown, and the same for its prompts."""
    if not fields.image_urls and not uploads:
        raise invalid("images", "can't be blank")
    base = base_of(mine, fields.branch, fields.base_tune_id)
    entry = mine.entry(base.word)
    options = mine.caller.options
    face_crop = fields.face_crop if fields.face_crop is not None else bool(options.get("face_crop", False))
    steps = fields.steps
    if steps is None and fields.preset:
        steps = max(_MIN_STEPS, _PRESET_STEPS[fields.preset] * (len(fields.image_urls) + uploads))
    prompts = [
        prompt_order(mine, one, base, fields.characteristics, group_id) for one in fields.prompts_attributes
    ]
    for _request, view in prompts:
        view.asked.update(own_tune=True, tune_id=None)
    request = TuneRequest(
        name=fields.name, title=fields.title, token=fields.token or entry.token, base=base.word,
        sources=Sources(image_urls=fields.image_urls), dataset=DatasetOptions(face_crop=face_crop),
        training=TrainingOptions(steps=steps), prompts=[request for request, _view in prompts],
        callback_url=fields.callback,
    )  # fmt: skip
    asked = {
        "base_tune_id": base.number, "branch": base.branch, "model_type": fields.model_type, "steps": steps,
        "args": None if fields.model_type == "lora" else "trained as a LoRA", "face_crop": face_crop,
        "auto_extend": fields.auto_extend, "characteristics": fields.characteristics, "preset": fields.preset,
    }  # fmt: skip
    price = 0 if base.branch == "fast" else mine.price(NAME, "tune")
    events = ["tune.ready", *(["tune.failed", "tune.cancelled"] if options.get("failure_callbacks") else [])]
    view = View(NAME, asked, events, on_unknown=_CAREFUL, price=price)
    return request, view, [view for _request, view in prompts]


def prompt_order(
    mine: Desk, fields: PromptFields, base: Base, characteristics: dict[str, Any], group_id: str | None = None,
    tune: Tune | None = None,
) -> tuple[PromptRequest, View]:  # fmt: skip
    """Return the canonical request of a prompt and how it will be shown.

    Raises:
        Problem: 422, in the words clients look for where a base cannot do something.
    """
    _check_base(fields, base)
    entry = mine.entry(base.word)
    width, height = size_of(fields, entry.native_size)
    settings = RenderSettings(
        num_images=fields.num_images, seed=fields.seed, steps=fields.steps or None, width=width, height=height,
        guidance_scale=fields.cfg_scale, negative_prompt=fields.negative_prompt or "",
        scheduler=_scheduler(fields.scheduler or mine.caller.options.get("scheduler")),
        lora_scale=1.0 if fields.lora_scale is None else fields.lora_scale,
    )  # fmt: skip
    text = filled_in(fields.text, characteristics)
    if not text.strip():
        raise invalid("text", "can't be blank")
    request = PromptRequest(
        text=text, tune=tune.id if tune else None, base=None, settings=settings, callback_url=fields.callback
    )
    price = 0 if base.branch == "fast" else mine.price(NAME, "image") * fields.num_images
    asked = {
        **kept_fields(fields),
        "text": text,
        "tune_id": tune.number if tune else base.number,
        "cost_mc": price // MC,
    }
    events = ["prompt.done", *(["prompt.failed"] if mine.caller.options.get("failure_callbacks") else [])]
    return request, View(NAME, asked, events, on_unknown=_CAREFUL, group_id=group_id, price=price)


def _check_base(fields: PromptFields, base: Base) -> None:
    if base.branch != "flux1":
        return
    problems = {}
    if fields.cfg_scale is not None and fields.cfg_scale >= 5:
        problems["cfg_scale"] = ["must be less than 5"]
    if fields.negative_prompt:
        problems["negative_prompt"] = ["not supported on Flux"]
    if problems:
        message = ", ".join(f"{name} {said[0]}" for name, said in problems.items())
        raise Problem(422, message, problems, code="invalid")


def _scheduler(name: str | None) -> str | None:
    from tunes_dagster.rendering.schedulers import check_scheduler

    try:
        return check_scheduler(name)
    except Failure as failure:
        raise invalid("scheduler", failure.message) from None
