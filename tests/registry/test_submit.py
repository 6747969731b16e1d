"""The door: what is refused by name, what is filled in."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import pytest

from tests.support.registry import make_ready, run_stage
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import PromptRequest, TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import BaseModelEntry, Catalog
from tunes_dagster.registry import Prompt, Registry, Tune
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.submit import submit_prompt, submit_tune


class Door:
    """Submits with everything in place."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        base = folder / "base"
        base.mkdir()
        (base / "model_index.json").write_text("{}")
        common = {"family": "sdxl", "licence": "apache-2.0", "memory_gb": 1, "token": "ohwx"}
        tiny = BaseModelEntry(
            base_id="tiny",
            repo_id=str(base),
            native_size=128,
            max_pixels=65536,
            embedded="tiny",
            training={"rank": 16, "steps": 400},
            rendering={"steps": 20, "guidance_scale": 4.0, "scheduler": "euler"},
            **common,
        )
        big = BaseModelEntry(
            base_id="sdxl1",
            aliases=["sdxl"],
            repo_id="org/big",
            native_size=1024,
            max_pixels=2**20,
            embedded="tiny",
            **common,
        )
        self.entries = {"tiny": tiny, "sdxl1": big}
        self.catalog = Catalog(self.entries)
        self.registry, self.store = registry, Store(folder / "store")
        self.settings = Settings(home=folder / "home")
        self.pictures = folder / "pictures"
        self.pictures.mkdir()

    def tune(self, allow_folder: str | None = None, tune_id: str | None = None, **fields: object) -> Tune:
        request = TuneRequest.model_validate({"name": "dog", **fields})
        return submit_tune(
            Installation(self.settings, registry=self.registry, store=self.store, catalog=self.catalog),
            request,
            allow_folder=allow_folder,
            tune_id=tune_id,
        )

    def prompt(self, text: str = "a photo of ohwx dog", **fields: object) -> Prompt:
        request = PromptRequest.model_validate({"text": text, **fields})
        return submit_prompt(
            Installation(self.settings, registry=self.registry, catalog=self.catalog), request
        )


@pytest.fixture
def door(tmp_path: Path, migrated_file: Path) -> Door:
    shutil.copyfile(migrated_file, tmp_path / "registry.db")
    return Door(Registry(f"sqlite:///{tmp_path}/registry.db"), tmp_path)


def refused(code: FailureCode, call: object, *args: object, **fields: object) -> str:
    with pytest.raises(Failure) as error:
        call(*args, **fields)  # type: ignore[operator]
    assert error.value.code == code
    return str(error.value)


def test_a_tune_is_completed_from_the_base_that_is_really_used(door: Door) -> None:
    tune = door.tune(sources={"image_urls": ["https://example.com/a.png"]}, training={"rank": 8})
    assert (tune.base, tune.base_id, tune.status, tune.title) == ("sdxl", "tiny", "queued", "dog")
    assert tune.recipe["training"]["rank"] == 8 and tune.recipe["training"]["steps"] == 400
    assert len(tune.recipe_hash) == 64


def test_base64_moves_into_the_store(door: Door) -> None:
    data = base64.b64encode(b"\x89PNG....").decode()
    tune = door.tune(sources={"images_base64": [data, f"data:image/jpeg;base64,{data}"]})
    sources = tune.request["sources"]
    assert sources["images_base64"] == [] and len(sources["uploads"]) == 2
    assert door.store.read_bytes(sources["uploads"][0]) == b"\x89PNG...."
    assert "images_base64[0]" in refused(
        FailureCode.INVALID_REQUEST, door.tune, sources={"images_base64": ["%%%"]}
    )


def test_without_sources_it_awaits_images(door: Door) -> None:
    assert door.tune().status == "awaiting_images"


def test_refused_by_name_and_nothing_kept(door: Door) -> None:
    inside = str(door.pictures)
    assert "sdxl" in refused(FailureCode.UNKNOWN_BASE, door.tune, base="sdlx")
    assert "may name" in refused(FailureCode.SOURCE_REFUSED, door.tune, sources={"folder": inside})
    refused(FailureCode.SOURCE_REFUSED, door.tune, sources={"archive_url": "file:///etc/passwd"})
    refused(FailureCode.SOURCE_REFUSED, door.tune, sources={"image_urls": ["http://169.254.169.254/"]})
    refused(FailureCode.SOURCE_REFUSED, door.tune, callback_url="http://127.0.0.1:8000/hook")
    refused(FailureCode.INVALID_REQUEST, door.tune, sources={"uploads": ["tunes/tune_other/uploads/a.png"]})
    refused(FailureCode.INVALID_REQUEST, door.tune, tune_id="../../etc")
    refused(
        FailureCode.INVALID_REQUEST, door.tune, prompts=[{"text": "x", "settings": {"scheduler": "eulr"}}]
    )
    refused(FailureCode.INVALID_REQUEST, door.tune, prompts=[{"text": "x", "tune": "tune_other"}])
    assert door.registry.tunes.rows() == []
    assert door.tune(allow_folder=inside, sources={"folder": inside}).status == "queued"


def test_a_base_that_is_not_installed_names_the_command(door: Door) -> None:
    door.catalog = Catalog(door.entries, "production")
    assert "tunes bases pull sdxl1" in refused(FailureCode.BASE_NOT_INSTALLED, door.tune)


def test_an_id_is_taken_once(door: Door) -> None:
    assert door.tune(tune_id="my cat").id == "my cat"
    refused(FailureCode.CONFLICT, door.tune, tune_id="my cat")


def test_an_id_can_be_a_file_name_a_partition_and_a_tag(door: Door) -> None:
    wrong = [
        "漢" * 80,
        "a,b",
        "a:b",
        "<b>",
        "[a]",
        "a*",
        'a"b',
        "a...b",
        " a",
        "a ",
        "a\n",
        "a\u202eb",
        "a\u2028b",
    ]
    for name in [*wrong, "e\u0301", "\ud800", "x" * 81, ".a", "a|b"]:
        refused(FailureCode.INVALID_REQUEST, door.tune, tune_id=name)
    for name in ["漢" * 50, "x" * 80, "anna_2.v-3", "größe"]:
        tune = door.tune(tune_id=name)
        key = door.store.write_text(f"tunes/{tune.id}/lora/1/{tune.id}-kohya.safetensors", "x")
        assert door.store.read_text(key) == "x"


def test_prompts_get_a_seed_and_every_setting(door: Door) -> None:
    prompt = door.prompt()
    settings = prompt.settings
    assert settings["seed"] is not None and settings["width"] == settings["height"] == 128
    assert (settings["steps"], settings["scheduler"]) == (20, "euler")
    assert (prompt.base, prompt.base_id, prompt.status) == ("sdxl", "tiny", "queued")
    assert prompt.shape == "128x128/20/4.0/euler"


def test_prompts_on_a_tune(door: Door) -> None:
    tune = door.tune(
        title="Rex", sources={"image_urls": ["https://example.com/a.png"]}, prompts=[{"text": "ohwx dog"}]
    )
    (own,) = door.registry.prompts.rows(tune_id=tune.id)
    assert own.status == "waiting" and own.settings["seed"] is not None
    make_ready(door.registry, tune)
    assert door.prompt(tune="Rex").tune_id == tune.id
    refused(FailureCode.UNKNOWN_TUNE, door.prompt, tune="Fifi")


def finished(door: Door, **fields: object) -> Tune:
    tune = door.tune(sources={"folder": str(door.pictures)}, allow_folder=str(door.pictures), **fields)
    for kind in ("prepare", "train", "finish"):
        run_stage(door.registry, kind, tune.id, result={"weights_key": f"tunes/{tune.id}/w.safetensors"})
    return door.registry.tunes.get(tune.id)


def test_a_tune_is_continued_in_its_own_shape_on_its_own_base(door: Door) -> None:
    first = finished(door, base="tiny", token="zwx", training={"rank": 8, "targets": "all", "resolution": 96})
    second = door.tune(training={"base_tune_id": str(first.number), "steps": 20})
    assert second.base_id == "tiny"
    assert second.request["training"]["base_tune_id"] == first.id
    assert second.recipe["training"]["rank"] == 8 and second.recipe["training"]["targets"] == "all"
    assert second.recipe["training"]["resolution"] == 96 and second.recipe["token"] == "zwx"
    assert second.recipe["continues"] == {
        "tune_id": first.id,
        "branch": "tiny",
        "weights_key": first.result["weights_key"],
        "recipe_hash": "",
    }


def test_a_tune_with_words_of_its_own_goes_on_as_a_lora_that_keeps_them(door: Door) -> None:
    first = finished(door, base="tiny", training={"kind": "pti", "rank": 8})
    second = door.tune(training={"base_tune_id": first.id})
    assert second.recipe["training"]["kind"] == "lora" and second.recipe["training"]["rank"] == 8
    asked = door.tune(training={"base_tune_id": first.id, "kind": "pti"})
    assert asked.recipe["training"]["kind"] == "lora"
    refused(FailureCode.INVALID_REQUEST, door.tune, training={"base_tune_id": first.id, "kind": "checkpoint"})


def test_what_cannot_be_continued_is_refused(door: Door) -> None:
    def training(**options: object) -> dict:
        return {"training": {"base_tune_id": first.id, **options}}

    first = finished(door, base="tiny", training={"rank": 8})
    refused(FailureCode.INVALID_REQUEST, door.tune, **training(rank=16))
    refused(FailureCode.INVALID_REQUEST, door.tune, **training(dora=True))
    refused(FailureCode.UNKNOWN_TUNE, door.tune, training={"base_tune_id": "nobody"})
    waiting = door.tune()
    said = refused(FailureCode.CONFLICT, door.tune, training={"base_tune_id": waiting.id})
    assert "Wait until it is ready" in said or "Send its pictures" in said
    door.registry.work.cancel_tune(waiting.id)
    said = refused(FailureCode.CONFLICT, door.tune, training={"base_tune_id": waiting.id})
    assert "it is cancelled" in said and "Wait" not in said
    with pytest.raises(Failure) as error:
        submit_tune(
            Installation(door.settings, registry=door.registry, store=door.store, catalog=door.catalog),
            TuneRequest.model_validate({"name": "dog", **training()}),
            account_id="somebody-else",
        )
    assert error.value.code == FailureCode.UNKNOWN_TUNE
    door.registry.work.delete_tune(first.id)
    refused(FailureCode.UNKNOWN_TUNE, door.tune, **training())


def test_characteristics_are_kept_and_checked(door: Door) -> None:
    assert door.tune(characteristics={"hair": "brown"}).request["characteristics"] == {"hair": "brown"}
    with pytest.raises(ValueError, match="characteristics"):
        TuneRequest.model_validate({"name": "dog", "characteristics": {"a{b}": "x"}})
