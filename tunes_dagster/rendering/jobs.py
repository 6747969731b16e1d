"""What the renderer is handed and what it hands back, and how a prompt row becomes a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Reporter
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.core.store import Store
from tunes_dagster.rendering.faceid import FaceUse
from tunes_dagster.rendering.loras import LoraUse
from tunes_dagster.rendering.prompts import (
    ParsedPrompt,
    missing_token,
    parse_prompt,
    summed,
    tag_of,
    without_token,
)


@dataclass(frozen=True, kw_only=True)
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
class Tagged:
    """A tune that a tag in a prompt's text names.

    Attributes:
        word: As the tag says it.
        tune: That is meant.
        scale: Its strength.
    """

    word: str
    tune: TuneWeights
    scale: float


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


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True)
class Delivery:
    """Where what a batch makes goes, and who is told.

    Attributes:
        store: Where weights and given pictures come from and files go.
        prefix: Files are `<prefix>/<prompt_id>-<seed>.png`, of a clip `.mp4` with a `.png` of its first frame beside.
        report: Told of progress; a cancel stops after the current step.
        on_done: Called in the batch's thread, once per prompt, when its files are in the store or it has failed.
        between: Called with the seconds that loading took, 0 where the caller loaded, between parts of a batch when
            nothing is half done; may raise `Cancelled`.
    """

    store: Store
    prefix: str
    report: Reporter
    on_done: Callable[[RenderResult], None] = lambda result: None
    between: Callable[[float], None] = lambda loaded: None


def make_job(
    prompt_id: str,
    text: str,
    settings: RenderSettings,
    *,
    tune: TuneWeights | None = None,
    tagged: Sequence[Tagged] = (),
    recipe: dict[str, Any] | None = None,
) -> RenderJob:
    """Turn a prompt row into a job: take the tags out of the text, and fill in templates.

    Args:
        prompt_id: Id of the row.
        text: As written, with its tags; which tunes they mean was settled when it was accepted.
        settings: Filled.
        tune: The prompt's own tune, applied at `settings.lora_scale` unless a tag gives it another weight.
        tagged: What its tags mean.
        recipe: See `RenderJob.recipe`.

    Raises:
        Failure: `INVALID_REQUEST` for what `parse_prompt` refuses, and for a tag of which nobody knows what it means.
    """
    known: dict[str, str] = {}
    for one in reversed([*([tune] if tune else []), *(tag.tune for tag in tagged)]):
        known.update(one.characteristics)
    parsed = parse_prompt(text, known, weighs=None) if text else ParsedPrompt("")
    _check_known(parsed, tagged)
    chosen: dict[str, tuple[TuneWeights, float]] = {}
    for kind in ("lora", "faceid"):  # one tune may go by several words
        some = {one.tune.id: one.tune for one in tagged if tag_of(one.tune.kind) == kind}
        sums = summed(kind, [(one.tune.id, one.word, one.scale) for one in tagged if one.tune.id in some])
        chosen |= {id: (some[id], scale) for id, scale in sums.items()}
    if tune is not None:
        chosen = {tune.id: (tune, settings.lora_scale), **chosen}
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


def _check_known(parsed: ParsedPrompt, tagged: Sequence[Tagged]) -> None:
    """Refuse to leave a tag out, as if it had not been written."""
    settled = {tag.word for tag in tagged}
    for word, _scale in (*parsed.loras, *parsed.faces):
        if word not in settled:
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"Which tune {word!r} in the prompt means was never settled.",
                "Submit the prompt again.",
            )
