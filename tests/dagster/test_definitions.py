"""The code location as a whole: it loads fast and light, and its graph does not change unnoticed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import dagster as dg
import pytest

from tunes_dagster.assets.names import MAX_RUNTIME_TAG, PROCESS_TAG
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.texts import text_of
from tunes_dagster.core.work import MAKING, ON_DEVICE, WorkKind
from tunes_dagster.definitions import build_defs
from tunes_dagster.registry import Campaign
from tunes_dagster.resources import default_resources

VARIABLE = re.compile(r"TUNES_(\w+)")
# Without the campaigns that the installation on this machine may have.
defs = build_defs(campaigns=[])

LOAD = """
import json, sys, time
began = time.process_time()
import dagster
own = time.process_time()
from tunes_dagster.definitions import defs
dagster.Definitions.validate_loadable(defs())
heavy = [m for m in ("torch", "diffusers", "transformers", "peft", "cv2") if m in sys.modules]
print(json.dumps({"dagster": own - began, "ours": time.process_time() - own, "heavy": heavy}))
"""


def test_loads_in_a_fresh_interpreter_fast_and_without_torch():
    as_it_comes = {**os.environ, "TUNES_SESSIONS": "auto"}
    loading = [sys.executable, "-c", LOAD]
    out = subprocess.run(loading, capture_output=True, text=True, check=True, env=as_it_comes).stdout
    seen = json.loads(out.splitlines()[-1])
    assert seen["heavy"] == []
    # CPU time, of the same process: a busy machine slows both alike.
    assert seen["ours"] < 3 * seen["dagster"], seen


def test_nothing_is_opened_at_import(tmp_path):
    code = "import tunes_dagster.definitions"
    environment = {**os.environ, "TUNES_HOME": str(tmp_path / "home"), "TUNES_SESSIONS": "auto"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not (tmp_path / "home").exists()


def test_the_daemon_and_the_web_server_can_read_it():
    from dagster._core.remote_representation.external_data import RepositorySnap
    from dagster_shared.serdes import serialize_value

    assert "source_images" in serialize_value(RepositorySnap.from_def(defs.get_repository_def()))


def made(definitions: dg.Definitions) -> list[dg.AssetsDefinition]:
    """Return the assets that runs make; beside them stand the drop folder and the installation itself."""
    return [one for one in definitions.assets or [] if isinstance(one, dg.AssetsDefinition)]


def test_what_no_run_makes_is_there_with_its_check():
    specs = {one.key.to_user_string() for one in defs.assets or [] if isinstance(one, dg.AssetSpec)}
    checks = {
        (spec.asset_key.to_user_string(), spec.name) for one in defs.asset_checks for spec in one.check_specs
    }
    assert specs == {"drop_folder", "installation"}
    assert checks == {("drop_folder", "everything_is_usable"), ("installation", "nothing_is_stranded")}


def spec_of(asset: dg.AssetsDefinition) -> dict:
    (spec,) = asset.specs
    return {
        "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
        "mapping": sorted(
            {type(asset.get_partition_mapping(d.asset_key)).__name__ for d in spec.deps}
            - {"NoneType", "IdentityPartitionMapping"}
        ),
        "partitions": getattr(spec.partitions_def, "name", None),
        "group": spec.group_name,
        "kinds": sorted(spec.kinds),
        "owners": list(spec.owners),
        "pool": next(iter(asset.op.pools), None) if asset.op.pools else None,
        "checks": sorted(f"{c.name}{'!' if c.blocking else ''}" for c in asset.check_specs),
    }


GRAPH = {
    "source_images": {
        "deps": [],
        "mapping": [],
        "partitions": "tunes",
        "group": "dataset",
        "kinds": ["opencv", "pillow", "python"],
        "owners": ["team:data"],
        "pool": None,
        "checks": ["enough_pictures!"],
    },
    "training_set": {
        "deps": ["source_images"],
        "mapping": [],
        "partitions": "tunes",
        "group": "dataset",
        "kinds": ["pillow", "python"],
        "owners": ["team:data"],
        "pool": None,
        "checks": ["no_leakage"],
    },
    "captions": {
        "deps": ["training_set"],
        "mapping": [],
        "partitions": "tunes",
        "group": "dataset",
        "kinds": ["csv", "python", "transformers"],
        "owners": ["team:data"],
        "pool": None,
        "checks": ["token_and_class"],
    },
    "lora": {
        "deps": ["captions", "training_set"],
        "mapping": [],
        "partitions": "tunes",
        "group": "tune",
        "kinds": ["diffusers", "pytorch", "safetensors"],
        "owners": ["team:training"],
        "pool": "gpu",
        "checks": ["differs_from_base", "finite_weights", "loads_into_fresh_pipeline"],
    },
    "report_card": {
        "deps": ["lora", "training_set"],
        "mapping": [],
        "partitions": "tunes",
        "group": "tune",
        "kinds": ["diffusers", "html", "pytorch"],
        "owners": ["team:training"],
        "pool": "report",
        "checks": ["likeness_above_base"],
    },
    "renders": {
        "deps": ["lora"],
        "mapping": ["SpecificPartitionsPartitionMapping"],
        "partitions": "render_batches",
        "group": "renders",
        "kinds": ["diffusers", "png", "pytorch"],
        "owners": ["team:rendering"],
        "pool": "gpu",
        "checks": ["every_picture_is_there", "finite", "not_blank"],
    },
}


CAMPAIGN = {
    "campaign_plan/looks": {
        "deps": ["lora"],
        "mapping": ["SpecificPartitionsPartitionMapping"],
        "partitions": None,
        "group": "campaigns",
        "kinds": ["pandas", "python"],
        "owners": ["team:rendering"],
        "pool": None,
        "checks": ["cost_within_cap!", "every_tune_is_usable", "file_is_valid"],
    },
    "campaign_report/looks": {
        "deps": ["campaign_plan/looks", "renders"],
        "mapping": ["SpecificPartitionsPartitionMapping"],
        "partitions": None,
        "group": "campaigns",
        "kinds": ["csv", "html", "pillow"],
        "owners": ["team:rendering"],
        "pool": None,
        "checks": ["nothing_missing"],
    },
}


def test_the_asset_graph_is_as_designed():
    found = {asset.key.to_user_string(): spec_of(asset) for asset in made(defs)}
    assert found == GRAPH


def test_a_campaign_adds_its_plan_and_its_report():
    row = Campaign(
        id="campaign_1",
        name="looks",
        cron="0 7 * * 1",
        timezone="UTC",
        starts="2026-03-02",
        state="good",
        account_id="local",
        definition={},
        problems={},
    )
    more = build_defs(campaigns=[row])
    found = {asset.key.to_user_string(): spec_of(asset) for asset in made(more)}
    assert found == {**GRAPH, **CAMPAIGN}
    assert {job.name for job in more.jobs} >= {"plan_looks", "report_looks"}
    assert all(check.description for asset in made(more) for check in asset.check_specs)


def test_what_a_kind_of_work_says_of_its_runs_is_there():
    def steps(job: str) -> set[str]:
        return {node.name for node in defs.resolve_job_def(job).nodes}

    for kind in WorkKind:
        assert (kind.op if kind in MAKING else kind.asset) in steps(kind.job)
        assert not kind.told_by or steps(kind.told_by) == {kind.asset}
    assert ON_DEVICE == (WorkKind.TRAIN, WorkKind.FINISH, WorkKind.RENDER)


def test_everything_has_a_description():
    for asset in made(defs):
        (spec,) = asset.specs
        assert spec.description, spec.key
        assert all(check.description for check in asset.check_specs)
    assert all(job.description for job in defs.jobs)
    assert all(sensor.description for sensor in defs.sensors)
    assert all(schedule.description for schedule in defs.schedules)


def test_sensors_and_schedules_run_by_default():
    assert {sensor.name for sensor in defs.sensors} == {
        "new_datasets",
        "queued_tunes",
        "prepared_tunes",
        "trained_tunes",
        "queued_prompts",
        "due_callbacks",
        "open_deletions",
        "stuck_work",
        "finished_campaigns",
    }
    assert all(sensor.default_status == dg.DefaultSensorStatus.RUNNING for sensor in defs.sensors)
    assert all(schedule.default_status == dg.DefaultScheduleStatus.RUNNING for schedule in defs.schedules)


def test_with_sessions_what_needs_a_device_is_taken_by_them_and_not_by_sensors():
    with_sessions = build_defs(campaigns=[], settings={"sessions": "on", "longest_render_seconds": 60.0})
    names = {sensor.name for sensor in with_sessions.sensors}
    assert {"device_runs", "told_runs", "queued_tunes", "stuck_work", "open_deletions"} < names
    assert not names & {"prepared_tunes", "trained_tunes", "queued_prompts"}
    assert not any(asset.op.pool for asset in made(with_sessions))
    tags = with_sessions.resolve_job_def("render_batch").tags
    assert PROCESS_TAG.items().isdisjoint(tags.items()) and tags[MAX_RUNTIME_TAG] == "660"
    assert PROCESS_TAG.items() <= defs.resolve_job_def("render_batch").tags.items()


def test_resources_can_be_overridden():
    from tunes_dagster.resources import StoreResource

    other = StoreResource(url="/tmp/elsewhere")
    assert build_defs(resource_overrides={"store": other}).resources["store"] is other


def test_resources_say_of_a_setting_what_the_setting_says():
    fields = [one for made in default_resources().values() for one in type(made).model_fields.values()]
    said = [(name.lower(), one.description) for one in fields for name in VARIABLE.findall(one.description)]
    known = [(name, text) for name, text in said if name in Settings.model_fields]
    assert len(known) > 7 and all(text_of(Settings, name) in text for name, text in known)


def test_the_launchpad_names_every_training_option():
    from tunes_dagster.assets.tunes import LORA_CONFIG
    from tunes_dagster.core.recipe import TrainingOptions

    assert set(LORA_CONFIG.model_fields) == set(TrainingOptions.model_fields)
    assert all(field.description for field in LORA_CONFIG.model_fields.values())


@pytest.mark.parametrize(
    ("asset", "config", "named"),
    [
        ("lora", {"lr_schedule": "kosine"}, "lr_schedule"),
        ("lora", {"kind": "foo"}, "kind"),
        ("source_images", {"nam": "woman"}, "nam"),
        ("source_images", {"dataset": {"min_side": "large"}}, "min_side"),
        ("lora", {"rnak": 8}, "rnak"),
        ("lora", {"rank": "eight"}, "rank"),
    ],
)
def test_the_launchpad_refuses_a_wrong_name_or_kind_of_value_before_anything_starts(asset, config, named):
    """Ranges are looked at by the first step, before anything is fetched: tests/dagster/test_parts.py."""
    job = defs.resolve_implicit_global_asset_job_def()
    with pytest.raises(dg.DagsterInvalidConfigError, match=named):
        dg.validate_run_config(job, {"ops": {asset: {"config": config}}})


def test_every_job_has_a_longest_time():
    campaign = Campaign(
        id="c",
        name="spring",
        cron="0 9 * * 1",
        timezone="UTC",
        starts="2026-01-05",
        account_id="local",
        definition={},
        problems={},
        state="good",
    )
    jobs = build_defs(campaigns=[campaign]).get_repository_def().get_all_jobs()
    named = {job.name: job.tags.get("dagster/max_runtime") for job in jobs if not job.name.startswith("__")}
    assert {
        "prepare_tune",
        "train_cohort",
        "embed_faces",
        "finish_tune",
        "render_batch",
        "housekeeping",
        "train_tune",
        "device_session",
    } < set(named)
    assert {"plan_spring", "report_spring"} < set(named)
    assert all(named.values()), named
    assert named["prepare_tune"] == "4200" and named["train_cohort"] == "173400"


def test_every_asset_says_which_version_of_its_code_made_it():
    assert {
        spec.key.to_user_string(): spec.code_version for asset in made(defs) for spec in asset.specs
    } == dict.fromkeys(GRAPH, "1")


def test_the_same_content_has_the_same_version_whoever_made_it():
    from tunes_dagster.assets.dataset_pages import version_of
    from tunes_dagster.intake.manifest import Manifest

    one, same = (version_of(Manifest(tune_id=who, class_name="dog"), "tune_id") for who in ("ann", "ben"))
    other = version_of(Manifest(tune_id="ann", class_name="cat"), "tune_id")
    assert one == same != other
