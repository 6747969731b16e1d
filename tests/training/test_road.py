"""The memory of each moment, from loading to rendering, on devices that people have."""

from __future__ import annotations

import pytest

from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.families.sizes import sizes_of
from tunes_dagster.training.planner import Machine, plan_memory
from tunes_dagster.training.road import described, serving

ENTRIES = load_catalog("production").entries
# GiB of a GPU -> how pictures are made there: O offloaded, 8 or 4 bits of the denoiser; None does not fit.
TABLE = {
    "realistic-vision": {12: "", 24: ""},
    "sdxl1": {12: "", 24: ""},
    "flux1-dev": {12: "O4", 24: "O8", 48: "", 80: ""},
    "flux2-klein-4b": {12: "O", 24: ""},
    "flux2-klein-9b": {24: "O", 48: ""},
    "flux2-dev": {24: None, 48: None, 80: "O", 140: ""},
}


def gpu(gib: float) -> Machine:
    return Machine("cuda", gib, "bfloat16", True)


@pytest.mark.parametrize(("base_id", "gib"), [(b, g) for b, row in TABLE.items() for g in row])
def test_a_base_is_loaded_for_pictures_so_that_it_fits(base_id, gib, tmp_path):
    way = serving(ENTRIES[base_id], tmp_path / "none", gpu(gib))
    said = "O" * way.offload + {"none": "", "int8": "8", "nf4": "4"}[way.quantize]
    assert (said if way.fits else None) == TABLE[base_id][gib], way
    assert not way.fits or way.needed_gib <= 0.94 * gib


def test_a_cpu_saves_nothing_by_offloading_to_itself(tmp_path):
    way = serving(ENTRIES["flux1-dev"], tmp_path / "none", Machine("cpu", 64, "float32"))
    assert not way.offload and way.quantize == "none" and not way.fits


@pytest.mark.parametrize("base_id", TABLE)
def test_every_moment_of_a_planned_tune_fits_and_the_highest_is_named(base_id, tmp_path):
    entry, folder = ENTRIES[base_id], tmp_path / "none"
    options = entry.training_options(TrainingOptions(batch_size=1))
    gib = max(TABLE[base_id])
    plan = plan_memory([options], sizes_of(entry), entry.native_size, gpu(gib))
    whole = described(plan, options, entry, folder, gpu(gib))
    moments = whole["moments_gib"]
    assert {"load", "encode", "train", "verify", "samples", "score", "render"} <= set(moments)
    assert moments[whole["worst_moment"]] == max(moments.values()) <= gib
    assert moments["score"] > moments["render"]


def test_verification_loads_no_second_base(tmp_path):
    """A second one would be 22 GiB more at the moment that comes after all the work."""
    entry = ENTRIES["flux1-dev"]
    options = entry.training_options(TrainingOptions(batch_size=1))
    plan = plan_memory([options], sizes_of(entry), 1024, gpu(48), 1)
    moments = described(plan, options, entry, tmp_path / "none", gpu(48))["moments_gib"]
    assert moments["verify"] < plan.parts_gib["base"] * 1.3
