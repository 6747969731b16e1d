"""Render prompts with the library alone, no Dagster and no registry: `python examples/render_sheet.py OUT_FOLDER`.

Writes the pictures, `contact_sheet.png` and `index.html` into the folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.core.settings import get_settings
from tunes_dagster.core.store import Store
from tunes_dagster.families.base import load_family
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.rendering.batch_report import write_batch_report
from tunes_dagster.rendering.jobs import Delivery, make_job
from tunes_dagster.rendering.renderer import render

PROMPTS = (
    "a photo of a woman with red hair on the beach",
    "a photo of a man with glasses and a blue hat",
    "a photo of a gray cat in a forest",
    "a photo of a red mug on a yellow background",
    "a photo of a man with a beard at night",
    "a photo of a brown dog in the snow",
    "a photo of a blue backpack in front of a green wall",
    "a photo of a woman with purple hair in the city",
)


def main() -> None:
    """Render the prompts of the command line, or eight of our own, on a base of the catalog."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("folder", type=Path)
    words.add_argument("prompts", nargs="*", default=PROMPTS)
    words.add_argument("--base", default="tiny")
    words.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("WIDTH", "HEIGHT"))
    words.add_argument("--seed", type=int, default=1)
    asked = words.parse_args()

    settings = get_settings()
    entry = load_catalog(settings.profile).usable(asked.base, settings.resolved_home / "bases")
    base = load_family(entry, entry.location(settings.resolved_home / "bases"))
    store = Store(asked.folder)
    jobs = []
    for number, text in enumerate(asked.prompts):
        width, height = asked.size
        fixed = {"seed": asked.seed + number, "width": width, "height": height}
        chosen = entry.render_settings(RenderSettings.model_validate(fixed))
        jobs.append(make_job(f"prompt-{number + 1}", text, chosen))
    results = render(jobs, base, Delivery(store, "pictures", Silent()))
    report = write_batch_report(store, "pictures", jobs, results, title="Renders", base=entry.base_id)
    print(store.url(report.sheet_key), store.url(report.page_key), sep="\n")  # noqa: T201


if __name__ == "__main__":
    main()
