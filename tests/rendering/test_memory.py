"""Sizes of forwards and runs follow from memory: as planned from the catalog, and as the renderer finds it."""

from __future__ import annotations

import pytest
from safetensors.torch import save

from tests.rendering.conftest import random_lora
from tests.rendering.test_renderer import Watcher, job
from tests.support.registry import add_prompt, prompt_request
from tunes_dagster.core.settings import Settings
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.families.sizes import known_sizes, sizes_of
from tunes_dagster.registry import Registry
from tunes_dagster.rendering import denoise, loras
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.memory import parts_that_fit, plan_room
from tunes_dagster.rendering.pictures import Shape
from tunes_dagster.rendering.renderer import render
from tunes_dagster.rendering.rooms import Rooms
from tunes_dagster.training.planner import Machine

SDXL = "1024x1024/30/7.5/euler"


def room(base_id: str, gib: float, shape: str = SDXL, most: int = 128):
    entry = load_catalog("production").entries[base_id]
    return plan_room(entry, sizes_of(entry), shape, Machine("cuda", gib, "bfloat16"), "as set", most)


def test_more_memory_is_more_pictures_at_once_and_longer_runs():
    assert [room("sdxl1", gib).at_once for gib in (8, 12, 16, 24, 48, 80)] == [1, 1, 3, 6, 15, 28]
    assert [room("sdxl1", gib).pictures for gib in (8, 16, 24, 80)] == [16, 48, 96, 128]
    assert room("sdxl1", 80, most=50).pictures == 50, "the operator's limit holds"


def test_larger_pictures_and_guidance_take_more_of_it():
    small, large = room("sdxl1", 24, "512x512/30/7.5/euler"), room("sdxl1", 24)
    assert small.at_once == pytest.approx(4 * large.at_once, abs=4)
    assert room("sdxl1", 24, "1024x1024/30/1/euler").at_once == pytest.approx(2 * large.at_once, abs=1)
    assert room("flux1-dev", 80).at_once == room("flux1-dev", 80, "1024x1024/30/3.5/euler").at_once, (
        "distilled"
    )
    assert room("flux1-dev", 24).at_once == 1, "the weights alone are more than that"


@pytest.mark.parametrize("base_id", sorted(known_sizes()))
def test_what_is_known_of_a_base_is_what_its_loaded_network_says(base_id):
    """The widths of the released configurations, through the families' own arithmetic."""
    from types import SimpleNamespace

    import torch

    from tunes_dagster.families.flow import FlowBase
    from tunes_dagster.families.unet import UnetBase

    entry, sizes = load_catalog("production").entries[base_id], known_sizes()[base_id]
    heads = {
        "flux1-dev": 24,
        "flux1-schnell": 24,
        "flux2-dev": 48,
        "flux2-klein-4b": 24,
        "flux2-klein-base-4b": 24,
        "flux2-klein-9b": 32,
        "flux2-klein-base-9b": 32,
    }
    if entry.family in ("sd15", "sdxl"):
        config = SimpleNamespace(block_out_channels=(320, 640, 1280))
        loaded = SimpleNamespace(
            denoiser=SimpleNamespace(config=config),
            dtype=torch.bfloat16,
            latent_shape=lambda width, height: (4, height // 8, width // 8),
        )
        said = UnetBase.forward_bytes(loaded, 1024, 768)
    else:
        config = SimpleNamespace(num_attention_heads=heads[base_id], attention_head_dim=128)
        loaded = SimpleNamespace(
            denoiser=SimpleNamespace(config=config),
            dtype=torch.bfloat16,
            max_sequence_length=512,
            tokens=lambda width, height: width // 16 * (height // 16),
        )
        said = FlowBase.forward_bytes(loaded, 1024, 768)
    assert sizes.forward_bytes(1024, 768) == pytest.approx(said)


def test_the_renderer_asks_what_is_free_before_every_group(base, monkeypatch):
    shape = Shape(width=64, height=64, steps=4, scheduler=None, guided=True)
    row = 2 * base.forward_bytes(64, 64)
    for free, fits in ((0, 1), (row / 0.6 * 3.5, 3), (1e15, 8)):
        monkeypatch.setattr(denoise, "free_memory", lambda base, free=free: int(free))
        assert denoise.rows_that_fit(base, shape) == fits


def test_adapters_that_do_not_fit_together_take_turns(base, store, monkeypatch):
    states = {name: random_lora(base, seed, rank=4) for seed, name in enumerate("abcde")}
    for name, state in states.items():
        store.write_bytes(f"tunes/{name}.safetensors", save(state))
    batch = [job(name, loras=[(f"tunes/{name}.safetensors", 1.0)]) for name in "abcde"] + [job("plain")]
    together = {
        r.prompt_id: r.images[0].sha256 for r in render(batch, base, Delivery(store, "one", Watcher()))
    }
    bytes_of_one = sum(4 * tensor.numel() for tensor in states["a"].values())
    monkeypatch.setattr(denoise, "free_memory", lambda base: int(bytes_of_one * 2.5 / 0.3))
    attached, real = [], loras.LoraShelf.attached
    monkeypatch.setattr(
        loras.LoraShelf,
        "attached",
        lambda self, net, used: attached.append(len(used)) or real(self, net, used),
    )
    watcher = Watcher()
    results = render(batch, base, Delivery(store, "two", watcher))
    assert attached == [2, 2, 1] and any("3 turns" in note for note in watcher.notes)
    assert all(result.failure is None for result in results)
    assert [r.prompt_id for r in results] == [*"abcde", "plain"] and len(together) == 6


def test_running_out_of_memory_while_attaching_halves_the_tunes(base, store, monkeypatch):
    names = "abc"
    for seed, name in enumerate(names):
        store.write_bytes(f"tunes/{name}.safetensors", save(random_lora(base, seed)))
    real, sizes = loras.LoraShelf.attached, []

    def hungry(self, network, used):
        sizes.append(len(used))
        if len(used) > 1:
            raise MemoryError
        return real(self, network, used)

    monkeypatch.setattr(loras.LoraShelf, "attached", hungry)
    watcher = Watcher()
    results = render(
        [job(name, loras=[(f"tunes/{name}.safetensors", 1.0)]) for name in names],
        base,
        Delivery(store, "out", watcher),
    )
    assert sizes == [3, 2, 1, 1, 1] and all(result.failure is None for result in results)
    assert any("going on with 2" in note for note in watcher.notes)


def test_a_picture_too_large_to_decode_is_decoded_in_tiles_from_the_start(base, store, monkeypatch):
    monkeypatch.setattr(denoise, "free_memory", lambda base: 1_000_000)
    [result] = render([job()], base, Delivery(store, "out", Watcher()))
    from tunes_dagster.rendering.png import read_recipe

    assert read_recipe(store.read_bytes(result.images[0].key))["tiled_decoding"] is True
    assert not base.parts()["vae"].use_tiling, "and the base is as it was"


def test_parts_are_as_wide_as_their_widest():
    assert parts_that_fit([1, 1, 1, 1], 2) == [[0, 1], [2, 3]]
    assert parts_that_fit([1, 3, 1], 4) == [[0], [1], [2]], "stacked, 1 beside 3 takes 6"
    assert parts_that_fit([9], 4) == [[0]] and parts_that_fit([], 4) == []


def test_the_queue_cuts_runs_by_the_memory_of_the_machine(tmp_path):
    registry = Registry(f"sqlite:///{tmp_path}/registry.db")
    catalog = load_catalog("production")
    for seed in range(40):
        add_prompt(
            registry, prompt_request(seed=seed, width=1024, height=1024, guidance_scale=7.5), base_id="sdxl1"
        )

    def cut(**settings) -> list[int]:
        rooms = Rooms(registry, Settings(home=tmp_path, **settings), catalog)
        made = registry.groups.make_batches(
            wait_seconds=0, max_pictures=lambda base_id, shape: rooms.room(base_id, shape).pictures
        )
        return [len(registry.prompts.rows(batch_id=batch.id)) for batch in made]

    def now(base_id: str = "sdxl1", **settings):
        return Rooms(registry, Settings(home=tmp_path, **settings), catalog).room(base_id, SDXL)

    least = now(device="cuda")
    assert (least.gib, least.source) == (14, "the least that its base needs")
    assert now(device="cpu").source == "this machine" and now("upscale-4x").at_once == 1
    assert cut(render_memory_gb=12) == [16, 16, 8], "one picture at once"
    for batch in registry.groups.batches():
        work = registry.work.claim("render", batch.id, "run")
        registry.work.finish(
            work.id, "run", result={"machine": {"kind": "cuda", "gib": 24, "dtype": "bfloat16"}}
        )
    assert (now().at_once, now().pictures, now().source) == (6, 96, "as the last run had")
