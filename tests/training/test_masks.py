"""Masks of the loss, and pictures that are mirrored and toned."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from tests.training.conftest import add_picture
from tunes_dagster.core.store import Store
from tunes_dagster.training import loop, run
from tunes_dagster.training.cache import load_picture, picture_key
from tunes_dagster.training.jobs import TrainExample
from tunes_dagster.training.masks import masks_by_bucket, picture_mask


def left_half(store: Store) -> str:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    data = io.BytesIO()
    mask.save(data, "PNG")
    return store.write_blob(data.getvalue(), ".png")


def test_a_mask_weighs_positions_with_a_floor_and_keeps_the_mean(store):
    items = [
        TrainExample(key=add_picture(store, 1), caption="", bucket=(64, 64), mask_key=left_half(store)),
        TrainExample(key=add_picture(store, 2), caption="", bucket=(64, 64)),
        TrainExample(key=add_picture(store, 3), caption="", bucket=(64, 64), mask_box=(16, 16, 32, 32)),
    ]
    masks = masks_by_bucket(items, {(64, 64): torch.zeros(3, 4, 8, 8)}, 0.2, store)
    first, plain, face = masks[64, 64]
    assert first.shape == (1, 8, 8)
    assert torch.allclose(masks[64, 64].mean((1, 2, 3)), torch.ones(3))
    torch.testing.assert_close(first[0, :, 0] / first[0, :, -1], torch.full((8,), 5.0))
    assert torch.equal(plain, torch.ones(1, 8, 8))
    assert face[0, 4, 4] > 3 * face[0, 0, 0]
    assert masks_by_bucket(items[1:2], {(64, 64): torch.zeros(1, 4, 8, 8)}, 0.2, store) is None


def test_a_mask_follows_the_crop_and_the_mirror(store):
    item = TrainExample(
        key=add_picture(store, 1),
        caption="",
        bucket=(64, 64),
        crop=(32, 0, 64, 32),
        mask_key=left_half(store),
    )
    assert np.asarray(picture_mask(item, (4, 4), store)).max() == 0
    half = replace(item, crop=None)
    kept = np.asarray(picture_mask(half, (4, 4), store))
    mirrored = np.asarray(picture_mask(replace(half, mirrored=True), (4, 4), store))
    assert (kept[:, :2] == 255).all() and (kept[:, 2:] == 0).all()
    assert (mirrored == kept[:, ::-1]).all()


def test_a_mask_of_another_size_is_fitted_to_its_picture(store):
    half = Image.new("L", (32, 32), 0)
    half.paste(255, (0, 0, 16, 32))
    data = io.BytesIO()
    half.save(data, "PNG")
    small = store.write_blob(data.getvalue(), ".png")
    for crop in (None, (16, 0, 48, 32), (32, 0, 64, 32)):
        item = TrainExample(
            key=add_picture(store, 1), caption="", bucket=(64, 64), crop=crop, mask_key=left_half(store)
        )
        fitted = picture_mask(replace(item, mask_key=small), (4, 4), store)
        assert np.array_equal(np.asarray(fitted), np.asarray(picture_mask(item, (4, 4), store)))


def test_the_loss_of_the_loop_is_the_masked_one(base, store, make_job):
    """One step: the gradient is that of the weighted squared error, written out."""
    job = make_job(
        "one", pictures=1, steps=1, batch_size=1, prior_weight=0, caption_dropout=0, min_snr_gamma=0
    )
    job.items = [replace(job.items[0], mask_key=left_half(store))]
    prepared = run.prepare(job, base, store)
    assert prepared.masks is not None
    losses = {}
    for name, masks in (("masked", prepared.masks), ("plain", None)):
        trainer = loop.Trainer(loop.method_of(job.options), base, store, lambda job, outcome: None)
        mine = replace(prepared, masks=masks, job=replace(job, out_prefix=f"tunes/{name}/lora/1"))
        seen = []
        trainer._done = lambda _, outcome, seen=seen: seen.append(outcome)
        trainer.run([mine], 1)
        losses[name] = seen[0].loss_curve[0][1]
    alone = run.TuneRun(prepared, base)
    alone.speak(run.TextTable(base))
    rows = alone.rows()
    with torch.no_grad():
        noisy = base.add_noise(rows.clean, rows.noise, rows.timesteps)
        text = {name: value[None] for name, value in prepared.texts[job.items[0].caption].items()}
        said = base.predict(noisy, rows.timesteps, base.with_size(text, 64, 64))
        errors = (said - base.target(rows.clean, rows.noise, rows.timesteps)).square()
    weights = prepared.masks[64, 64]
    assert losses["plain"] == pytest.approx(float(errors.mean()), rel=1e-4)
    assert losses["masked"] == pytest.approx(float((errors * weights).mean()), rel=1e-4)
    assert losses["masked"] != pytest.approx(losses["plain"], rel=1e-3)


def test_mirrored_and_toned_pictures_are_cached_apart(store):
    item = TrainExample(key=add_picture(store, 1), caption="", bucket=(64, 64))
    mirrored, toned = replace(item, mirrored=True), replace(item, tone=(1.1, 0.9))
    plain = np.asarray(load_picture(store, item)).astype(int)
    assert (np.asarray(load_picture(store, mirrored)) == plain[:, ::-1]).all()
    assert np.asarray(load_picture(store, toned)).mean() > plain.mean() + 3
    assert len({picture_key(store, one, "f") for one in (item, mirrored, toned)}) == 3


def test_a_one_picture_tune_trains_and_says_so(base, store, make_job):
    job = make_job("one", pictures=1)
    first = job.items[0]
    job.items = [first, replace(first, mirrored=True), replace(first, crop=(8, 8, 56, 56), tone=(1.08, 0.95))]
    job.recipe = {"one_picture": True}
    (result,) = loop.train([job], base, store).values()
    assert any(
        float(value.abs().max()) > 0 for name, value in load(store.read_bytes(result.weights_key)).items()
    )
    assert "one picture" in store.read_text(result.card_key)
    assert result.recipe["pictures"][1]["mirrored"] is True
