"""Everything a person may choose about a tune and about a render, as pydantic models that refuse unknown keys.

These are the only definitions of the options: the command line, `tune.yaml`, the Launchpad and the HTTP
dialects all fill these models, and every limit is stated here once.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tunes_dagster.core.validation import wrong
from tunes_dagster.core.written import as_wanted


class Later:
    """Marks an option that came after results had been stored under hashes of the options before it.

    At its default it is left out of hashes: what was rendered or trained before stands, and is not done again.
    """


class Strict(BaseModel):
    """A model that refuses keys it does not know, by name."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _strings_as_written(cls, data: Any) -> Any:
        """Take numbers of a YAML file for what was written wherever a string is wanted (`title: 2024`)."""
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        return {
            name: as_wanted(value, fields[name].annotation) if name in fields else value
            for name, value in data.items()
        }

    def hashed(self) -> dict[str, Any]:
        """Return the options as they go into hashes of what they decide; see `Later`."""
        fields = type(self).model_fields
        later = {
            name for name, field in fields.items() if any(isinstance(one, Later) for one in field.metadata)
        }
        unset = {name for name in later if getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude=unset)


class DatasetOptions(Strict):
    """How pictures become a training set."""

    min_pictures: int = Field(default=1, ge=1, le=1000)
    """Fewer accepted pictures than this stop the tune."""
    max_pictures: int = Field(default=200, ge=1, le=2000)
    """More than this are refused at submission."""
    min_side: int = Field(default=64, ge=16, le=4096)
    """Shorter side in pixels below which a picture is rejected."""
    face_crop: bool = False
    """Add a crop around the face beside each full picture."""
    require_face: bool = False
    """Reject pictures of people without exactly one face instead of warning."""
    hold_out: int | None = Field(default=None, ge=0, le=100)
    """Pictures kept out of training for scoring; left out, it takes one in eight, at least one, and none when fewer
    than 5 pictures were accepted.
    """
    near_duplicate_bits: int = Field(default=4, ge=0, le=32)
    """Perceptual hashes (64 bit) closer than this are near duplicates."""
    captioner: bool = True
    """Ask the captioning model where no caption came along."""
    one_picture: bool = False
    """One picture is enough: it is trained on in several crops, mirrored where that is harmless and in slightly
    different light, and the tune says that it was made so.
    """
    face_correct: bool = False
    """Restore faces before training (GFPGAN; without the extra `restore` and its weights they stay)."""
    mask: Literal["off", "face", "file"] = "off"
    """Where the loss looks: `off` everywhere, `face` at the largest face, `file` at what `NAME.mask.png` or
    `NAME-mask.png` beside a picture shows in white.
    """
    captions_in_files: bool = False
    """Write the captions into the headers of the tune's files, which people share; without it they lie beside them
    only.
    """

    @model_validator(mode="after")
    def _goes_together(self) -> DatasetOptions:
        if self.one_picture and self.hold_out:
            raise wrong("hold_out", "cannot be above 0 with one_picture: the one picture is trained on")
        if self.min_pictures > self.max_pictures:
            raise wrong("min_pictures", f"should be at most max_pictures ({self.max_pictures})")
        return self


TuneKind = Literal["lora", "pti", "checkpoint", "faceid"]
# Kinds of tune that need no device: nothing is trained.
UNTRAINED: tuple[TuneKind, ...] = ("faceid",)
Preset = Literal["flux-lora-focus", "flux-lora-portrait", "flux-lora-fast"]


class TrainingOptions(Strict):
    """How a tune is trained. Left out, it means: the preset's value, else the base's default from the catalog."""

    kind: TuneKind = "lora"
    """What is made: `lora` an adapter; `pti` new words for the subject first, then an adapter (pivotal tuning);
    `checkpoint` a whole fine-tuned model; `faceid` nothing is trained, the face conditions renders.
    """
    preset: Preset | None = None
    """A named choice of defaults for FLUX bases, see docs/training.md."""
    base_tune_id: str | None = Field(default=None, min_length=1, max_length=200)
    """Continue from this tune (id, number or title): its weights are the start."""
    steps: int | None = Field(default=None, ge=1, le=20_000)
    """Optimizer steps; left out, it is computed from the number of pictures."""
    steps_per_picture: float | None = Field(default=None, ge=1, le=1000)
    """Visits of each picture when `steps` is not given; left out, it is 100, or the preset's."""
    min_steps: int | None = Field(default=None, ge=1, le=20_000)
    """Fewest steps when `steps` is not given; left out, it is 300, or the preset's."""
    rank: int | None = Field(default=None, ge=4, le=128)
    """Rank of the adapter."""
    alpha: float | None = Field(default=None, gt=0, le=512)
    """Scale of the adapter is alpha / rank; left out, it means alpha = rank."""
    rslora: bool = False
    """Scale the adapter by alpha / √rank instead, which keeps large ranks learning."""
    dora: bool = False
    """Train the weights' direction (low rank) and magnitude apart."""
    optimizer: Literal["adamw", "adamw8bit", "prodigy"] = "adamw"
    """`adamw`; `adamw8bit` (an eighth of the memory for moments, needs bitsandbytes and an NVIDIA GPU); `prodigy` finds
    the learning rate by itself, `learning_rate` then scales it (1).
    """
    learning_rate: float | None = Field(default=None, gt=0, le=10)
    """Peak learning rate; above 0.1 only with prodigy."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_steps: int | None = Field(default=None, ge=0, le=5000)
    """Steps of linear warm-up."""
    batch_size: int | None = Field(default=None, ge=1, le=64)
    """Training pictures per step."""
    resolution: int | None = Field(default=None, ge=64, le=2048)
    """Longer side of the square whose area a bucket has, in pixels; left out, it is the base's native size."""
    targets: Literal["attention", "attention+mlp", "all"] | None = None
    """Layers that get an adapter; `all` means the convolutions of residual blocks as well."""
    caption_dropout: float = Field(default=0.05, ge=0, le=1)
    """Share of steps trained on the empty caption."""
    min_snr_gamma: float | None = Field(default=None, ge=0, le=100)
    """Gamma of min-SNR loss weighting; 0 turns it off."""
    prior_weight: float | None = Field(default=None, ge=0, le=10)
    """Weight of prior preservation (the untuned base's own predictions on the class); 0 turns it off."""
    prior_prompts: int | None = Field(default=None, ge=0, le=1000)
    """Number of class prompts rendered or predicted for prior preservation."""
    prior_batch_size: int | None = Field(default=None, ge=1, le=64)
    """Prior rows per step; left out, it takes as many as training pictures."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000)
    """Gradient norm per tune above which gradients are clipped."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """AdamW's weight decay."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the moving average that is exported; 0 exports the last weights."""
    export_scale: float | None = Field(default=None, gt=0, le=2)
    """What the exported adapter is multiplied by. Below 1 gives back obedience to the rest of the prompt for a little
    likeness; left out, it is the base's default, else 1. Not applied with `dora`.
    """
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Decides data order, noise, dropout and initial weights."""
    checkpoint_every: int | None = Field(default=None, ge=1, le=20_000)
    """Steps between checkpoints with optimizer state; left out, it takes an eighth of the steps."""
    mask_floor: float = Field(default=0.1, ge=0, le=1)
    """Weight of the loss outside of the mask."""
    token_vectors: int = Field(default=2, ge=1, le=16)
    """For pti: new words that the token stands for."""
    token_steps: int | None = Field(default=None, ge=1, le=20_000)
    """For pti: steps that train the words alone, before the adapter; left out, it takes a third of the steps."""
    token_learning_rate: float = Field(default=3e-4, gt=0, le=0.1)
    """For pti: learning rate of the words."""
    gradient_checkpointing: bool | None = None
    """Trade time for memory; left out, the planner decides."""
    quantize: Literal["none", "int8", "nf4"] | None = None
    """Keep the frozen base in fewer bits: `int8` or `nf4` (need bitsandbytes and an NVIDIA GPU), `none` never; left
    out, the planner decides.
    """
    offload: bool | None = None
    """Keep text encoders and VAE off the device while they are not used; left out, the planner decides."""

    @model_validator(mode="after")
    def _goes_together(self) -> TrainingOptions:
        if self.optimizer != "prodigy" and (self.learning_rate or 0) > 0.1:
            said = f"is {self.learning_rate:g}, but should be at most 0.1 with {self.optimizer}"
            raise wrong("learning_rate", said)
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the base's own weights are trained, and not something beside them (kind `checkpoint`)."""
        return self.kind == "checkpoint"

    def filled(self, defaults: dict[str, Any]) -> TrainingOptions:
        """Return a copy in which every None that `defaults` names is replaced; a person's value wins."""
        chosen = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        return TrainingOptions.model_validate({**self.model_dump(), **chosen})


Style = Literal[
    "Cinematic",
    "Animated",
    "Digital Art",
    "Photographic",
    "Fantasy art",
    "Neonpunk",
    "Enhance",
    "Comic book",
    "Lowpoly",
    "Line art",
]
ColorGrading = Literal["Film Velvia", "Film Portra", "Ektar"]
AspectRatio = Literal[
    "1:1",
    "16:9",
    "9:16",
    "21:9",
    "9:21",
    "3:2",
    "2:3",
    "5:4",
    "4:5",
    "4:3",
    "3:4",
]
ControlName = Literal["canny", "lineart", "tile", "depth", "pose", "hed", "mlsd", "segroom"]
# A picture inside a setting: 64 MB as base64.
_PICTURE_TEXT = 90_000_000


def any_seed(seed: int | None) -> int | None:
    """Return None, which draws a seed, for -1: that is how most programs write "any"."""
    return None if seed == -1 else seed


class RenderSettings(Strict):
    """How one prompt is rendered. Left out, it means: the base's default from the catalog."""

    num_images: int = Field(default=1, ge=1, le=64)
    """Pictures of this prompt; picture i uses seed + i."""
    seed: int | None = Field(default=None, ge=-1, le=2**32)
    """Left out or -1, it is drawn at submission, so that the row always holds the seed that was used."""
    steps: int | None = Field(default=None, ge=1, le=150)
    """Denoising steps."""
    guidance_scale: float | None = Field(default=None, ge=0, le=30)
    """Classifier-free guidance; 1 turns it off."""
    negative_prompt: str = Field(default="", max_length=4000)
    """What the picture should not show; bases that were distilled to do without leave it out."""
    width: int | None = Field(default=None, ge=64, le=4096, multiple_of=8)
    """Pixels, a multiple of 8."""
    height: int | None = Field(default=None, ge=64, le=4096, multiple_of=8)
    """Pixels, a multiple of 8."""
    aspect_ratio: AspectRatio | None = None
    """Shape at the base's own area, instead of a size; beside a width or height it decides the other."""
    scheduler: str | None = None
    """Public name of the sampler; left out, it is the base's own."""
    lora_scale: float = Field(default=1.0, ge=-2, le=3)
    """Strength of the tune; 1 is as trained."""
    style: Style | None = None
    """How the picture is made: words put around the prompt."""
    color_grading: ColorGrading | None = None
    """Colours of a film, put over the finished picture."""
    film_grain: bool = False
    """Grain of a film, put over the finished picture."""
    input_image: str | None = Field(default=None, min_length=1, max_length=_PICTURE_TEXT)
    """Picture to start from: http(s) URL, base64 or data URI, or the key of an upload in the store."""
    mask_image: str | None = Field(default=None, min_length=1, max_length=_PICTURE_TEXT)
    """What of the input image is painted anew, in white; given like the input image."""
    denoising_strength: float | None = Field(default=None, ge=0, le=1)
    """How far from the input image: 0 keeps it, 1 forgets it; left out, it is 0.8."""
    controlnet: ControlName | None = None
    """What of the input image is held on to while the picture is made."""
    controlnet_conditioning_scale: float = Field(default=1.0, ge=0, le=2)
    """How firmly; 1 is as trained."""
    controlnet_txt2img: bool = False
    """Take only the control from the input image, and start from noise."""
    super_resolution: bool = False
    """Four times as wide and high, by the upscaling model of the catalog, or a resampler where that is not installed.
    """
    upscaler: Annotated[Literal["model", "lanczos"] | None, Later()] = None
    """What `super_resolution` enlarges by: `model` refuses where it is not installed, `lanczos` is a resampler; left
    out, it takes the model where it is.
    """
    hires_fix: bool = False
    """Paint the picture again at twice its size, for detail; the size is kept when that is what was asked."""
    inpaint_faces: bool = False
    """Paint every face again, enlarged, with the tune, and put it back."""
    face_correct: bool = False
    """Restore faces (GFPGAN; without the extra `restore` and its weights faces stay as they are)."""
    face_height: int | None = Field(default=None, ge=16, le=4096)
    """Height of the largest face in pixels of the finished picture, by choosing the framing."""
    baseline: Literal["fast", "thorough"] | None = None
    """`fast` two thirds of the base's steps; `thorough` half as many again, with hires_fix."""
    composition: str | None = Field(default=None, min_length=1, max_length=80)
    """Stored template that the prompt's text is put into; name, id, or `random`."""
    random_face: bool = False
    """Describe a random person, decided by the seed, where no tune is named."""
    renders_on: Annotated[bool | None, Later()] = None
    """Render tunes on the few-step sibling of their base: true asks for it, false for the base itself; left out, the
    catalog decides.
    """
    num_frames: int | None = Field(default=None, ge=1, le=161)
    """Pictures of a clip; for video bases only."""
    fps: int | None = Field(default=None, ge=1, le=60)
    """Pictures per second of a clip; for video bases only."""

    _drawn = field_validator("seed")(any_seed)

    @field_validator("style", "color_grading", mode="before")
    @classmethod
    def _in_our_spelling(cls, value: Any, info: ValidationInfo) -> Any:
        """Take `digital-art`, `DIGITAL_ART` and the like for the name they mean."""
        if not isinstance(value, str):
            return value
        names = get_args(Style if info.field_name == "style" else ColorGrading)
        known = {re.sub(r"[\s_-]+", " ", name).lower(): name for name in names}
        return known.get(re.sub(r"[\s_-]+", " ", value).strip().lower(), value)

    @model_validator(mode="after")
    def _render_goes_together(self) -> RenderSettings:
        if self.input_image is None:
            needs = {"mask_image": self.mask_image, "controlnet": self.controlnet}
            for name, value in needs.items():
                if value is not None:
                    raise wrong(name, "needs an input_image")
        if self.controlnet and self.controlnet_txt2img and self.mask_image:
            raise wrong("controlnet_txt2img", "starts from noise: leave mask_image out")
        return self

    def filled(self, defaults: dict[str, Any]) -> RenderSettings:
        """Return a copy in which every None that `defaults` names is replaced; a person's value wins."""
        chosen = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        return RenderSettings.model_validate({**self.model_dump(), **chosen})


class PromptRequest(Strict):
    """One prompt, as every interface hands it over."""

    text: str = Field(max_length=4000)
    """What to render; names the token and class of its tune (`a photo of ohwx woman …`). Only an upscaling base does
    without.
    """
    tune: str | None = None
    """Id or title of the tune; left out, it is rendered on the plain base."""
    base: str | None = None
    """Id or alias in the catalog; left out, it is the tune's base (or the profile's default without a tune)."""
    settings: RenderSettings = Field(default_factory=RenderSettings)
    """See `RenderSettings`."""
    callback_url: str | None = Field(default=None, max_length=4000)
    """Told when the pictures are there or the prompt has failed."""

    @model_validator(mode="after")
    def _says_something(self) -> PromptRequest:
        if not self.text.strip() and (self.tune is not None or self.base is None):
            raise wrong("text", "is empty: say what to render")
        return self


class Sources(Strict):
    """Where the pictures come from; several kinds may be given together."""

    archive_url: str | None = Field(default=None, max_length=4000)
    """http(s) URL of a zip or tar."""
    image_urls: list[str] = Field(default_factory=list, max_length=10_000)
    """http(s) URLs of pictures."""
    images_base64: list[str] = Field(default_factory=list, max_length=1000)
    """Pictures as base64 or data URIs; moved to the store at submission."""
    folder: str | None = None
    """Local folder or fsspec URL (`s3://…`) of pictures; from requests over the network only inside folders that the
    operator allows.
    """
    uploads: list[str] = Field(default_factory=list, max_length=10_000)
    """Keys in the store of files that were uploaded with the request (pictures or archives)."""

    @property
    def empty(self) -> bool:
        """Whether no source was named at all."""
        return not (self.archive_url or self.image_urls or self.images_base64 or self.folder or self.uploads)


CharacteristicName = Annotated[str, StringConstraints(pattern=r"^\w[\w -]{0,39}$")]
Characteristic = Annotated[str, StringConstraints(max_length=200)]


class TuneRequest(Strict):
    """One request for a tune: the fields of `tune.yaml`, of `tunes train` and of the Launchpad."""

    name: str = Field(min_length=1, max_length=60)
    """Class of the subject in the base's own words: woman, man, dog, mug …; `style` learns how pictures are made
    instead of what they show.
    """
    title: str = Field(default="", max_length=200)
    """What the owner calls it; defaults to the name."""
    token: str = Field(default="ohwx", pattern=r"^[\w-]{1,40}$")
    """The rare word the subject is bound to."""
    base: str = "sdxl"
    """Id or alias in the catalog."""
    sources: Sources = Field(default_factory=Sources)
    """Where the pictures come from."""
    characteristics: dict[CharacteristicName, Characteristic] = Field(default_factory=dict, max_length=50)
    """What is known of the subject (`hair: brown`); a prompt's `{{hair}}` takes its place from here."""
    captions: dict[str, str] = Field(default_factory=dict)
    """File name or content hash → caption, edits that win over everything else."""
    default_caption: str = Field(default="", max_length=2000)
    """Of pictures that came without one, instead of asking the captioning model."""
    dataset: DatasetOptions = Field(default_factory=DatasetOptions)
    """How pictures become a training set."""
    training: TrainingOptions = Field(default_factory=TrainingOptions)
    """How it is trained."""
    prompts: list[PromptRequest] = Field(default_factory=list, max_length=1000)
    """Rendered as soon as the tune is ready."""
    callback_url: str | None = Field(default=None, max_length=4000)
    """Told when the tune is ready or has failed."""
    labels: dict[str, str] = Field(default_factory=dict)
    """The caller's own short strings, kept and handed back."""

    @property
    def class_name(self) -> str:
        """Class of the subject, which callers and files call `name`."""
        return self.name

    @model_validator(mode="before")
    @classmethod
    def _title_defaults_to_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("title") and isinstance(data.get("name"), str):
            return {**data, "title": data["name"]}
        return data


class ImportRequest(Strict):
    """Weights that another program made, which become a tune: the fields of `tunes import` and of its API."""

    url: str = Field(default="", max_length=4000)
    """http(s) URL of a safetensors file, or `hf://owner/name[@revision][/file]`; empty when the file comes along."""
    name: str | None = Field(default=None, min_length=1, max_length=60)
    """Class of the subject; left out, it takes what the file says, else `subject`."""
    title: str | None = Field(default=None, max_length=200)
    """What the owner calls it; left out, it takes what the file says, else the name."""
    token: str | None = Field(default=None, pattern=r"^[\w-]{1,40}$")
    """The word the subject is bound to; left out, it takes what the file says, else `ohwx`."""
    base: str | None = None
    """Id or alias in the catalog; left out, it recognises it from the file, if that comes along."""
    alpha: float | None = Field(default=None, gt=0, le=100_000)
    """lora_alpha of a file of peft's own, which does not say it."""
    sources: Sources = Field(default_factory=Sources)
    """Pictures of the subject, by which the tune is scored; none are needed."""
    prompts: list[PromptRequest] = Field(default_factory=list, max_length=1000)
    """Rendered as soon as the tune is ready."""
    callback_url: str | None = Field(default=None, max_length=4000)
    """Told when the tune is ready or has failed."""
    labels: dict[str, str] = Field(default_factory=dict)
    """The caller's own short strings, kept and handed back."""


def recipe_hash(recipe: dict[str, Any]) -> str:
    """Return the SHA-256 (hex) of a recipe as canonical JSON: sorted keys, no spaces, floats as repr."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
