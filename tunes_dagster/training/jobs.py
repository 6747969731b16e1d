"""What goes into training and what comes out: plain data, no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunes_dagster.core.progress import Reporter, Silent
from tunes_dagster.core.recipe import TrainingOptions, recipe_hash
from tunes_dagster.families.presets import automatic_steps


@dataclass(frozen=True, kw_only=True)
class TrainExample:
    """One training picture.

    Attributes:
        key: Where the picture lies in the store; keys under `blobs/` are content hashes.
        caption: What it shows, with token and class.
        bucket: (width, height) it is trained at.
        crop: (left, top, right, bottom) in the stored picture's pixels; None is the largest centred
            rectangle of the bucket's aspect.
        mirrored: Trained on left for right.
        tone: Factors on brightness and contrast.
        mask_key: Store key of a picture of the same shape that is white where the loss should look.
        mask_box: x, y, width, height in the stored picture's pixels: where the loss should look.
        is_face: Whether the crop is that of a face.
        name: What people call the picture.
        repeats: How many times as often as others it is seen.
    """

    key: str
    caption: str
    bucket: tuple[int, int]
    crop: tuple[int, int, int, int] | None = None
    mirrored: bool = False
    tone: tuple[float, float] = (1.0, 1.0)
    mask_key: str | None = None
    mask_box: tuple[int, int, int, int] | None = None
    is_face: bool = False
    name: str = ""
    repeats: int = 1

    @property
    def variation(self) -> dict[str, Any]:
        """What sets it apart beside its crop: what is done to it, where the loss looks, how often it is seen."""
        plain = TrainExample(key="", caption="", bucket=(0, 0))
        names = ("mirrored", "tone", "mask_key", "mask_box", "repeats")
        return {name: value for name in names if (value := getattr(self, name)) != getattr(plain, name)}


@dataclass(kw_only=True)
class TuneJob:
    """One tune to train.

    Attributes:
        tune_id: Whose.
        options: With the base's defaults filled in; `steps` may still be None.
        items: The training pictures.
        token: The rare word.
        class_name: The class word.
        out_prefix: Everything is written below this key (`tunes/<tune>/lora/<attempt>`).
        report: Who watches.
        prior_prompts: Prompts of prior preservation; None makes `options.prior_prompts` of them.
        resume_from: Key of a checkpoint, or a prefix below which the newest one is taken.
        recipe: What the caller knows about the tune (pictures, captions hash, versions); the rest is added.
        title: For the model card.
        date: When it was asked for, in ISO 8601; for the files' headers. Empty when nobody knows.
        spoken: How the text encoders are told the token, when it stands for words of its own (pivotal tuning).
        words: The vectors of those words by encoder.
        encoders: Adapters of text encoders that a tune which is continued brought, see `inherited.py`.
        prior_pictures: Pictures of the class without the subject, which prior preservation takes in place of rendered
            ones; their bucket is that of most training pictures, whatever they say.
    """

    tune_id: str
    options: TrainingOptions
    items: Sequence[TrainExample]
    token: str
    class_name: str
    out_prefix: str
    report: Reporter = field(default_factory=Silent)
    prior_prompts: Sequence[str] | None = None
    resume_from: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    date: str = ""
    spoken: str = ""
    words: Mapping[str, Any] | None = None
    encoders: Mapping[str, Any] | None = None
    prior_pictures: Sequence[TrainExample] = ()

    @property
    def captions(self) -> list[str]:
        """The captions as the text encoders get them."""
        return [said(item.caption, self.token, self.spoken) for item in self.items]

    @property
    def total_steps(self) -> int:
        """Optimizer steps of this tune."""
        options = self.options
        if options.steps:
            return options.steps
        pictures = len({item.key for item in self.items})
        return automatic_steps(
            pictures, options.batch_size or 1, options.steps_per_picture, options.min_steps
        )

    @property
    def start_from(self) -> str | None:
        """Key of the weights of the tune that this one continues, or None."""
        return self.recipe.get("continues", {}).get("weights_key")

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints."""
        return self.options.checkpoint_every or max(1, math.ceil(self.total_steps / 8))

    def full_recipe(self, base_id: str, base_fingerprint: str) -> dict[str, Any]:
        """Return everything that decides the weights; `recipe_hash` of it names the result."""
        given = [{"key": one.key, "caption": one.caption} for one in self.prior_pictures]
        return {
            **self.recipe,
            "base": base_id,
            "base_fingerprint": base_fingerprint,
            "class_name": self.class_name,
            "token": self.token,
            "training": {**self.options.model_dump(), "steps": self.total_steps},
            "pictures": [
                {"key": i.key, "caption": i.caption, "bucket": list(i.bucket), "crop": i.crop, **i.variation}
                for i in self.items
            ],
            "prior_prompts": None if self.prior_prompts is None else list(self.prior_prompts),
            **({"prior_pictures": given} if given else {}),
        }

    def data_hash(self, base_fingerprint: str) -> str:
        """Return what a checkpoint must agree on to be resumed: everything but where and how long.

        More steps than at first may be asked for only with a constant learning rate; any other schedule
        depends on the number of steps.
        """
        recipe = self.full_recipe("", base_fingerprint)
        training = {**self.options.hashed(), "steps": self.total_steps}
        for name in ("checkpoint_every", "gradient_checkpointing", "offload"):
            training.pop(name)
        if self.options.lr_schedule == "constant":
            training.pop("steps")
        keep = ("base_fingerprint", "class_name", "token", "pictures", "prior_prompts", "continues")
        kept = {name: recipe.get(name) for name in keep}
        if self.prior_pictures:  # a checkpoint of before there were such still fits a tune without
            kept["prior_pictures"] = recipe["prior_pictures"]
        return recipe_hash({"training": training, **kept})


@dataclass(frozen=True, kw_only=True)
class History:
    """How a training went.

    Attributes:
        steps: Steps trained.
        curve: Loss curve: steps with their losses.
        checkpoints: Keys of the checkpoints, oldest first.
        stopped: Whether it was stopped early and kept.
    """

    steps: int
    curve: Sequence[tuple[int, float]]
    checkpoints: Sequence[str]
    stopped: bool = False


@dataclass(kw_only=True)
class TrainingResult:
    """A trained tune.

    Attributes:
        tune_id: Whose.
        weights_key: Safetensors in diffusers layout: the adapter, or the denoiser of the pipeline.
        kohya_key: The adapter in kohya layout; empty for a whole network.
        card_key: Model card.
        loss_curve: (step, mean loss since the point before).
        steps: Steps trained; fewer than asked for when it was stopped and kept.
        seconds: Of training in this attempt, encoding included.
        checkpoints: Keys, oldest first; `checkpoints.load_weights` reads their adapters.
        recipe: Everything that decided the weights.
        recipe_hash: Its hash, as in the files' headers.
        stopped: Whether somebody stopped it early and kept the state.
        figures: Small facts: cache hits, parameters, file sizes.
        samples_key: Contact sheet over the checkpoints, when one was asked for.
        pipeline_key: Folder of the complete pipeline when a whole network was trained; else empty.
    """

    tune_id: str
    weights_key: str
    kohya_key: str
    card_key: str
    loss_curve: list[tuple[int, float]]
    steps: int
    seconds: float
    checkpoints: list[str]
    recipe: dict[str, Any]
    recipe_hash: str
    stopped: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    samples_key: str | None = None
    pipeline_key: str = ""

    @property
    def folder(self) -> str:
        """Key below which everything of this attempt lies."""
        return (self.pipeline_key or self.weights_key).rpartition("/")[0]


def said(text: str, token: str, spoken: str) -> str:
    """Return a text with the token said in other words; unchanged when there are none."""
    return re.sub(rf"(?<![\w-]){re.escape(token)}(?![\w-])", spoken, text) if spoken else text


def learning_rate(options: TrainingOptions, step: int, total: int) -> float:
    """Return the learning rate of step 0, 1, … of `total`: linear warm-up, then the schedule down to 0."""
    peak, warmup = options.learning_rate or 1e-4, min(options.warmup_steps or 0, total)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)
    if options.lr_schedule == "linear":
        return peak * (1 - done)
    if options.lr_schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak
