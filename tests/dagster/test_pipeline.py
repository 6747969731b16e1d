"""Tunes through the real jobs, in this process, on the random base."""

from __future__ import annotations

import threading
import time

import dagster as dg
import pytest
from PIL import Image

from tunes_dagster.assets.names import CAPTIONS, LORA, RENDERS, REPORT_CARD, SOURCE_IMAGES, TRAINING_SET
from tunes_dagster.core.failures import UNEXPECTED
from tunes_dagster.core.recipe import recipe_hash
from tunes_dagster.definitions import build_defs
from tunes_dagster.pipeline.inprocess import drive, execute
from tunes_dagster.pipeline.launches import RUN_KEY_TAG
from tunes_dagster.rendering.png import read_recipe
from tunes_dagster.service import decide
from tunes_dagster.service.compare import recipe_of
from tunes_dagster.service.installation import Installation

ENDED = ("ready", "failed", "cancelled")


def drive_until(house, *tune_ids: str, status: tuple[str, ...] = ENDED) -> None:
    """Do all that waits until the tunes have one of the statuses."""

    def over() -> bool:
        return all(house.status(tune_id) in status for tune_id in tune_ids)

    drive(Installation(house.settings, registry=house.registry), over, instance=house.instance)


def materialization(house, key: dg.AssetKey, partition: str) -> dict:
    """Return the metadata of the last materialization of a partition, as plain values."""
    found = house.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition]), limit=1
    )
    assert found.records, f"{key} of {partition} was not materialized"
    metadata = found.records[0].asset_materialization.metadata
    return {name: value.value for name, value in metadata.items()}


def checks(house, key: dg.AssetKey, partition: str) -> dict[str, bool]:
    """Return the answers of an asset's checks on one partition."""
    found = {}
    for run in house.instance.get_runs():
        for entry in house.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
            answer = entry.dagster_event.asset_check_evaluation_data
            if answer.asset_key == key and answer.partition == partition:
                found[answer.check_name] = answer.passed
    return found


def materialize(house, keys: list[dg.AssetKey], partition: str, config: dict | None = None, **tags: str):
    """Materialize as the UI does: no run key."""
    house.instance.add_dynamic_partitions("tunes", [partition])
    job = build_defs().resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=house.instance,
        partition_key=partition,
        asset_selection=keys,
        run_config={"ops": config} if config else None,
        raise_on_error=False,
        tags=tags,
    )


def failure_text(result) -> str:
    """Return what the UI shows of the first failed step."""
    (event, *_) = [e for e in result.all_events if e.is_step_failure]
    error = event.step_failure_data.error
    data = event.step_failure_data.user_failure_data
    return f"{data.description if data else ''} {error}"


def test_a_tune_goes_from_pictures_to_renders(house):
    tune = house.submit(prompts=[{"text": "a photo of ohwx mug", "settings": {"num_images": 2, "seed": 5}}])

    def finished() -> bool:
        (prompt,) = house.registry.prompts.rows(tune_id=tune.id)
        return house.status(tune.id) in ("failed", "cancelled") or prompt.status in ("done", "failed")

    drive(Installation(house.settings, registry=house.registry), finished, instance=house.instance)
    assert house.status(tune.id) == "ready", house.registry.tunes.get(tune.id).failure_message
    (prompt,) = house.registry.prompts.rows(tune_id=tune.id)
    assert prompt.status == "done", prompt.failure_message
    assert len(prompt.images) == 2 and all(house.store.exists(key) for key in prompt.images)
    assert house.store.read_json(f"tunes/{tune.id}/tune.json")["token"] == "ohwx"
    (used,) = read_recipe(house.store.read_bytes(prompt.images[0]))["loras"]
    made_by = recipe_of(house.registry.tunes.get(tune.id), house.store)
    assert used["recipe_hash"] == recipe_hash(made_by)
    # All that decides the weights is in it.
    assert {"pictures", "training", "base_fingerprint", "revision", "version", "libraries"} <= made_by.keys()
    assert all(picture["key"].startswith("blobs/") for picture in made_by["pictures"])

    source = materialization(house, SOURCE_IMAGES, tune.id)
    for key in (SOURCE_IMAGES, TRAINING_SET, CAPTIONS, LORA, REPORT_CARD):
        assert materialization(house, key, tune.id)["tune"] == tune.number
    assert source["usable"] == 5 and source["pictures"].startswith(
        "[![source images](http://127.0.0.1:8000/operator/"
    )
    assert "/operator/" in source["manifest"] and source["rejected"] == 0
    assert "/operator/" in source["verdict"]
    verdict = house.store.read_text(f"tunes/{tune.id}/source/verdict.txt")
    assert "(token ohwx, class" in verdict and "5 of 5 pictures are used; 1 of them held out" in verdict
    assert verdict.count("; caption from ") == 5
    dataset = materialization(house, TRAINING_SET, tune.id)
    assert dataset["trained_on"] == 4 and dataset["held_out"] == 1
    said = materialization(house, CAPTIONS, tune.id)
    assert said["captions"] == dataset["trained_on"] + dataset["held_out"] and "/operator/" in said["table"]
    lora = materialization(house, LORA, tune.id)
    assert lora["steps"] == 12 and "samples_over_training" in lora and "loss_curve" in lora
    assert (
        lora["memory_plan"].startswith("Memory plan: float32")
        and lora["options"]["rank"] == made_by["training"]["rank"]
    )
    rendered = materialization(house, RENDERS, prompt.batch_id)
    assert rendered["pictures"] == 2 and rendered["tunes"] == [tune.id]
    card = materialization(house, REPORT_CARD, tune.id)
    assert [row.data["step"] for row in card["scores"].records] == [
        "base",
        "12",
    ] and "before_and_after" in card
    kept = house.registry.tunes.get(tune.id).result["report_card"]
    assert house.store.exists(kept["page_key"]) and kept["likeness"] is not None and kept["chosen_step"] == 12
    for metadata in (source, dataset, lora, card, rendered):
        said = str(metadata)
        assert len(said) < 60_000 and "bob" not in said and "ohwx" not in said and "image/webp" not in said
    assert checks(house, SOURCE_IMAGES, tune.id) == {"enough_pictures": True}
    assert checks(house, TRAINING_SET, tune.id) == {"no_leakage": True}
    assert checks(house, CAPTIONS, tune.id) == {"token_and_class": True}
    assert checks(house, LORA, tune.id) == {
        "finite_weights": True,
        "loads_into_fresh_pipeline": True,
        "differs_from_base": True,
    }
    assert checks(house, RENDERS, prompt.batch_id) == {
        "every_picture_is_there": True,
        "not_blank": True,
        "finite": True,
    }


def test_a_tune_whose_scoring_fails_is_published_all_the_same(house, monkeypatch):
    from tunes_dagster.evaluation import scoring

    def broken(*_args, **_named):
        raise ValueError("the scorer is broken")

    monkeypatch.setattr(scoring, "score_tune", broken)
    tune = house.submit(training={"steps": 4})
    drive_until(house, tune.id)
    row = house.registry.tunes.get(tune.id)
    card = row.result["report_card"]
    assert row.status == "ready" and card["verdict"] == "unscored" and UNEXPECTED in card["line"]
    assert row.result["weights_key"] == row.result["last_weights_key"]
    page = house.store.read_text(card["page_key"])
    assert (
        UNEXPECTED in page and "the scorer is broken" not in page
    )  # its owner reads it; the run's log has the rest
    assert checks(house, REPORT_CARD, tune.id) == {"likeness_above_base": False}


def test_too_few_pictures_fail_the_blocking_check_and_the_tune(house):
    tune = house.submit(pictures=2, dataset={"captioner": False, "min_pictures": 4})
    drive_until(house, tune.id)
    row = house.registry.tunes.get(tune.id)
    assert row.status == "failed" and row.failure_code == "too_few_pictures" and row.failure_remedy
    assert materialization(house, SOURCE_IMAGES, tune.id)["usable"] == 2
    assert checks(house, SOURCE_IMAGES, tune.id) == {"enough_pictures": False}
    (run,) = house.instance.get_runs()
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert not house.instance.fetch_materializations(TRAINING_SET, limit=1).records


def test_a_new_tune_starts_in_the_ui_and_trains_in_the_same_run(house):
    from tests.support.houses import draw_pictures

    folder = draw_pictures(house.home / "theirs", 4)
    result = materialize(
        house,
        [SOURCE_IMAGES, TRAINING_SET, CAPTIONS, LORA],
        "my-mug",
        {
            "source_images": {
                "config": {
                    "name": "mug",
                    "title": "Mine",
                    "token": "zkqj",
                    "folder": str(folder),
                    "dataset": {"captioner": False},
                }
            },
            "lora": {"config": {"steps": 6, "seed": 3}},
        },
    )
    assert result.success, failure_text(result)
    row = house.registry.tunes.get("my-mug")
    assert (row.title, row.token, row.origin, row.status) == ("Mine", "zkqj", "ui", "trained")
    assert row.recipe["training"]["steps"] == 6 and row.recipe["training"]["seed"] == 3
    assert materialization(house, LORA, "my-mug")["steps"] == 6
    works = {work.kind: work for work in house.registry.work.of("my-mug")}
    assert works["train"].state == "done" and works["train"].attempt == 1 and works["train"].origin == "ui"
    drive_until(house, "my-mug")
    assert house.status("my-mug") == "ready"

    again = materialize(house, [LORA], "my-mug", {"lora": {"config": {"steps": 4}}})
    assert again.success, failure_text(again)
    row = house.registry.tunes.get("my-mug")
    assert row.status == "ready" and row.result["steps"] == 4 and "/lora/2/" in row.result["weights_key"]


def test_what_starts_in_the_ui_with_its_pictures_alone_goes_on_by_itself(paper_house):
    from tests.support.houses import draw_pictures

    folder = draw_pictures(paper_house.home / "theirs", 4)
    Image.new("RGB", (20, 20)).save(folder / "tiny.png")
    request = {"name": "mug", "folder": str(folder), "dataset": {"captioner": False}}
    started = materialize(paper_house, [SOURCE_IMAGES], "my-mug", {"source_images": {"config": request}})
    assert started.success, failure_text(started)
    assert paper_house.status("my-mug") == "queued"
    drive_until(paper_house, "my-mug", status=("prepared", *ENDED))
    assert materialization(paper_house, CAPTIONS, "my-mug")["captions"] == 4
    assert [work.kind for work in paper_house.registry.work.queued("train")] == ["train"]
    first, *each = paper_house.registry.tunes.get("my-mug").findings
    assert first == "1 of 5 pictures are not used." and any(
        said.startswith("tiny.png: Too small") for said in each
    )


def test_the_ui_refuses_with_a_sentence(house):
    without = materialize(house, [SOURCE_IMAGES], "nobody")
    assert "nobody has asked for this tune" in failure_text(without)
    tune = house.submit("bob")
    early = materialize(house, [LORA], tune.id)
    assert "prepare of" in failure_text(early) and "Wait" in failure_text(early)
    house.registry.work.cancel_tune(tune.id)
    assert "is not prepared" in failure_text(materialize(house, [LORA], tune.id))
    wrong = failure_text(materialize(house, [LORA], tune.id, {"lora": {"config": {"rank": 3}}}))
    assert "rank is '3'" in wrong and "greater than or equal to 4" in wrong


def test_a_cohort_of_two_with_a_broken_member(house):
    good, bad = house.submit("good"), house.submit("bad")
    drive_until(house, good.id, bad.id, status=("prepared", *ENDED))
    house.store.delete(f"tunes/{bad.id}/training_set/training_set.json")
    drive_until(house, good.id, bad.id)
    assert house.status(good.id) == "ready"
    row = house.registry.tunes.get(bad.id)
    assert row.status == "failed" and "not prepared" in row.failure_message
    assert checks(house, LORA, good.id)["finite_weights"] and not checks(house, LORA, bad.id)
    (run,) = house.instance.get_runs(dg.RunsFilter(job_name="train_cohort"))
    assert run.status == dg.DagsterRunStatus.FAILURE


def prepared_launch(house, **fields):
    """Prepare a tune and take its training out of the queue."""
    tune = house.submit(**fields)
    drive_until(house, tune.id, status=("prepared",))
    (launch,) = decide.cohort_launches(Installation(house.settings, registry=house.registry))
    return tune, launch


def test_a_tune_that_is_cancelled_while_it_trains_ends_as_cancelled(house):
    tune, launch = prepared_launch(house, training={"steps": 5000, "checkpoint_every": 1000})
    watcher = threading.Thread(target=cancel_when_training, args=(house, tune.id))
    watcher.start()
    assert not execute(build_defs(), house.instance, launch)
    watcher.join()
    assert house.status(tune.id) == "cancelled"
    (run,) = house.instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: launch.run_key}))
    assert run.status == dg.DagsterRunStatus.CANCELED
    assert any("/checkpoints/" in key for key in house.store.list(f"tunes/{tune.id}/lora"))


def cancel_when_training(house, tune_id: str) -> None:
    """Cancel the tune once some steps are done."""
    deadline = time.monotonic() + 120
    while house.registry.tunes.get(tune_id).phase != "training" and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    house.registry.work.cancel_tune(tune_id)


@pytest.mark.parametrize("by_person", [True, False])
def test_an_interrupted_run_is_cancelled_by_a_person_and_resumed_otherwise(house, by_person, monkeypatch):
    tune, launch = prepared_launch(house)
    from tunes_dagster.training import loop

    def interrupted(*args, **kwargs):
        (run,) = house.instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: launch.run_key}))
        if by_person:
            house.instance.report_run_canceling(run)
        raise dg.DagsterExecutionInterruptedError

    monkeypatch.setattr(loop, "train", interrupted)
    if by_person:
        assert not execute(build_defs(), house.instance, launch)
        assert house.status(tune.id) == "cancelled"
        return
    with pytest.raises(KeyboardInterrupt):
        execute(build_defs(), house.instance, launch)
    (work,) = house.registry.work.of(tune.id, "train")
    assert work.state == "queued" and house.status(tune.id) == "prepared"
    monkeypatch.undo()


def test_a_late_writer_is_refused(house, monkeypatch):
    tune, launch = prepared_launch(house)
    from tunes_dagster.training import loop

    real = loop.train

    def slow(*args, **kwargs):
        (work,) = house.registry.work.of(tune.id, "train")
        house.registry.work.requeue_lost(work.id, "It was silent.")
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train", slow)
    assert not execute(build_defs(), house.instance, launch)
    (work,) = house.registry.work.of(tune.id, "train")
    assert work.state == "queued" and "weights_key" not in house.registry.tunes.get(tune.id).result
    assert not house.instance.fetch_materializations(LORA, limit=1).records
