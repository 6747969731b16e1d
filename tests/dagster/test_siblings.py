"""A tune made on a base is rendered on the base's few-step sibling, and everything says so."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import yaml

from tunes_dagster.pipeline.inprocess import drive
from tunes_dagster.rendering.png import read_recipe
from tunes_dagster.service.installation import Installation


def test_a_tune_is_rendered_on_the_sibling_of_its_base(house, base_folder, monkeypatch):
    sibling = shutil.copytree(base_folder, house.home / "quick")
    known = yaml.safe_load(Path(os.environ["TUNES_CATALOG"]).read_text())
    quick = known["tiny-sdxl"] | {
        "repo_id": str(sibling),
        "embedded": "quick",
        "aliases": [],
        "rendering": {"steps": 2, "guidance_scale": 1.0, "width": 64, "height": 64, "scheduler": "euler"},
    }
    known["tiny-sdxl"]["renders_on"] = "quick"
    overlay = house.home / "siblings.yaml"
    overlay.write_text(yaml.safe_dump(known | {"quick": quick}))
    monkeypatch.setenv("TUNES_CATALOG", str(overlay))

    here = {"text": "a photo of ohwx mug", "settings": {"renders_on": False}}
    tune = house.submit(prompts=[{"text": "a photo of ohwx mug"}, here])

    def finished() -> bool:
        prompts = house.registry.prompts.rows(tune_id=tune.id)
        return all(prompt.status in ("done", "failed", "cancelled") for prompt in prompts)

    drive(Installation(house.settings, registry=house.registry), finished, instance=house.instance)
    recipes = {}
    for prompt in house.registry.prompts.rows(tune_id=tune.id):
        assert prompt.status == "done", prompt.failure_message
        recipes[prompt.base_id] = read_recipe(house.store.read_bytes(prompt.images[0]))
    there, at_home = recipes["quick"], recipes["tiny-sdxl"]
    assert (there["base"]["branch"], there["trained_on"], there["steps"]) == ("quick", "tiny-sdxl", 2)
    assert (at_home["base"]["branch"], at_home["steps"]) == ("tiny-sdxl", 3) and "trained_on" not in at_home
    assert there["loras"] == at_home["loras"]
