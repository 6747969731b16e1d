"""What was configured once counts everywhere: in assets, sensors, and the addresses in callbacks."""

from __future__ import annotations

import dagster as dg
import pytest

from tests.support.registry import add_prompt
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.recipe import PromptRequest
from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.gateway.app import create_app
from tunes_dagster.gateway.options import GatewayOptions
from tunes_dagster.gateway.service import Service, service_around
from tunes_dagster.pipeline import sensors
from tunes_dagster.pipeline.definitions import build_defs
from tunes_dagster.registry.engine import make_engine
from tunes_dagster.resources import NotifierResource, RegistryResource, StoreResource
from tunes_dagster.service.installation import Installation


@pytest.fixture
def definitions(paper_house, tmp_path) -> dg.Definitions:
    """A code location that another one assembles: nothing of it is in the environment."""
    return build_defs(
        resource_overrides={
            "registry": RegistryResource(url=f"sqlite:///{tmp_path}/elsewhere.db"),
            "store": StoreResource(url=str(tmp_path / "files")),
        },
        campaigns=[],
        settings={"heartbeat_seconds": 7.0, "allow_hosts": ["inside.example"], "max_attempts": 9},
    )


def tick(sensor, house, **resources):
    with dg.build_sensor_context(instance=house.instance, resources=resources) as context:
        return sensor(context)


def test_a_store_and_settings_of_the_definitions_count_for_all(definitions, paper_house, tmp_path):
    whole = definitions.resources["installation"].open(works=False)
    assert whole is definitions.resources["installation"].open(works=False)
    assert whole.settings.heartbeat_seconds == 7.0 and whole.registry.retries.max_attempts == 9
    assert get_settings().heartbeat_seconds != 7.0  # the environment's own is as it was
    assert whole.store.url("x") == str(tmp_path / "files" / "x")
    assert service_around(whole).store is whole.store and service_around(whole).registry is whole.registry

    request = PromptRequest.model_validate(
        {"text": "a mug", "base": "sdxl", "callback_url": "https://a.example/x"}
    )
    prompt = add_prompt(whole.registry, request, base_id="tiny-sdxl", base="sdxl")
    assert whole.registry.prompts.get(prompt.id).text == "a mug"
    assert paper_house.registry.prompts.rows() == []
    asked = tick(sensors.queued_prompts, paper_house, installation=definitions.resources["installation"])
    assert len(asked.run_requests) == 1, "the sensor looks where the definitions say"


def test_a_tick_works_with_what_the_definitions_say_and_a_second_one_opens_nothing(
    definitions, paper_house, tmp_path, monkeypatch
):
    loaded = definitions.get_repository_def()
    monkeypatch.setenv("TUNES_DAGSTER_STORAGE", str(tmp_path / "dagster"))
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:

        def look(sensor):
            with dg.build_sensor_context(instance=instance, repository_def=loaded) as context:
                # As in the server of the definitions, which is told where the instance is and opens it when asked.
                context._instance, context._instance_ref = None, instance.get_ref()
                return sensor(context)

        whole = definitions.resources["installation"].open(works=False)
        request = PromptRequest.model_validate({"text": "a mug", "base": "sdxl"})
        for _ in range(2):
            prompt = add_prompt(whole.registry, request, base_id="tiny-sdxl", base="sdxl")
            (run,) = look(sensors.queued_prompts).run_requests
            assert whole.registry.prompts.get(prompt.id).batch_id == run.partition_key
            assert look(sensors.due_callbacks).skip_message.startswith("0 delivered")
            monkeypatch.setattr(dg, "build_resources", None)
            monkeypatch.setattr(dg.DagsterInstance, "from_ref", None)


def test_assets_and_callbacks_use_the_store_of_the_definitions(definitions, paper_house, tmp_path):
    resource = definitions.resources["installation"]
    whole = resource.open(works=False)
    folder = tmp_path / "pictures"
    from tests.support.houses import draw_pictures

    draw_pictures(folder, 4)
    config = {"name": "mug", "folder": str(folder), "dataset": {"captioner": False}}
    tune_id = "tune_elsewhere"
    paper_house.instance.add_dynamic_partitions("tunes", [tune_id])
    ran = definitions.resolve_job_def("prepare_tune").execute_in_process(
        instance=paper_house.instance,
        partition_key=tune_id,
        asset_selection=[dg.AssetKey("source_images")],
        run_config={"ops": {"source_images": {"config": config}}},
    )
    assert ran.success
    assert whole.registry.tunes.get(tune_id).title == "mug"
    kept = list(whole.store.list(f"tunes/{tune_id}"))
    assert f"tunes/{tune_id}/source/manifest.json" in kept
    assert not list(paper_house.store.list("tunes")) and not paper_house.registry.tunes.rows()
    told = tick(sensors.due_callbacks, paper_house, installation=resource, notifier=NotifierResource())
    assert told.skip_message.startswith("0 delivered")


def test_an_installation_is_opened_once_and_closed_once(tmp_path, monkeypatch):
    from tunes_dagster import registry as registries

    opened = []
    real = registries.open_registry
    monkeypatch.setattr(registries, "open_registry", lambda *a, **k: opened.append(1) or real(*a, **k))
    with Installation(Settings(home=tmp_path)) as whole:
        assert not opened and whole.registry is whole.registry and len(opened) == 1
        service = Service(whole, GatewayOptions())
        create_app(whole.settings, service.options, service)
        assert service.registry is whole.registry and len(opened) == 1
    whole.close()
    mine = real(Settings(home=tmp_path))
    with Installation(Settings(home=tmp_path), registry=mine) as lent:
        assert lent.registry is mine
    assert mine.tunes.rows() == []  # who lends a registry closes it
    mine.close()


def test_a_home_that_no_database_address_can_hold_is_refused_before_anything_is_written(tmp_path):
    home = tmp_path / "what?" / "home"
    with pytest.raises(Failure, match="question mark"):
        Settings(home=home).resolved_registry_url  # noqa: B018 - asking is what makes the folder
    with pytest.raises(Failure, match="question mark"):
        make_engine(f"sqlite:///{home}/registry.db")
    assert list(tmp_path.iterdir()) == []
    for name in ("a#b", "100%25", "a b", "a::b", "a[1]*"):
        engine = make_engine(Settings(home=tmp_path / name).resolved_registry_url)
        engine.connect().close()
        engine.dispose()
        assert (tmp_path / name / "registry.db").is_file()
