"""A checkpoint tune through the real jobs, beside a LoRA: trained, scored, rendered, taken away, made again, erased."""

from __future__ import annotations

import io
import zipfile

from tests.dagster.test_again import again, difference, tensors_hash
from tests.dagster.test_pipeline import checks, drive_until, materialization
from tests.support.registry import around
from tunes_dagster.assets.names import LORA
from tunes_dagster.core.recipe import PromptRequest
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.pipeline.inprocess import drive
from tunes_dagster.rendering.png import read_recipe
from tunes_dagster.service.download import download_key, pieces
from tunes_dagster.service.erase import erase_tunes
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.submit import submit_prompt

FULL = {"kind": "checkpoint", "learning_rate": 1e-3, "steps": 4, "checkpoint_every": 4}


def test_a_full_tune_goes_from_pictures_to_renders_and_away(house):
    text = {"text": "a photo of ohwx mug", "settings": {"seed": 5}}
    full = house.submit("full", training=FULL, prompts=[text])
    lora = house.submit("plain", training={"steps": 2})
    drive_until(house, full.id, lora.id)
    assert {house.status(full.id), house.status(lora.id)} == {"ready"}, house.registry.tunes.get(
        full.id
    ).failure_message
    row = house.registry.tunes.get(full.id)
    assert row.recipe["training"]["rank"] is None and row.result["published_step"] == 4
    passed = {"finite_weights": True, "loads_into_fresh_pipeline": True, "differs_from_base": True}
    assert checks(house, LORA, full.id) == passed == checks(house, LORA, lora.id)
    shown = materialization(house, LORA, full.id)
    assert "samples_over_training" in shown and shown["parameters"] > 1e5
    assert row.result["report_card"]["likeness"] is not None
    assert not [key for key in house.store.list(f"tunes/{full.id}") if ".state." in key]

    # All in one batch: the full tune's, the LoRA's, and the LoRA on the full tune.
    def ask(tune, words="a photo of ohwx mug"):
        request = PromptRequest(text=words, tune=tune.id, settings={"seed": 5})
        return submit_prompt(
            Installation(house.settings, registry=house.registry, catalog=load_catalog()), request
        )

    asked = [ask(full), ask(lora), ask(full, f"a photo of ohwx mug <lora:{lora.number}:1>")]
    rows = house.registry.prompts.rows

    def rendered() -> bool:
        return all(one.status in ("done", "failed") for one in rows())

    drive(Installation(house.settings, registry=house.registry), rendered, instance=house.instance)
    first, *others = [house.registry.prompts.get(one.id) for one in asked]
    (early,) = [one for one in rows(tune_id=full.id) if one.id not in {each.id for each in asked}]
    assert {one.batch_id for one in others} == {first.batch_id}
    pictures = [house.store.read_bytes(one.images[0]) for one in (first, *others)]
    uses = [[(use["id"], use.get("kind")) for use in read_recipe(data)["loras"]] for data in pictures]
    assert uses == [[(full.id, "checkpoint")], [(lora.id, None)], [(full.id, "checkpoint"), (lora.id, None)]]
    assert first.result["recipe_hash"] == early.result["recipe_hash"]
    assert len({read_recipe(data)["recipe_hash"] for data in pictures}) == 3

    # What is taken away is a zip of the pipeline.
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces(house.store, download_key(row.made))))) as archive:
        assert archive.testzip() is None
        assert {
            "pipeline/model_index.json",
            "pipeline/README.md",
            "pipeline/text_encoder_2/model.safetensors",
            "pipeline/unet/diffusion_pytorch_model.safetensors",
        } <= set(archive.namelist())

    same = again(house, full.id)
    drive_until(house, same.id, status=("trained", "failed"))
    assert tensors_hash(house, same.id) == tensors_hash(house, full.id)
    assert difference(house, full, same) == set()
    erase_tunes(
        around(house.registry, house.store),
        [house.registry.tunes.get(full.id)],
    )
    assert not list(house.store.list(f"tunes/{full.id}"))
    assert list(house.store.list(f"tunes/{lora.id}/lora"))
