"""What Astria's endpoints answer, for the documents."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tunes_dagster.gateway.answers import Address, Answer, Moment


class TuneAnswer(Answer):
    """A tune. It is queued while `started_training_at` is null, and ready once `trained_at` is not."""

    id: int
    title: str
    name: str = Field(description="Class of the subject.")
    is_api: bool
    token: str
    base_tune_id: int | None
    args: str | None = Field(description="What was made, where that is not what was asked for.")
    steps: int | None = Field(description="That were asked for, and of a ready tune those it was trained.")
    face_crop: bool
    training_face_correct: bool
    ckpt_url: Address | None
    ckpt_urls: list[Address]
    eta: Moment | None
    progress: float = Field(description="Percent, over all phases; never falls. Not in Astria's own answers.")
    callback: str | None
    trained_at: Moment | None
    started_training_at: Moment | None
    expires_at: Moment | None
    created_at: Moment
    updated_at: Moment
    branch: str | None
    model_type: str | None
    auto_extend: bool
    characteristics: dict[str, Any]
    url: Address
    orig_images: list[Address]
    error: str | None = Field(default=None, description="Why it failed; only then.")


class PromptAnswer(Answer):
    """A prompt. It is done once `trained_at` is not null; `user_error` says why it failed."""

    id: int
    callback: str | None
    text: str
    negative_prompt: str | None
    cfg_scale: str | None
    steps: int | None
    seed: int | None
    ar: str
    num_images: int
    super_resolution: bool
    hires_fix: bool
    inpaint_faces: bool
    face_correct: bool
    film_grain: bool
    controlnet_txt2img: bool
    style: str | None
    color_grading: str | None
    controlnet: str | None
    denoising_strength: float | None
    controlnet_conditioning_scale: float | None
    aspect_ratio: str | None
    resolution: str | None
    scheduler: str | None
    w: int | None
    h: int | None
    community: Any = None
    workspace_id: Any = None
    pack_id: Any = None
    base_pack_id: Any = None
    backend_version: Any = None
    use_lpw: Any = None
    orig_prompt_id: Any = None
    trained_at: Moment | None
    started_training_at: Moment | None
    progress: float = Field(description="Percent of its rendering; never falls. Not in Astria's own answers.")
    created_at: Moment
    updated_at: Moment
    tune_id: int | None = Field(description="The base's number where it was asked on a base.")
    liked: bool
    cost_mc: int = Field(description="Micro-credits: 100,000 are a dollar.")
    user_error: str | None
    url: Address
    images: list[Address] = Field(description="They need no key, and live 30 days.")


class GalleryTune(Answer):
    """A base that prompts and tunes may name by number: a tune of nobody's."""

    id: int
    title: str
    name: str
    is_api: bool
    token: str
    base_tune_id: int | None
    args: str | None
    steps: int | None
    face_crop: bool
    training_face_correct: bool
    ckpt_url: Address | None
    ckpt_urls: list[Address]
    eta: Moment | None
    callback: str | None
    trained_at: Moment | None
    started_training_at: Moment | None
    expires_at: Moment | None
    branch: str
    model_type: str | None
    url: Address
    orig_images: list[Address]


class CliModel(Answer):
    """A base as the command line offers it."""

    tune_id: str
    title: str
    resolutions: list[str]


class CliModels(Answer):
    """What the command line offers."""

    default: str | None
    models: dict[str, CliModel]
    default_video_model: str | None
    video_models: dict[str, Any]


class WorkspaceAnswer(Answer):
    """A workspace."""

    id: int
    title: str
    slug: str
    landing_page_html: str | None
    brief: str | None
    created_at: Moment
    updated_at: Moment


class PackItem(Answer):
    """A pack in a list."""

    id: int
    base_tune_id: int | None
    user_id: int | None
    slug: str
    title: str
    subtitle: str | None
    main_class_name: str | None
    token: str | None
    created_at: Moment
    updated_at: Moment
    multiplier: int
    model_type: str | None
    public_at: Moment | None
    cover_url: Address | None
    cost_mc_hash: dict[str, int] = Field(description="Class → what a tune with its prompts costs.")


class PackCost(Answer):
    """What a pack costs for one class."""

    cost: int
    num_images: int


class PackPrompt(Answer):
    """A prompt of a pack."""

    id: int
    images: list[Address]


class PackAnswer(Answer):
    """A pack with its classes."""

    id: int
    slug: str
    title: str
    cover_url: Address | None
    created_at: Moment
    updated_at: Moment
    public_at: Moment | None
    unlisted_at: Moment | None
    logo: Address | None
    costs: dict[str, PackCost]
    prompts_per_class: dict[str, list[PackPrompt]]


class PromptsMade(Answer):
    """A pack's prompts for tunes that are there already."""

    status: int
    message: str
    tune_ids: list[Any]
    prompt_ids: list[int]


class Inspection(Answer):
    """What can be seen of a picture; what only a person could say is empty or false."""

    name: str
    body_type: str
    ethnicity: str
    age: str
    glasses: str
    eye_color: str
    hair_color: str
    hair_length: str
    hair_style: str
    facial_hair: str
    is_bald: str
    headcover: str
    funny_face: bool
    wearing_sunglasses: bool
    wearing_hat: bool
    full_body_image_or_longshot: bool
    selfie: bool
    low_quality: bool
    blurry: bool
    includes_multiple_people: bool
    low_resolution: bool


class User(Answer):
    """The account."""

    id: int
    email: str
    name: str
    usd_balance_mc: int
    auto_extend_tunes: bool
    top_off_amount: int


class Said(Answer):
    """That something was done."""

    message: str
