"""Which wishes of a prompt cannot be met, and what is done without them; nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.recipe import PromptRequest, RenderSettings
from tunes_dagster.families.catalog import AUXILIARY, AuxiliaryEntry, BaseModelEntry, Catalog
from tunes_dagster.families.specs import spec_of
from tunes_dagster.intake.restore import restorer_missing
from tunes_dagster.rendering.brackets import weighs_words

if TYPE_CHECKING:
    from tunes_dagster.rendering.submission import PromptContext

# What only makes a picture better or says how it is reached: a clip, or an enlarged picture, is the same thing without.
_OF_PICTURES = (
    "scheduler",
    "lora_scale",
    "color_grading",
    "film_grain",
    "super_resolution",
    "upscaler",
    "hires_fix",
    "inpaint_faces",
    "face_correct",
    "random_face",
    "renders_on",
)


def upscaling_model(catalog: Catalog, bases_folder: Path) -> AuxiliaryEntry | None:
    """Return the model that `super_resolution` enlarges by, or None where none is installed."""
    entry = catalog.first("upscale")
    return entry if entry is not None and entry.installed(bases_folder) else None


def enlarges_by_model(settings: RenderSettings) -> bool:
    """Whether a model enlarges the pictures of completed settings, which costs more than a resampler."""
    return settings.super_resolution and settings.upscaler != "lanczos"


def without_unmet(request: PromptRequest, context: PromptContext) -> RenderSettings:
    """Return the settings of a prompt without what cannot be met, each told to `context.wishes`.

    Only what a setting says is taken back, never the setting that it is missing: the seed, sizes and steps of the
    prompt are those it would have had.
    """
    asked, changes = request.settings, dict[str, Any]()
    family = context.entry.family
    if family in AUXILIARY:
        changes |= _meaningless(asked, context)
    else:
        changes |= _quality(asked, context) | _words(request, context) | _starts(asked, context)
    return asked.model_copy(update=changes)


def _meaningless(asked: RenderSettings, context: PromptContext) -> dict[str, Any]:
    """Return the defaults of what a model for clips or for enlarging does not do."""
    fields, changes = RenderSettings.model_fields, {}
    for name in _OF_PICTURES:
        if getattr(asked, name) != fields[name].default:
            what = "clips" if context.entry.family == "video" else "enlarging"
            context.wishes.leave(name, f"does not apply to {what}", "it is left out")
            changes[name] = fields[name].default
    return changes


def _quality(asked: RenderSettings, context: PromptContext) -> dict[str, Any]:
    """Return the changes for what needs a model that is not installed."""
    folder, wishes, changes = context.settings.bases_folder, context.wishes, dict[str, Any]()
    if asked.super_resolution and asked.upscaler is None and not upscaling_model(context.catalog, folder):
        entry = context.catalog.first("upscale")
        base_id = entry.base_id if entry else "an upscaling model"
        wishes.leave(
            "super_resolution",
            f"needs {base_id}, which is not installed",
            "pictures are enlarged by a resampler (Lanczos), which adds no detail",
            f"Run `tunes bases pull {base_id}` ({entry.download_gb:g} GB, licence {entry.licence})."
            if entry
            else "Add an upscaling model to the operator's catalog file.",
        )
        changes["upscaler"] = "lanczos"
    if asked.face_correct and (missing := restorer_missing(folder)):
        wishes.leave("face_correct", missing.why, "faces are left as they are", missing.remedy)
        changes["face_correct"] = False
    return changes


def _starts(asked: RenderSettings, context: PromptContext) -> dict[str, Any]:
    """Return the changes for what says how to start from a picture where there is none to start from."""
    changes = dict[str, Any]()
    from_noise = asked.controlnet is not None and asked.controlnet_txt2img
    if asked.controlnet_txt2img and asked.controlnet is None:
        context.wishes.leave("controlnet_txt2img", "needs a controlnet", "it is left out")
        changes["controlnet_txt2img"] = False
    if asked.denoising_strength is not None and (asked.input_image is None or from_noise):
        why = "means nothing to a picture that starts from noise"
        context.wishes.leave("denoising_strength", why, "it is left out")
        changes["denoising_strength"] = None
    return changes


def _words(request: PromptRequest, context: PromptContext) -> dict[str, Any]:
    """Return the changes for what the base cannot read, be it the one that was named or the one that stands for it."""
    asked, changes = request.settings, dict[str, Any]()
    for entry in (context.asked, context.entry):
        if entry.family in AUXILIARY:
            continue
        if asked.negative_prompt.strip() and entry.acting_guidance != "classifier-free":
            why = f"is not understood by {entry.base_id}, which was distilled to do without one"
            context.wishes.leave("negative_prompt", why, "it is left out")
            changes["negative_prompt"] = ""
        elif asked.negative_prompt.strip() and (guidance := _guidance(asked, entry)) <= 1:
            why = f"is not looked at with a guidance_scale of {guidance:g}, only above 1"
            context.wishes.leave("negative_prompt", why, "it is left out")
            changes["negative_prompt"] = ""
        texts = (request.text, changes.get("negative_prompt", asked.negative_prompt))
        if not spec_of(entry.family).weighted_text and any(weighs_words(one) for one in texts):
            why = f"has weights or BREAK, and the encoder of {entry.base_id} was trained on plain sentences"
            instead = r"the words are read without them (write \( and \) for brackets that are meant)"
            context.wishes.leave("text", why, instead)
    return changes


def _guidance(asked: RenderSettings, entry: BaseModelEntry) -> float:
    """Return the guidance scale that a prompt will have."""
    scale = entry.render_settings(asked).guidance_scale
    return entry.default_guidance if scale is None else scale
