"""Weights of other programs through the real jobs: rendered, mixed, scored, continued and deleted like any tune's."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from tests.dagster.test_pipeline import drive_until
from tests.support import foreign
from tests.support.families import random_lora
from tests.support.houses import draw_pictures
from tests.support.registry import around
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.recipe import ImportRequest, PromptRequest, TuneRequest
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.intake.weights import on_this_machine
from tunes_dagster.pipeline.inprocess import drive
from tunes_dagster.rendering.png import read_recipe
from tunes_dagster.service.erase import erase_tunes
from tunes_dagster.service.importing import import_weights
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.submit import submit_prompt, submit_tune


@pytest.fixture
def theirs(base_folder, tmp_path):
    """A LoRA of sd-scripts with text encoders, and one of diffusers' denoiser alone, for the random base."""
    from tests.rendering.conftest import entry
    from tunes_dagster.families.base import load_family

    base = load_family(entry(base_folder), base_folder)
    files = {}
    for name, adapter, form in (
        (
            "kohya",
            random_lora(base, 1, targets="attention") | foreign.text_lora(base, 1),
            lambda one: foreign.kohya_sdxl(one, 1),
        ),
        ("plain", random_lora(base, 2, targets="attention"), foreign.new_diffusers),
    ):
        tensors, header = form(adapter)
        files[name] = tmp_path / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, files[name], header)
    return files


def take(house, file, allow_folder=None, **said):
    return import_weights(
        Installation(house.settings, registry=house.registry, store=house.store, catalog=load_catalog()),
        ImportRequest(**said),
        on_this_machine(file),
        allow_folder=allow_folder,
    )


def done(house, *prompts) -> bool:
    return all(house.registry.prompts.get(one.id).status in ("done", "failed") for one in prompts)


@pytest.mark.slow
@pytest.mark.timeout(900)  # four pieces of device work, each with a base to load
def test_a_file_of_others_lives_like_a_tune(house, theirs):
    folder = draw_pictures(house.home / "pictures" / "ann", 4, seed=3)
    scored = take(
        house,
        theirs["kohya"],
        str(folder),
        name="mug",
        title="Ann",
        sources={"folder": str(folder)},
        prompts=[{"text": "a photo of ohwx mug", "settings": {"seed": 5}}],
    )
    bare = take(house, theirs["plain"], name="mug", title="Bob", base="tiny-sdxl")
    assert (scored.status, bare.status) == ("queued", "prepared") and scored.origin == "import"
    for tune in (bare, scored):
        drive_until(house, tune.id)
        assert house.status(tune.id) == "ready", house.registry.tunes.get(tune.id).failure_message
        assert set(house.registry.tunes.get(tune.id).made.checks.values()) == {True}
    ready = house.registry.tunes.get(scored.id)
    assert ready.recipe["imported"]["continued_as"] == {"rank": 4, "targets": "attention"}
    assert ready.made.steps == 0
    unscored = house.registry.tunes.get(bare.id).verdict
    assert ready.verdict["verdict"] != "unscored" and ready.made.report_card.why, ready.verdict
    assert unscored["verdict"] == "unscored" and "without pictures" in unscored["line"], unscored
    with house.store.local(ready.made.weights_key) as exported:
        assert any(key.startswith("text_encoder_2.") for key in load_file(exported))

    (first,) = house.registry.prompts.rows(tune_id=scored.id)
    catalog = load_catalog()
    mixed, alone = (
        submit_prompt(
            Installation(house.settings, registry=house.registry, catalog=catalog),
            PromptRequest.model_validate(one),
        )
        for one in (
            {"text": "a mug <lora:Ann:0.5> <lora:Bob:0.5>", "base": "tiny-sdxl", "settings": {"seed": 5}},
            {"text": "a photo of ohwx mug", "tune": "Bob", "settings": {"seed": 5}},
        )
    )
    drive(
        Installation(house.settings, registry=house.registry),
        lambda: done(house, first, mixed, alone),
        instance=house.instance,
    )
    pictures = [house.registry.prompts.get(one.id) for one in (first, mixed, alone)]
    assert [one.status for one in pictures] == ["done"] * 3, [one.failure_message for one in pictures]
    assert len({house.store.read_bytes(one.images[0]) for one in pictures}) == 3
    assert len(read_recipe(house.store.read_bytes(pictures[1].images[0]))["loras"]) == 2

    further = submit_tune(
        Installation(house.settings, registry=house.registry, store=house.store, catalog=catalog),
        TuneRequest.model_validate(
            {
                "name": "mug",
                "title": "Further",
                "sources": {"folder": str(folder)},
                "dataset": {"captioner": False},
                "training": {"base_tune_id": "Bob", "steps": 2},
            }
        ),
        allow_folder=str(folder),
    )
    assert further.recipe["training"]["rank"] == 4 and further.recipe["training"]["targets"] == "attention"
    erase_tunes(around(house.registry, house.store), [ready])
    assert not list(house.store.list(f"tunes/{scored.id}"))


def test_what_does_not_fit_is_refused_before_anything_is_kept(house, theirs, tmp_path):
    tensors = load_file(theirs["plain"])
    odd = next(iter(tensors.values()))
    tensors |= {f"unet.made.up.lora_{half}.weight": odd.clone() for half in "AB"}
    file = tmp_path / "odd.safetensors"
    save_file(tensors, file)
    for said in ({"base": "tiny-sdxl"}, {}):
        with pytest.raises(Failure, match="unet.made.up"):
            take(house, file, **said)
    with pytest.raises(Failure, match="Which base"):
        import_weights(
            Installation(house.settings, registry=house.registry, store=house.store, catalog=load_catalog()),
            ImportRequest(url="https://example.com/a.safetensors"),
        )
    assert house.registry.tunes.rows() == [] and not list(house.store.list("tunes"))


def test_a_damaged_file_fails_its_tune_by_name(house, theirs):
    tune = take(house, theirs["plain"])
    assert (tune.class_name, tune.token, tune.title, tune.base_id) == (
        "subject",
        "ohwx",
        "subject",
        "tiny-sdxl",
    )
    house.store.write_bytes(tune.recipe["imported"]["key"], b"something else")
    drive_until(house, tune.id)
    failed = house.registry.tunes.get(tune.id)
    assert failed.status == "failed" and "its hash is another one" in failed.failure_message
