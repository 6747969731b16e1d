"""The demonstration: a drawn subject that the base has never seen, tuned and rendered in new places.

It makes the pictures and the requests, and afterwards the sheet and the page; the work between is the ordinary
pipeline's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tunes_dagster.core.recipe import PromptRequest, RenderSettings, Sources, TuneRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from tunes_dagster.core.store import Store
    from tunes_dagster.service.installation import Installation

PICTURES = 8
SEED = 7
# Measured on 2 cores without GPU; the process holds torch, the base, its adapters and their optimizer.
MINUTES, MEMORY_GB, DISK_MB = 4, 2, 200

# The shipped bases that it runs on, by the class that they are of, as the catalog names them.
BASES = {"sdxl": "tiny", "flux": "tiny-flux"}

# Larger than the base's native size, like people's photos.
SIDE = 256
# Places and clothes that none of the training pictures shows.
SCENES = (
    "in the snow",
    "in the city",
    "in the desert",
    "in the mountains",
    "wearing a red top hat, on pink background",
    "in a purple shirt, on orange background",
)


@dataclass
class Demo:
    """A demonstration under way.

    Attributes:
        folder: Where its pictures, sheet and page go.
        request: The tune that is asked for.
        prompts: With the tune; rendered when it is ready.
        plain: The same ones on the untuned base.
        tune_id: Once submitted.
        plain_ids: Prompt ids of `plain`, once submitted.
    """

    folder: Path
    request: TuneRequest
    prompts: list[PromptRequest]
    plain: list[PromptRequest]
    tune_id: str = ""
    plain_ids: list[str] = field(default_factory=list)


def draw_pictures(folder: Path, subject: str, count: int = PICTURES, seed: int = SEED) -> list[Path]:
    """Draw pictures of a held-out subject as PNG files, with a `tune.yaml` that says what they show.

    Each has a caption beside it that names the place and not the person: what captions name, a token does not learn,
    and the shipped captioner, which has never seen such a person, would call green hair a hat.
    """
    from tunes_dagster.tiny.world.subjects import SUBJECTS, draw_subject

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    who = SUBJECTS[subject]
    drawn = draw_subject(subject, count, seed, size=SIDE, token=who.token)
    for index, (image, caption) in enumerate(drawn):
        file = folder / f"{subject}-{index + 1}.png"
        image.save(file, optimize=True)
        file.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
        files.append(file)
    tune = {"name": who.kind, "token": who.token, "title": subject.capitalize()}
    note = f"# {who.description[0].upper()}{who.description[1:]}.\n"
    text = note + yaml.safe_dump(tune, sort_keys=False)
    (folder / "tune.yaml").write_text(text, encoding="utf-8")
    return files


def prepare(folder: Path, subject: str = "", base: str = "sdxl") -> Demo:
    """Draw the pictures and write the requests.

    Args:
        folder: For everything the demonstration makes.
        subject: One of the held-out subjects; empty is the demonstration's own.
        base: One of `BASES`.
    """
    from tunes_dagster.tiny.world.subjects import DEMO, SUBJECTS

    who = SUBJECTS[subject or DEMO]
    pictures = folder / "pictures"
    draw_pictures(pictures, who.name)
    texts = [f"a photo of {who.token} {who.kind} {scene}" for scene in SCENES]
    settings = [RenderSettings(seed=100 + index) for index in range(len(texts))]
    prompts = [PromptRequest(text=t, settings=s) for t, s in zip(texts, settings, strict=True)]
    request = TuneRequest(
        name=who.kind,
        title=f"{who.name.capitalize()} (demo)",
        token=who.token,
        base=BASES[base],
        sources=Sources(folder=str(pictures)),
        prompts=prompts,
        labels={"demo": who.name},
    )
    plain = [PromptRequest(text=p.text, base=BASES[base], settings=p.settings) for p in prompts]
    return Demo(folder, request, prompts, plain)


def finish(demo: Demo, installation: Installation) -> dict[str, Path]:
    """Draw the before-and-after sheet and write the page; returns what was written, by name."""
    from tunes_dagster.rendering.sheets import before_after_sheet

    registry, store = installation.registry, installation.store
    tune = registry.tunes.get(demo.tune_id)
    texts = [prompt.text for prompt in demo.prompts]
    after = _first_pictures(registry.prompts.rows(tune_id=tune.id, limit=1000), store)
    before = _first_pictures([registry.prompts.get(one) for one in demo.plain_ids], store)
    pictures = sorted((demo.folder / "pictures").glob("*.png"))
    sheet = before_after_sheet(
        texts,
        [_opened(before[text]) if text in before else None for text in texts],
        [_opened(after[text]) if text in after else None for text in texts],
        references=[_opened(file.read_bytes()) for file in pictures],
        title=f"{tune.token} {tune.class_name}, before and after",
        subtitle="Top: the subject. Middle: the untuned base. Bottom: the tune, same prompts and seeds.",
        footer=f"tune {tune.number}, base {tune.base_id}, recipe {tune.recipe_hash[:12]}",
    )
    sheet_file = demo.folder / "before-after.png"
    sheet.save(sheet_file, optimize=True)
    page_file = demo.folder / "report.html"
    page_file.write_text(_page(demo, tune, installation, after), encoding="utf-8")
    return {"sheet": sheet_file, "page": page_file}


def _page(demo: Demo, tune: Any, installation: Installation, after: dict[str, bytes]) -> str:
    from tunes_dagster.rendering.pages import Figure, Section, page

    made, store = tune.made, installation.store
    renders = [
        Figure(source=_keep(demo.folder, f"render-{index + 1}.png", after[prompt.text]), caption=prompt.text)
        for index, prompt in enumerate(demo.prompts)
        if prompt.text in after
    ]
    samples_key = made.samples_key or ""
    curve_key = (made.weights_key or "lora/").rpartition("/")[0] + "/loss.png"
    samples, curve = (
        _keep(demo.folder, Path(key).name, store.read_bytes(key)) if key and store.exists(key) else ""
        for key in (samples_key, curve_key)
    )
    events = installation.registry.events.of(tune.id)
    first = events[0].at if events else tune.created_at
    timeline = {
        f"{(event.at - first).total_seconds():.1f} s": ": ".join(filter(None, (event.phase, event.message)))
        for event in events
    }
    training = {k.replace("_", " "): v for k, v in (tune.recipe or {}).get("training", {}).items()}
    files = {k.removesuffix("_key"): store.url(v) for k, v in made.said().items() if k.endswith("_key") and v}
    sections = [
        Section(
            "Before and after",
            "Same prompt, same seed, same base model; only the tune differs.",
            wide="before-after.png",
        ),
        Section("With the tune", figures=renders),
        Section(
            "What it was trained on",
            "The captions lie beside the pictures and name the place, not the person.",
            figures=_training_figures(demo.folder, tune.id, store),
        ),
        Section("Samples while it learned", wide=samples) if samples else Section(),
        Section("Loss", wide=curve) if curve else Section(),
        Section("Recipe", facts={**training, "recipe hash": tune.recipe_hash}),
        Section("Timeline", facts=timeline),
        Section("Files", facts=files),
        Section("Try next", facts=dict(next_commands(tune))),
    ]
    subtitle = f"Tune {tune.number}: {tune.token} {tune.class_name} on {tune.base_id}, {tune.status}."
    return page(tune.title, subtitle, sections, "Each render carries its whole recipe inside the PNG.")


def next_commands(tune: Any) -> list[tuple[str, str]]:
    """Return what a newcomer may try after the demonstration, as (comment, command)."""
    who = f"{tune.token} {tune.class_name}"
    return [
        ("another place", f'tunes render "a photo of {who} in a forest" --tune {tune.number} --num-images 4'),
        ("your own pictures", "tunes train ./photos --name woman --token ohwx"),
        ("see how each picture came about", "make dev"),
    ]


def _training_figures(folder: Path, tune_id: str, store: Store) -> list[Any]:
    from tunes_dagster.intake.captions import CaptionTable
    from tunes_dagster.intake.training_set import TrainingSet
    from tunes_dagster.rendering.pages import Figure

    captions = CaptionTable.load(store, tune_id).texts()
    figures = []
    for item in TrainingSet.load(store, tune_id).items:
        name = _keep(folder, f"trained-{item.hash[:8]}{Path(item.key).suffix}", store.read_bytes(item.key))
        figures.append(
            Figure(
                source=name, caption=captions.get(item.hash, ""), details="held out" if item.held_out else ""
            )
        )
    return figures


def _keep(folder: Path, name: str, data: bytes) -> str:
    """Write a picture beside the page and return its relative path."""
    place = folder / "page" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return f"page/{name}"


def _first_pictures(prompts: list[Any], store: Store) -> dict[str, bytes]:
    return {row.text: store.read_bytes(row.images[0]) for row in prompts if row.images}


def _opened(data: bytes) -> Image:
    from tunes_dagster.rendering.png import open_own

    return open_own(data)
