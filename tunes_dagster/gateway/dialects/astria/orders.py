"""From Astria's fields to canonical requests: which base, how it is trained, how a prompt is rendered."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import UploadFile

from tunes_dagster.core.failures import Failure
from tunes_dagster.core.recipe import (
    DatasetOptions,
    PromptRequest,
    RenderSettings,
    Sources,
    TrainingOptions,
    TuneRequest,
)
from tunes_dagster.gateway.accepting import View
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.dialects.astria.gallery import gallery, unknown
from tunes_dagster.gateway.dialects.astria.wire import (
    BRANCHES,
    NAME,
    NAMES,
    SWITCHES,
    PromptFields,
    TuneFields,
    filled_in,
    kept_fields,
    size_of,
    without_wishes,
)
from tunes_dagster.gateway.dialects.astria.workspaces import workspace_of
from tunes_dagster.gateway.problems import HttpProblem, invalid, of_pydantic
from tunes_dagster.registry import Tune

# A receiver that inserts a row per picture must not be told twice.
_CAREFUL = "hold"


@dataclass(frozen=True)
class Base:
    """What a tune is trained on.

    Attributes:
        word: For the catalog.
        branch: As it is shown.
        number: `base_tune_id`.
        tune: One of the account's own, whose weights are the start.
    """

    word: str
    branch: str
    number: int | None
    tune: Tune | None = None


def base_of(mine: Desk, branch: str | None, number: int | None) -> Base:
    """Return the base that a branch and a `base_tune_id` mean; `fast` wins, then the number.

    Raises:
        HttpProblem: 422 for a number that is neither in the gallery nor one of the account's tunes.
    """
    listed = gallery(mine.service.catalog)
    if branch == "fast" and (number is None or number in listed):
        return Base("fast", "fast", number)
    if number is not None and number in listed:
        return Base(listed[number].word, branch or listed[number].branch, number)
    if number is not None:
        found = mine.registry.objects.find_tune(mine.account_id, number)
        if found is None:
            raise invalid("base_tune_id", f"does not exist: {unknown(number)}")
        if branch == "fast":
            return Base("fast", "fast", number)
        shown = (found[1].asked.get("branch") if found[1] else None) or branch or "sd15"
        return Base(found[0].base, shown, number, found[0])
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
    kind, said = kind_of(mine, fields, base)
    prompts = [
        prompt_order(mine, one, base, fields.characteristics, group_id) for one in fields.prompts_attributes
    ]
    for _request, view in prompts:
        view.asked.update(own_tune=True, tune_id=None)
    request = TuneRequest(
        name=fields.name,
        title=fields.title,
        token=fields.token or entry.token,
        base=base.word,
        sources=Sources(image_urls=fields.image_urls),
        dataset=DatasetOptions(face_crop=face_crop, face_correct=fields.training_face_correct),
        training=_training(kind, fields, base),
        characteristics=_words(fields.characteristics),
        prompts=[request for request, _view in prompts],
        callback_url=fields.callback,
    )
    kept = ("model_type", "steps", "training_face_correct", "auto_extend", "characteristics", "preset")
    asked = {
        "workspace_id": workspace_of(mine),
        "base_tune_id": base.number,
        "branch": base.branch,
        "args": said,
        "face_crop": face_crop,
        **{name: getattr(fields, name) for name in kept},
    }
    events = ["tune.ready", *(["tune.failed", "tune.cancelled"] if options.get("failure_callbacks") else [])]
    once = bool(options.get("title_idempotency"))
    view = View(
        dialect=NAME,
        asked=asked,
        events=events,
        on_unknown=_CAREFUL,
        auto_extend=fields.auto_extend,
        same_title=once,
        names=NAMES,
    )
    return request, view, [view for _request, view in prompts]


def _training(kind: str, fields: TuneFields, base: Base) -> TrainingOptions:
    return TrainingOptions.model_validate(
        {
            "kind": kind,
            "steps": fields.steps,
            "base_tune_id": str(base.tune.id) if base.tune else None,
            # The mock branch takes what a client for another base sends, and means nothing by it.
            "preset": fields.preset if base.branch != "fast" else None,
        }
    )


def kind_of(mine: Desk, fields: TuneFields, base: Base) -> tuple[Any, str | None]:
    """Return what is made of a tune, and what `args` says when that is not what was asked.

    Raises:
        HttpProblem: 422 for `faceid` where it cannot be made.
    """
    from tunes_dagster.families.specs import families

    asked = fields.model_type or "checkpoint"
    named = mine.entry(base.word)
    kinds = {name: set(spec.kinds) for name, spec in families().items()}
    able = kinds.get(named.family, set()) & kinds.get(mine.service.catalog.real(named).family, set())
    if asked == "faceid":
        if asked not in able:
            raise invalid("model_type", f"faceid is made on sd15 and sdxl1, not on {base.branch}")
        if base.tune is not None:
            raise invalid("model_type", "faceid trains nothing and cannot continue a tune")
        return asked, None
    wanted = "pti" if base.branch == "sdxl1" else asked
    # All weights of FLUX take 137 GiB to train: who names no kind there means what the service makes of it, a LoRA.
    if base.branch == "flux1" and fields.model_type is None:
        wanted = "lora"
    if base.tune is not None:
        wanted = "checkpoint" if wanted == asked == base.tune.kind == "checkpoint" else "lora"
    made = wanted if wanted in able and base.branch != "fast" else "lora"
    return made, None if made == asked else f"trained as {made}"


def _words(characteristics: dict[str, Any]) -> dict[str, str]:
    """Return the characteristics that prompts can name: short texts under plain names."""
    found = {
        str(name): str(value)
        for name, value in characteristics.items()
        if isinstance(value, (str, int, float))
    }
    named = {name: value for name, value in found.items() if re.fullmatch(r"\w[\w -]{0,39}", name)}
    return dict(list({name: value for name, value in named.items() if len(value) <= 200}.items())[:50])


def pictures_of(mine: Desk, fields: PromptFields) -> dict[str, str | None]:
    """Return the picture and the mask that a prompt starts from: uploaded, by URL, or as base64.

    Raises:
        HttpProblem: 422.
    """
    extra = fields.model_extra or {}
    found: dict[str, str | None] = {}
    for name, others in (
        ("input_image", ("input_image_url", "input_image_base64")),
        ("mask_image", ("mask_image_url",)),
    ):
        given = extra.get(name)
        if isinstance(given, UploadFile):
            found[name] = mine.keep_picture(given)
            continue
        if given is not None and not isinstance(given, str):
            raise invalid(name, "is neither a file nor an address")
        values = [
            mine.picture(word, value)
            for word, value in [(name, given), *((other, getattr(fields, other)) for other in others)]
        ]
        found[name] = next((value for value in values if value), None)
    return found


def prompt_order(
    mine: Desk,
    fields: PromptFields,
    base: Base,
    characteristics: dict[str, Any],
    group_id: str | None = None,
    tune: Tune | None = None,
    start: dict[str, str | None] | None = None,
) -> tuple[PromptRequest, View]:
    """Return the canonical request of a prompt and how it will be shown.

    Args:
        mine: The account's desk.
        fields: As handed in.
        base: What it renders on.
        characteristics: Of its tune.
        group_id: Prompts that are told of together.
        tune: Its tune, when that exists already.
        start: Picture and mask by key of the store, instead of those in the fields.

    Raises:
        HttpProblem: 422, in the words clients look for where a base cannot do something.
    """
    _check_base(fields, base)
    settings = _settings(mine, fields, base, start)
    text = filled_in(without_wishes(mine, fields), characteristics)
    if not text.strip():
        raise invalid("text", "can't be blank")
    request = PromptRequest(
        text=text, tune=tune.id if tune else None, base=None, settings=settings, callback_url=fields.callback
    )
    asked = {**kept_fields(fields), "text": text, "tune_id": tune.number if tune else base.number}
    if asked.get("workspace_id") is None:
        asked["workspace_id"] = workspace_of(mine)
    events = ["prompt.done", *(["prompt.failed"] if mine.caller.options.get("failure_callbacks") else [])]
    return request, View(
        dialect=NAME, asked=asked, events=events, on_unknown=_CAREFUL, group_id=group_id, names=NAMES
    )


def _check_base(fields: PromptFields, base: Base) -> None:
    if base.branch != "flux1":
        return
    if fields.cfg_scale is not None and fields.cfg_scale >= 5:
        raise invalid("cfg_scale", "must be less than 5")


def _settings(
    mine: Desk, fields: PromptFields, base: Base, start: dict[str, str | None] | None
) -> RenderSettings:
    """Return how a prompt is rendered; see `prompt_order`."""
    width, height = size_of(fields, mine.entry(base.word).native_size)
    scale = fields.controlnet_conditioning_scale
    values = {
        "num_images": fields.num_images,
        "seed": fields.seed,
        "steps": fields.steps or None,
        "width": width,
        "height": height,
        "guidance_scale": fields.cfg_scale,
        "negative_prompt": fields.negative_prompt or "",
        "scheduler": _scheduler(fields.scheduler or mine.caller.options.get("scheduler")),
        "lora_scale": 1.0 if fields.lora_scale is None else fields.lora_scale,
        **{name: getattr(fields, name) for name in SWITCHES},
        "style": fields.style,
        "color_grading": fields.color_grading,
        "controlnet": fields.controlnet,
        "denoising_strength": None if fields.controlnet_txt2img else fields.denoising_strength,
        **({} if scale is None else {"controlnet_conditioning_scale": scale}),
        **(start or pictures_of(mine, fields)),
    }
    try:
        return RenderSettings.model_validate(values)
    except ValidationError as wrong:
        found = of_pydantic(list(wrong.errors()))  # type: ignore[arg-type]
        raise HttpProblem(422, found.message, found.fields, code="invalid") from None


def _scheduler(name: str | None) -> str | None:
    from tunes_dagster.rendering.schedulers import check_scheduler

    try:
        return check_scheduler(name)
    except Failure as failure:
        raise invalid("scheduler", failure.message) from None
