"""What a prompt may ask for, checked and completed before it is queued; nothing here needs torch.

Ranges of single settings stand in `recipe.py`. Here is what depends on the base, on what is installed and on the
operator's rules. What is accepted here is done; what cannot be done is refused by name, and a wish that cannot be met
is taken out of the settings and told of (`core/wishes.py`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunes_dagster.core.failures import Failure, FailureCode, Problem, refusal
from tunes_dagster.core.recipe import PromptRequest, RenderSettings
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.core.wishes import Wishes
from tunes_dagster.families.catalog import AUXILIARY, AuxiliaryEntry, BaseModelEntry, Catalog
from tunes_dagster.families.ipadapter import adapter_for
from tunes_dagster.families.specs import spec_of
from tunes_dagster.rendering.brackets import without_breaks
from tunes_dagster.rendering.inputs import check_masks, keep_picture
from tunes_dagster.rendering.policy import check_text, load_rules
from tunes_dagster.rendering.prompts import check_words, named_tunes, parse_prompt
from tunes_dagster.rendering.schedule import said
from tunes_dagster.rendering.sizes import MULTIPLE, fit_area
from tunes_dagster.rendering.styles import dressed, find_composition
from tunes_dagster.rendering.wishes import baseline_steps, without_unmet

# Of a clip only this much can be chosen; of an enlarged picture even less.
_OF_CLIPS = {
    "seed",
    "steps",
    "guidance_scale",
    "negative_prompt",
    "width",
    "height",
    "num_frames",
    "fps",
    "num_images",
    "style",
}
_OF_UPSCALING = {"seed", "steps", "guidance_scale", "negative_prompt", "input_image", "num_images"}
_FRAME_SETTINGS = ("num_frames", "fps")
# Pictures of a clip that CogVideoX's VAE makes of one latent, but for the first, which stands alone.
_FRAMES_TOGETHER = 4


@dataclass(frozen=True)
class PromptContext:
    """What a prompt is checked against.

    Attributes:
        asked: The base that was named.
        entry: The base that is really used; another one under the embedded profile.
        catalog: Says what else is installed.
        settings: The operator's.
        store: Where pictures that came with the request are kept; None opens the operator's when one did.
        characteristics: Of the prompt's own tune.
        find: Looks a tune up that a tag (`lora`, `faceid`) names and returns its characteristics; raises when it may
            not be used.
        tuned: Whether it has a tune of its own, beside those that tags name.
        own_tag: Whether a tag in its text names its own tune too, with a weight.
        subjects: Classes of the tunes that it is rendered with.
        owns: Whether a rendered picture, by its key in the store, may be named; None lets all be.
        wishes: Gets what cannot be met.
    """

    asked: BaseModelEntry
    entry: BaseModelEntry
    catalog: Catalog
    settings: Settings
    store: Store | None = None
    characteristics: Mapping[str, str] = field(default_factory=dict)
    find: Callable[[str, str], Mapping[str, str]] | None = None
    tuned: bool = False
    own_tag: bool = False
    subjects: Sequence[str] = ()
    owns: Callable[[str], bool] | None = None
    wishes: Wishes = field(default_factory=Wishes)


def complete_prompt(request: PromptRequest, context: PromptContext) -> PromptRequest:
    """Return the prompt as it will be rendered: every setting filled, the seed fixed, pictures in the store.

    Raises:
        Failure: `INVALID_REQUEST`, `BLOCKED` by a rule over words, `BASE_NOT_INSTALLED` for a model that a setting
            needs, `SOURCE_REFUSED` for an address, whatever `told` of its wishes raises; nothing is kept then.
    """
    entry, used = context.entry, context.entry.family
    asked = without_unmet(request, context)
    filled = _filled(asked, entry)
    problems = [*_misplaced(asked, used), *_family_problems(filled, context), *_size_problems(filled, entry)]
    if problems:
        remedy = "Correct it and send it again; nothing was queued."
        raise refusal("The prompt cannot be rendered like this", problems, remedy)
    _check_text(request.text, filled, context)
    _check_installed(filled, context)
    context.wishes.told()
    kept = {
        name: keep_picture(value, name, context.settings, context.store, context.owns)
        for name in ("input_image", "mask_image")
        if (value := getattr(filled, name)) is not None
    }
    settings = filled.model_copy(update=kept)
    if settings.mask_image:
        place = context.store or Store(context.settings.resolved_store_url, context.settings.store_options)
        check_masks(settings, place)
    return request.model_copy(update={"settings": settings})


def _check_text(text: str, filled: RenderSettings, context: PromptContext) -> None:
    """Refuse a text of which a part would not be understood.

    Characteristics are only looked at here: the row keeps the text as written, and a tune's facts may still change.
    """
    family = context.entry.family
    if family == "upscale" and not text.strip():
        return
    known = dict(context.characteristics)
    named = [(name, tag) for tag in ("lora", "faceid") for name in named_tunes(text, tag)]
    for name, tag in named:
        if family in AUXILIARY:
            raise _refused(
                f"The base {context.entry.base_id!r} takes no LoRA and no face", "Leave the tag out."
            )
        known = {**(context.find(name, tag) if context.find else {}), **known}
    if any(tag == "faceid" for _, tag in named):
        adapter_for(context.catalog, context.entry, context.settings.bases_folder)
    weighs = family not in AUXILIARY and spec_of(family).weighted_text
    schedules = family not in AUXILIARY
    bare = parse_prompt(text, known, weighs, schedules).text
    try:
        check_words(filled.negative_prompt, weighs, schedules)
    except Failure as failure:
        raise failure.about("negative_prompt") from None
    whole, _ = dressed(bare, filled)
    rules = load_rules(context.settings)
    for one in dict.fromkeys([whole, *said(whole, filled.steps or 1)] if schedules else [whole]):
        check_text(without_breaks(one), rules)


def _filled(asked: RenderSettings, entry: BaseModelEntry) -> RenderSettings:
    """Return the settings with every None that has a default replaced."""
    from tunes_dagster.rendering.schedulers import check_scheduler

    defaults = dict(entry.rendering)
    native = {side: int(defaults.pop(side, None) or entry.native_size) for side in ("width", "height")}
    chosen: dict[str, Any] = {}
    if asked.baseline is not None:
        chosen["steps"] = asked.steps or baseline_steps(asked.baseline, entry)
        chosen["hires_fix"] = asked.hires_fix or asked.baseline == "thorough"
    if asked.composition is not None:
        seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed
        chosen["seed"], chosen["composition"] = seed, find_composition(asked.composition, seed).name
    if asked.input_image is not None and not asked.controlnet_txt2img and asked.denoising_strength is None:
        chosen["denoising_strength"] = 0.8
    settings = asked.model_copy(update=chosen).filled(defaults)
    values = settings.model_dump()
    values["seed"] = secrets.randbelow(2**32) if values["seed"] is None else values["seed"]
    values["scheduler"] = check_scheduler(values["scheduler"])
    values["steps"] = values["steps"] or 30
    if values["guidance_scale"] is None:
        values["guidance_scale"] = entry.default_guidance
    values["width"], values["height"] = _size(asked, native)
    return RenderSettings.model_validate(values)


def _size(asked: RenderSettings, native: Mapping[str, int]) -> tuple[int, int]:
    """Return width and height in pixels: as asked, by the aspect ratio, or the base's own."""
    if asked.aspect_ratio is None:
        return asked.width or native["width"], asked.height or native["height"]
    if asked.width and asked.height:
        return asked.width, asked.height  # that they agree is checked with the other problems
    across, down = (int(part) for part in asked.aspect_ratio.split(":"))
    if asked.width or asked.height:
        width = asked.width or round((asked.height or 0) * across / down / MULTIPLE) * MULTIPLE
        height = asked.height or round((asked.width or 0) * down / across / MULTIPLE) * MULTIPLE
        return min(4096, max(64, width)), min(4096, max(64, height))
    return fit_area(across, down, native["width"] * native["height"])


def _misplaced(asked: RenderSettings, family: str) -> list[Problem]:
    """Return a problem for each setting that means nothing to what is rendered on."""
    plain = RenderSettings.model_fields
    given = {name for name in asked.model_fields_set if getattr(asked, name) != plain[name].default}
    if family == "video":
        return [Problem(name, "does not apply to clips") for name in sorted(given - _OF_CLIPS)]
    if family == "upscale":
        missing = (
            [] if asked.input_image else [Problem("input_image", "is missing: what should be enlarged?")]
        )
        return missing + [
            Problem(name, "does not apply to enlarging") for name in sorted(given - _OF_UPSCALING)
        ]
    if family in AUXILIARY:
        return [Problem("", "this model makes no pictures by itself")]
    return [Problem(name, "is for video bases") for name in _FRAME_SETTINGS if name in given]


def _family_problems(settings: RenderSettings, context: PromptContext) -> list[Problem]:
    """Return a problem for each setting that the base's family does not have."""
    problems = []
    family = context.entry.family
    if settings.controlnet and family not in AUXILIARY and not spec_of(family).controlnets:
        problems.append(Problem("controlnet", f"has no network for the family {family}"))
    if settings.mask_image and settings.face_height:
        problems.append(Problem("face_height", "chooses the framing, which mask_image fixes"))
    return problems


def _size_problems(settings: RenderSettings, entry: BaseModelEntry) -> list[Problem]:
    width, height = settings.width or 0, settings.height or 0
    problems = []
    if settings.aspect_ratio:
        across, down = (int(part) for part in settings.aspect_ratio.split(":"))
        if abs(width / height * down / across - 1) > 0.1:
            said = f"is {settings.aspect_ratio}, but {width}x{height} is not"
            problems.append(Problem("aspect_ratio", said))
    factor = 4 if settings.super_resolution else 1
    if settings.face_height and settings.face_height > height * factor:
        said = f"is {settings.face_height}, but the picture is {height * factor} high"
        problems.append(Problem("face_height", said))
    if settings.super_resolution and width * height > 2048**2:
        said = f"makes {width * 4}x{height * 4} of this; at most 8192x8192 is made"
        problems.append(Problem("super_resolution", said))
    if entry.family == "video" and (width * height > entry.max_pixels or width % 16 or height % 16):
        said = f"{width}x{height} is not a size for clips: multiples of 16, {entry.max_pixels} pixels at most"
        problems.append(Problem("width", said, alone=True))
    if entry.family == "video" and (extra := ((settings.num_frames or 1) - 1) % _FRAMES_TOGETHER):
        fewer = (settings.num_frames or 1) - extra
        more = fewer + _FRAMES_TOGETHER
        said = f"is {settings.num_frames}; after the first, pictures come in fours: {fewer} or {more}"
        problems.append(Problem("num_frames", said))
    return problems


def _check_installed(settings: RenderSettings, context: PromptContext) -> None:
    """Refuse settings that need weights which are not there, naming the command that installs them."""
    catalog, folder = context.catalog, context.settings.bases_folder
    if settings.super_resolution and settings.upscaler != "lanczos":
        _require(catalog.first("upscale"), "super_resolution", "", folder)
    if settings.controlnet:
        family = context.entry.family
        _require(
            catalog.control(settings.controlnet, family),
            "controlnet",
            f"{settings.controlnet!r} ",
            folder,
            family,
        )


def _require(entry: AuxiliaryEntry | None, option: str, value: str, folder: Any, family: str = "") -> None:
    if entry is None:
        where = f" for bases of the family {family!r}" if family else ""
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"{option} {value}is not in the catalog{where}.",
            "Add an entry to the operator's catalog file, or leave it out.",
            problems=(Problem(option, f"{value}is not in the catalog{where}"),),
        )
    if not entry.installed(folder):
        raise Failure(
            FailureCode.BASE_NOT_INSTALLED,
            f"{option} {value}needs {entry.base_id!r}, which is not installed.",
            f"Run `tunes bases pull {entry.base_id}` ({entry.download_gb:g} GB, licence {entry.licence}).",
            f"It belongs at {entry.location(folder)}.",
            problems=(Problem(option, f"{value}needs {entry.base_id!r}, which is not installed"),),
        )


def _refused(message: str, remedy: str) -> Failure:
    return Failure(FailureCode.INVALID_REQUEST, f"{message}.", remedy)
