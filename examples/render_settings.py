"""Draw one sheet of what render settings do: `python examples/render_settings.py OUT.png`.

Needs nothing but the library: the same prompt with one setting changed at a time, on a base of the catalog.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import PromptRequest, RenderSettings
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.families.base import load_family
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.rendering.aids import Aids
from tunes_dagster.rendering.inputs import keep_picture
from tunes_dagster.rendering.jobs import Delivery, make_job
from tunes_dagster.rendering.png import png_bytes
from tunes_dagster.rendering.renderer import render
from tunes_dagster.rendering.sheets import Cell, contact_sheet, in_rows
from tunes_dagster.rendering.submission import PromptContext, complete_prompt

TEXT = "a photo of a woman with red hair on the beach"


def variants(picture: str, mask: str) -> list[tuple[str, str, dict[str, object]]]:
    """Return (label, prompt, settings) of the cells."""
    start = {"input_image": picture}
    return [
        ("as it is", TEXT, {}),
        ("weighted: (red hair:1.6)", TEXT.replace("red hair", "(red hair:1.6)"), {}),
        ("guidance_scale 8", TEXT, {"guidance_scale": 8.0}),
        ("composition mountain hike", "a woman with red hair", {"composition": "mountain hike"}),
        ("color_grading Film Velvia", TEXT, {"color_grading": "Film Velvia"}),
        ("color_grading Film Portra", TEXT, {"color_grading": "Film Portra"}),
        ("color_grading Ektar", TEXT, {"color_grading": "Ektar"}),
        ("Film Portra + film_grain", TEXT, {"color_grading": "Film Portra", "film_grain": True}),
        (
            "input_image, strength 0.5: in a forest",
            TEXT.replace("on the beach", "in a forest"),
            {**start, "denoising_strength": 0.5},
        ),
        ("strength 0.8", TEXT.replace("on the beach", "in a forest"), {**start, "denoising_strength": 0.8}),
        (
            "mask_image: the top, with a hat",
            TEXT.replace("red hair", "a blue hat"),
            {**start, "mask_image": mask, "denoising_strength": 1.0},
        ),
        ("composition beach", "a man with glasses", {"composition": "beach"}),
    ]


def main() -> None:
    """Render the variants and write the sheet."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("out", type=Path)
    words.add_argument("--base", default="tiny")
    words.add_argument("--seed", type=int, default=5)
    asked = words.parse_args()
    catalog = load_catalog()
    entry = catalog.entries[catalog.resolve(asked.base).base_id]
    base = load_family(entry, entry.location(Path()))
    with tempfile.TemporaryDirectory() as folder:
        options, store = Settings(home=Path(folder)), Store(folder)

        def job(name: str, text: str, changes: dict[str, object]) -> object:
            given = {"seed": asked.seed, "width": 256, "height": 256, **changes}
            request = PromptRequest(text=text, settings=RenderSettings.model_validate(given))
            done = complete_prompt(request, PromptContext(entry, entry, catalog, options, store))
            return make_job(name, text, done.settings)

        def made(jobs: list) -> list[Image.Image]:
            results = render(jobs, base, Delivery(store, "out", Silent()), aids=Aids(catalog))
            keys = [result.images[0].key for result in results]
            return [Image.open(io.BytesIO(store.read_bytes(key))).convert("RGB") for key in keys]

        [first] = made([job("first", TEXT, {})])
        mask = Image.new("L", first.size, 0)
        ImageDraw.Draw(mask).rectangle((0, 0, first.width, first.height * 2 // 5), fill=255)
        keys = [store.write_blob(png_bytes(image), ".png") for image in (first, mask)]
        keys = [keep_picture(key, "input_image", options, store) for key in keys]
        cells = variants(*keys)
        pictures = made([job(f"p{i}", text, changes) for i, (_, text, changes) in enumerate(cells)])
    rows = in_rows([Cell(picture, label) for picture, (label, _, _) in zip(pictures, cells, strict=True)], 4)
    title = f"{TEXT} · one setting changed at a time · seed {asked.seed}"
    contact_sheet(rows, title="Render settings", subtitle=title).save(asked.out)


if __name__ == "__main__":
    main()
