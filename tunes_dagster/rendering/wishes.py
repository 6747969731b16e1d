"""Which wishes of a prompt cannot be met or have no effect, and what is done without them; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tunes_dagster.core.effects import ALWAYS, Idle, Rule, Table, when, without_idle
from tunes_dagster.core.recipe import PromptRequest, RenderSettings
from tunes_dagster.families.catalog import AUXILIARY, AuxiliaryEntry, BaseModelEntry, Catalog
from tunes_dagster.families.specs import spec_of
from tunes_dagster.intake.restore import restorer_missing
from tunes_dagster.intake.subject import is_style
from tunes_dagster.rendering.brackets import weighs_words

if TYPE_CHECKING:
    from tunes_dagster.rendering.submission import PromptContext


def upscaling_model(catalog: Catalog, bases_folder: Path) -> AuxiliaryEntry | None:
    """Return the model that `super_resolution` enlarges by, or None where none is installed."""
    entry = catalog.first("upscale")
    return entry if entry is not None and entry.installed(bases_folder) else None


def enlarges_by_model(settings: RenderSettings) -> bool:
    """Whether a model enlarges the pictures of completed settings, which costs more than a resampler."""
    return settings.super_resolution and settings.upscaler != "lanczos"


def baseline_steps(baseline: str, entry: BaseModelEntry) -> int:
    """Return the steps that `baseline` makes of a base's own."""
    share = 2 / 3 if baseline == "fast" else 1.5
    return max(1, min(150, round(int(entry.rendering.get("steps", 30)) * share)))


def without_unmet(request: PromptRequest, context: PromptContext) -> RenderSettings:
    """Return the settings of a prompt without what cannot be met or has no effect, each told to `context.wishes`.

    Only what a setting says is taken back, never the setting that it is missing: the seed, sizes and steps of the
    prompt are those it would have had.
    """
    settings = without_idle(request.settings, SETTINGS, partial(_Case, request.text, context), context.wishes)
    text = _Case(request.text, context, settings)
    without_idle(request, PROMPT, lambda _request: text, context.wishes)
    return settings


@dataclass(frozen=True)
class _Case:
    """What the rules look at: a prompt as far as it was looked through, and what it is checked against."""

    text: str
    context: PromptContext
    settings: RenderSettings

    @property
    def entry(self) -> BaseModelEntry:
        """The base that renders it."""
        return self.context.entry

    @property
    def plain(self) -> bool:
        """Whether it is rendered by a model for clips or for enlarging."""
        return self.entry.family in AUXILIARY

    def bases(self) -> Iterator[BaseModelEntry]:
        """Yield the base that was named, and the one that stands for it."""
        for entry in (self.context.asked, self.entry):
            if entry.family not in AUXILIARY:
                yield entry

    @property
    def has_sibling(self) -> bool:
        """Whether its base, or the one that was named, has a sibling that renders in few steps."""
        return any(one.renders_on is not None for one in (self.context.asked, self.entry))

    @property
    def handed_back(self) -> bool:
        """Whether the input image is what comes out, before anything that paints it again."""
        asked = self.settings
        starts = asked.input_image is not None and not (asked.controlnet and asked.controlnet_txt2img)
        again = asked.hires_fix or asked.inpaint_faces or asked.face_height or asked.super_resolution
        again = again or asked.baseline == "thorough"
        return starts and not self.plain and asked.denoising_strength == 0 and not again


def _misplaced(case: _Case, name: str) -> Idle | None:
    if not case.plain:
        return None
    return Idle(f"does not apply to {'clips' if case.entry.family == 'video' else 'enlarging'}")


def _without_upscaler(case: _Case, name: str) -> Idle | None:
    """The model that enlarges is not there, and was not asked for by name."""
    catalog, folder = case.context.catalog, case.context.settings.bases_folder
    if case.settings.upscaler is not None or upscaling_model(catalog, folder):
        return None
    entry = catalog.first("upscale")
    base_id = entry.base_id if entry else "an upscaling model"
    return Idle(
        f"needs {base_id}, which is not installed",
        "pictures are enlarged by a resampler (Lanczos), which adds no detail",
        f"Run `tunes bases pull {base_id}` ({entry.download_gb:g} GB, licence {entry.licence})."
        if entry
        else "Add an upscaling model to the operator's catalog file.",
        {"upscaler": "lanczos"},
    )


def _without_restorer(case: _Case, name: str) -> Idle | None:
    missing = restorer_missing(case.context.settings.bases_folder)
    return Idle(missing.why, "faces are left as they are", missing.remedy) if missing else None


def _unheard(case: _Case, name: str) -> Idle | None:
    """The base does without a negative prompt, or looks at none at this guidance."""
    if not case.settings.negative_prompt.strip():
        return None
    for entry in (case.context.asked, case.entry):
        if entry.acting_guidance != "classifier-free":
            return Idle(f"is not understood by {entry.base_id}, which was distilled to do without one")
        scale = entry.render_settings(case.settings).guidance_scale
        guidance = entry.default_guidance if scale is None else scale
        if guidance <= 1:
            return Idle(f"is not looked at with a guidance_scale of {guidance:g}, only above 1")
    return None


def _unguided(case: _Case, name: str) -> Idle | None:
    """The base takes no guidance scale at all; its own one in a completed prompt is no wish."""
    own = {entry.rendering.get("guidance_scale", entry.default_guidance) for entry in case.bases()}
    for entry in case.bases():
        if entry.acting_guidance == "none" and case.settings.guidance_scale not in own:
            return Idle(f"is not looked at by {entry.base_id}, which was distilled to do without one")
    return None


def _unread(case: _Case, name: str) -> Idle | None:
    """The words have weights, and the encoder takes plain sentences."""
    texts = (case.text, case.settings.negative_prompt)
    for entry in case.bases():
        if not spec_of(entry.family).weighted_text and any(weighs_words(one) for one in texts):
            return Idle(
                f"has weights or BREAK, and the encoder of {entry.base_id} was trained on plain sentences",
                r"the words are read without them (write \( and \) for brackets that are meant)",
                changes={},
            )
    return None


def _from_noise(case: _Case) -> bool:
    asked = case.settings
    return asked.input_image is None or (asked.controlnet is not None and asked.controlnet_txt2img)


def _counted(case: _Case) -> bool:
    """Whether a baseline decides nothing: the steps are given, and are not what it makes of the base's."""
    asked = case.settings
    assert asked.baseline is not None
    decides = asked.steps in (None, baseline_steps(asked.baseline, case.entry))
    return not decides and (asked.baseline == "fast" or asked.hires_fix)


def _nobody_to_describe(case: _Case) -> bool:
    return any(not is_style(name) for name in case.context.subjects)


def _given_back(case: _Case, name: str) -> Idle | None:
    """The input image comes out as it is; the base's own numbers in a completed prompt are no wish."""
    given = getattr(case.settings, name, None)
    if not case.handed_back or (given is not None and given == case.entry.rendering.get(name)):
        return None
    why = "means nothing at a denoising_strength of 0, which hands the picture back"
    return Idle(why, changes={} if name == "text" else None)


_NO_TUNE: Rule[_Case] = when(
    lambda case: not case.context.tuned, "is the strength of the prompt's own tune, and it has none"
)
_OWN_TAG: Rule[_Case] = when(
    lambda case: case.context.own_tag, "is given by the tag of that tune in the text, which counts"
)
_NO_CONTROL: Rule[_Case] = when(lambda case: case.settings.controlnet is None, "needs a controlnet")
_NO_START: Rule[_Case] = when(_from_noise, "means nothing to a picture that starts from noise")
_ON_ITS_BASE: Rule[_Case] = when(
    lambda case: case.settings.renders_on is False and not (case.context.subjects and case.has_sibling),
    "says where tunes of a base with a few-step sibling are rendered, and this prompt has none",
)
# Of a prompt.
PROMPT: Table[_Case] = {
    "text": (_unread, _given_back),
    "tune": ALWAYS,
    "base": ALWAYS,
    "settings": ALWAYS,
    "callback_url": ALWAYS,
}
# Of its settings, in the order in which they are looked at: what takes the sense of others comes before them. Of bases
# for clips and for enlarging, `submission._misplaced` refuses what would make something else than was asked for.
SETTINGS: Table[_Case] = {
    "num_images": ALWAYS,
    "seed": ALWAYS,
    "width": ALWAYS,
    "height": ALWAYS,
    "aspect_ratio": ALWAYS,  # beside both sides it has to agree with them
    "input_image": ALWAYS,
    "hires_fix": (_misplaced,),
    "inpaint_faces": (_misplaced,),  # that there is no face is told when the picture is there
    "face_height": ALWAYS,
    "super_resolution": (_misplaced, _without_upscaler),
    "upscaler": (_misplaced, when(lambda case: not case.settings.super_resolution, "needs super_resolution")),
    "controlnet_txt2img": (_NO_CONTROL,),
    "denoising_strength": (_NO_START,),
    "steps": (_given_back,),
    "guidance_scale": (_unguided, _given_back),
    "negative_prompt": (_unheard, _given_back),
    "scheduler": (_misplaced, _given_back),  # that the base has no such one is told when it is loaded
    "lora_scale": (_misplaced, _NO_TUNE, _OWN_TAG, _given_back),
    "style": (_given_back,),
    "color_grading": (_misplaced,),
    "film_grain": (_misplaced,),
    "mask_image": (_given_back,),
    "controlnet": (_given_back,),
    "controlnet_conditioning_scale": (_NO_CONTROL,),
    "face_correct": (_misplaced, _without_restorer),
    "baseline": (when(_counted, "decides the number of steps, which is given"), _given_back),
    "composition": (_given_back,),
    "random_face": (
        _misplaced,
        when(_nobody_to_describe, "describes a person where no tune is named, and one is"),
        _given_back,
    ),
    "renders_on": (_misplaced, _ON_ITS_BASE),
    "num_frames": ALWAYS,
    "fps": (when(lambda case: case.settings.num_frames == 1, "needs more than one frame (num_frames)"),),
}
