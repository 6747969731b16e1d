"""What the renderer is handed and what it hands back, and how a prompt row becomes a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunes_dagster.core.failures import Failure
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.rendering.faceid import FaceUse
from tunes_dagster.rendering.loras import LoraUse
from tunes_dagster.rendering.prompts import (
    ParsedPrompt,
    missing_token,
    named_tunes,
    parse_prompt,
    without_token,
)


@dataclass(frozen=True)
class TuneWeights:
    """What rendering needs to know of a tune.

    Attributes:
        id: Tune id.
        key: Key in the store of its weights in diffusers layout; of its embeddings, when it is a `faceid` tune.
        token: Its trigger word.
        class_name: Its class word.
        characteristics: What `{{name}}` in a prompt stands for.
        kind: Of the tune.
    """

    id: str
    key: str
    token: str = ""
    class_name: str = ""
    characteristics: Mapping[str, str] = field(default_factory=dict, hash=False)
    kind: str = "lora"


@dataclass(frozen=True)
class RenderJob:
    """One prompt, ready to be rendered.

    Attributes:
        prompt_id: Names the files and the result.
        text: Without LoRA tags.
        settings: Filled: no None besides `scheduler`.
        loras: What to apply, with strengths.
        faces: What the IP-Adapter is shown, with strengths.
        recipe: Facts that go into every picture's file without changing its hash (asked base, origin …).
        warnings: Sentences for the recipe; they do not change its hash.
    """

    prompt_id: str
    text: str
    settings: RenderSettings
    loras: Sequence[LoraUse | tuple[str, float]] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    faces: Sequence[FaceUse | tuple[str, float]] = ()


@dataclass(frozen=True)
class RenderedImage:
    """One picture in the store.

    Attributes:
        key: Key of the PNG.
        seed: Its own seed.
        width: Pixels, as asked for.
        height: Pixels, as asked for.
        rendered_at: Pixels at which the base rendered it.
        bytes: Size of the file.
        sha256: Of the file.
        recipe_hash: Of its recipe.
        deviation: Standard deviation of its pixels, 0…128; about 0 means one flat colour.
        poster: Of a clip: key of a PNG of its first frame.
    """

    key: str
    seed: int
    width: int
    height: int
    rendered_at: tuple[int, int]
    bytes: int
    sha256: str
    recipe_hash: str
    deviation: float
    poster: str = ""

    @property
    def blank(self) -> bool:
        """Whether the picture shows nothing: all pixels within about one grey level."""
        return self.deviation < 1.0


@dataclass(frozen=True)
class RenderResult:
    """What came of one prompt.

    Attributes:
        prompt_id: Whose.
        images: The pictures that were saved, in order of their seeds.
        failure: Why pictures are missing; None when all are there.
        warnings: Sentences for the caller.
    """

    prompt_id: str
    images: list[RenderedImage]
    failure: Failure | None = None
    warnings: list[str] = field(default_factory=list)


def make_job(
    prompt_id: str,
    text: str,
    settings: RenderSettings,
    *,
    tune: TuneWeights | None = None,
    find_tune: Callable[[str], TuneWeights] | None = None,
    recipe: dict[str, Any] | None = None,
) -> RenderJob:
    """Turn a prompt row into a job: take LoRA tags out of the text, look up what they name, fill in templates.

    Args:
        prompt_id: Id of the row.
        text: As written, with `<lora:ID:weight>` and `<faceid:ID:weight>` tags.
        settings: Filled.
        tune: The prompt's own tune, applied at `settings.lora_scale` unless a tag gives it another weight.
        find_tune: Returns the tune that a tag names, by id, number or title; raises `UNKNOWN_TUNE`.
        recipe: See `RenderJob.recipe`.

    Raises:
        Failure: `INVALID_REQUEST` for what `parse_prompt` refuses, and what `find_tune` raises.
    """
    named = [*named_tunes(text), *named_tunes(text, "faceid")]
    weights = {name: find_tune(name) if find_tune else TuneWeights(name, name) for name in named}
    known: dict[str, str] = {}
    for one in reversed([*([tune] if tune else []), *weights.values()]):
        known.update(one.characteristics)
    parsed = parse_prompt(text, known) if text else ParsedPrompt("")
    chosen: dict[str, tuple[TuneWeights, float]] = {}
    if tune is not None:
        chosen[tune.id] = (tune, settings.lora_scale)
    for name, scale in (*parsed.loras, *parsed.faces):
        chosen[weights[name].id] = (weights[name], scale)
    faces = [pair for pair in chosen.values() if pair[0].kind == "faceid"]
    others = [pair for pair in chosen.values() if pair[0].kind != "faceid"]
    learned = {one.token for one, _ in others}
    said = parsed.text
    for one, _ in faces:
        said = said if one.token in learned else without_token(said, one.token, one.class_name)
    warnings = [missing_token(said, one.token, one.class_name) for one, _ in others]
    return RenderJob(
        prompt_id,
        said,
        settings,
        [LoraUse(one.key, scale, one.id) for one, scale in others],
        recipe or {},
        [warning for warning in warnings if warning],
        [FaceUse(one.key, scale, one.id) for one, scale in faces],
    )
