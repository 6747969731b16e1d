"""Pictures of a base whose networks take turns on the device are those of one that lies there whole."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from safetensors.torch import save

from tests.rendering.conftest import entry, random_lora
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.core.store import Store
from tunes_dagster.families.base import load_family
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.families.loading import Placement, placed
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.renderer import RenderJob, render
from tunes_dagster.sessions.bases import fitting
from tunes_dagster.sessions.hardware import Device


def test_offloading_changes_no_picture(base_folder, base, tmp_path):
    store = Store(tmp_path / "store")
    store.write_bytes("tunes/fern.safetensors", save(random_lora(base, 1)))
    settings = RenderSettings(seed=5, steps=2, guidance_scale=4.0, width=64, height=64)
    jobs = [
        RenderJob("tuned", "a photo of ohwx man", settings, [("tunes/fern.safetensors", 1.0)]),
        RenderJob("plain", "a red mug", settings),
    ]
    with placed(Placement(offload=True)):
        turns = load_family(entry(base_folder), base_folder)
    assert turns.pipeline()._all_hooks
    made = [
        render(jobs, one, Delivery(store, name, Silent()))
        for name, one in (("whole", base), ("turns", turns))
    ]
    for whole, apart in zip(*made, strict=True):
        assert whole.failure is None and apart.failure is None, apart.failure
        one, other = (
            np.asarray(Image.open(io.BytesIO(store.read_bytes(each.images[0].key))), np.int16)
            for each in (whole, apart)
        )
        # Weights that lie elsewhere in memory may be added up in another order: one 8-bit value rounds the other way.
        assert np.abs(one - other).max() <= 1 and (one != other).mean() < 0.01


def test_a_device_that_does_not_hold_a_base_whole_gets_it_in_turns(tmp_path):
    flux = load_catalog("production").entries["flux1-dev"]
    large, small = (Device("cuda:0", "bfloat16", gib, "GPU") for gib in (80.0, 28.0))
    assert fitting(flux, tmp_path / "none", large) == Placement()
    assert fitting(flux, tmp_path / "none", small) == Placement(offload=True)
    assert fitting(flux, tmp_path / "none", Device("cpu", "float32", 16.0, "CPU")) == Placement()
