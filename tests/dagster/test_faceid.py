"""A faceid tune through the real jobs: nothing is trained, no device is asked for, prompts show the face."""

from __future__ import annotations

import dagster as dg
import pytest
import yaml

from tests.dagster.test_pipeline import checks, drive_until, materialization
from tests.support.tiny_faces import make_random_adapter
from tunes_dagster.assets.names import LORA, REPORT_CARD
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.pipeline.inprocess import drive
from tunes_dagster.rendering.png import read_recipe
from tunes_dagster.service import decide
from tunes_dagster.service.installation import Installation
from tunes_dagster.training.faceid import read_face
from tunes_dagster.training.files import read_header


def add_adapter(house, base_folder, **differing):
    """Put an IP-Adapter for the random base into the house's catalog."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(base_folder / "unet")
    entry = make_random_adapter(house.home / "faces", unet, "random-faces", "random")
    catalog = house.home.parent / "catalog.yaml"
    entries = yaml.safe_load(catalog.read_text())
    (base_id,) = (name for name, fields in entries.items() if fields.get("family") == "sdxl")
    fields = {
        "family": "ipadapter",
        "fits": base_id,
        "repo_id": entry.repo_id,
        "weights": entry.weights,
        "encoder": entry.encoder,
        "licence": "none",
        **differing,
    }
    catalog.write_text(yaml.safe_dump({**entries, "random-faces": fields}))


def test_a_faceid_tune_goes_from_a_picture_to_renders(house, base_folder):
    add_adapter(house, base_folder)
    tune = house.submit(
        "ada",
        pictures=1,
        name="woman",
        training={"kind": "faceid"},
        prompts=[{"text": "a photo of ohwx woman on the beach", "settings": {"seed": 5, "lora_scale": 0.7}}],
    )
    assert tune.request["dataset"]["face_crop"]
    other = house.submit("bob")  # trains beside it

    def prepared() -> bool:
        return {house.status(tune.id), house.status(other.id)} == {"prepared"}

    drive(Installation(house.settings, registry=house.registry), prepared, instance=house.instance)
    first, second = decide.cohort_launches(Installation(house.settings, registry=house.registry))
    assert (first.kind, second.kind) == ("embed", "train")
    (work,) = house.registry.work.of(tune.id, "embed")
    assert work.state == "submitted" and not house.registry.work.of(tune.id, "train")
    assert [work.subject_id for work in house.registry.groups.members(first.cohort_id)] == [tune.id]
    for launch in (first, second):  # as after a tick that died
        for work in house.registry.groups.members(launch.cohort_id):
            house.registry.work.requeue_lost(work.id, "the tick died")
    drive_until(house, tune.id)
    assert house.status(tune.id) == "ready", house.registry.tunes.get(tune.id).failure_message
    assert house.status(other.id) == "prepared", "the face waited for training"

    ready = house.registry.tunes.get(tune.id)
    key = ready.result["weights_key"]
    assert read_face(house.store, key).embeds.shape[0] == 1
    header = read_header(house.store, key)
    assert header["tunes_dagster.kind"] == "faceid" and header["tunes_dagster.ip_adapter"] == "random-faces"
    shown = materialization(house, LORA, tune.id)
    assert shown["pictures_looked_at"] == 1 and "/operator/" in shown["looked_at"]
    assert set(checks(house, LORA, tune.id).values()) == {True}
    assert materialization(house, REPORT_CARD, tune.id)["verdicts"] == "not scored"
    (run,) = house.instance.get_runs(dg.RunsFilter(job_name="embed_faces"))
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert any("Looking at 1 of" in entry.user_message for entry in house.instance.all_logs(run.run_id))

    def rendered() -> bool:
        (prompt,) = house.registry.prompts.rows(tune_id=tune.id)
        return prompt.status in ("done", "failed")

    drive(Installation(house.settings, registry=house.registry), rendered, instance=house.instance)
    (prompt,) = house.registry.prompts.rows(tune_id=tune.id)
    assert prompt.status == "done", prompt.failure_message
    recipe = read_recipe(house.store.read_bytes(prompt.images[0]))
    (face,) = recipe["faces"]
    assert (face["id"], face["scale"], face["adapter"]) == (tune.id, 0.7, "random-faces")
    assert recipe["prompt"] == "a photo of a woman on the beach" and recipe["loras"] == []


def test_without_the_adapter_it_is_refused_before_anything_is_kept(house, base_folder):
    add_adapter(house, base_folder, weights="not-there.safetensors", download_gb=2.6)
    with pytest.raises(Failure, match="random-faces") as refused:
        house.submit("ada", pictures=1, name="woman", training={"kind": "faceid"})
    assert refused.value.code == FailureCode.BASE_NOT_INSTALLED
    assert "tunes bases pull random-faces" in refused.value.remedy
    with pytest.raises(Failure) as refused:  # what has no effect hides nothing of what is missing
        house.submit("ada", pictures=1, name="woman", training={"kind": "faceid", "steps": 100, "rank": 8})
    assert refused.value.code == FailureCode.BASE_NOT_INSTALLED
    assert house.registry.tunes.rows() == []
