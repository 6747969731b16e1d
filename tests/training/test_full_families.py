"""Full fine-tunes of every family: stock diffusers loads what is exported, and ours renders the same picture."""

from __future__ import annotations

import io

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.support.families import CASES, make_base, random_lora
from tests.training.test_full import FULL, copied, files_of, trained
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.renderer import RenderJob, render
from tunes_dagster.training import verify
from tunes_dagster.training.files import write_tensors
from tunes_dagster.training.wholes import worn

PROMPT = "a photo of ohwx woman on the beach"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Return a function that makes a case once and keeps it."""
    made = {}

    def get(name: str):
        if name not in made:
            made[name] = make_base(name, tmp_path_factory.mktemp("bases") / name)
        return made[name]

    return get


def pictures(base, store, *uses) -> list[np.ndarray]:
    """Render one prompt with each of several combinations of weights, all in one batch."""
    settings = RenderSettings(seed=3, steps=3, guidance_scale=3.0, width=64, height=64)
    jobs = [RenderJob(f"prompt_{i}", PROMPT, settings, list(use)) for i, use in enumerate(uses)]
    found = render(jobs, base, Delivery(store, "out", Silent()))
    assert all(one.failure is None for one in found), [one.failure for one in found]
    return [
        np.asarray(Image.open(io.BytesIO(store.read_bytes(one.images[0].key))), np.float64) for one in found
    ]


def stock_picture(name: str, pipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        **CASES[name].call(PROMPT, "", 3.0),
        num_inference_steps=3,
        width=64,
        height=64,
        generator=torch.Generator("cpu").manual_seed(3),
    )
    return np.asarray(made.images[0], np.float64)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-12, np.square(one - other).mean())))


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "flux2-klein"])
def test_the_exported_pipeline_renders_in_stock_diffusers_what_ours_renders(bases, store, make_job, name):
    base = bases(name)
    before = copied(base)
    (result,) = trained(
        base, store, make_job(steps=2, prior_weight=0.0, min_snr_gamma=0.0, **{**FULL, "learning_rate": 5e-3})
    )
    assert verify.verify(files_of(result), PROMPT, base, store).passed
    lora = write_tensors(store, "lora.safetensors", random_lora(base, 1), {})
    full = (result.weights_key, 1.0)
    # One batch on the base, on the tune, on the base with a LoRA, and on the tune with that LoRA.
    plain, ours, adapted, both = pictures(base, store, [], [full], [(lora, 0.5)], [full, (lora, 0.5)])
    with store.local_folder(result.pipeline_key) as folder:
        stock = diffusers.DiffusionPipeline.from_pretrained(folder)
        assert type(stock).__name__ == CASES[name].pipeline
        assert psnr(ours, stock_picture(name, stock)) > 45 > psnr(ours, plain)
        stock.load_lora_weights(load_file(store.url(lora)), adapter_name="x")
        stock.set_adapters(["x"], [0.5])
        assert psnr(both, stock_picture(name, stock)) > 45 > psnr(both, adapted)
    (alone,) = pictures(base, store, [])
    assert psnr(alone, plain) > 60
    assert all(torch.equal(value, before[key]) for key, value in base.denoiser.state_dict().items())


def test_the_strength_of_a_full_tune_lies_between_base_and_tune_and_several_add_up(bases, store):
    base = bases("sdxl")
    source = torch.Generator().manual_seed(0)
    own = copied(base)
    moved = [
        {name: value + 0.02 * torch.randn(value.shape, generator=source) for name, value in own.items()}
        for _ in range(2)
    ]
    half = {name: own[name] + 0.5 * (moved[0][name] - own[name]) for name in own}
    sums = {
        name: own[name] + 0.5 * (moved[0][name] - own[name]) - 0.3 * (moved[1][name] - own[name])
        for name in own
    }
    keys = [write_tensors(store, f"{i}.safetensors", one, {}) for i, one in enumerate([*moved, half, sums])]
    seen = pictures(
        base,
        store,
        [(keys[0], 0.5)],
        [(keys[2], 1.0)],
        [(keys[0], 0.5), (keys[1], -0.3)],
        [(keys[3], 1.0)],
        [(keys[0], 0.0)],
        [],
    )
    assert psnr(seen[0], seen[1]) > 60 and psnr(seen[2], seen[3]) > 60 and psnr(seen[4], seen[5]) > 60
    assert psnr(seen[0], seen[5]) < 45 and psnr(seen[0], seen[2]) < 45


def test_what_else_is_on_the_network_stays_on_it(bases, store):
    """An IP-Adapter puts parameters of its own into the network, before a tune's are lent to it."""
    from tunes_dagster.rendering.loras import LoraShelf, LoraUse

    base = bases("sdxl")
    use = LoraUse(write_tensors(store, "zero.safetensors", {k: v * 0 for k, v in copied(base).items()}, {}))
    shelf = LoraShelf(store, [(use,)], base.denoiser)
    base.denoiser.add_module("guest", torch.nn.Linear(2, 2))
    try:
        before = copied(base)
        with shelf.lent(base, (use,)):
            lent = copied(base)
        assert torch.equal(lent["guest.weight"], before["guest.weight"]) and not lent["conv_in.weight"].any()
        assert all(torch.equal(value, before[name]) for name, value in base.denoiser.state_dict().items())
    finally:
        del base.denoiser.guest


def test_weights_that_break_half_way_leave_the_network_as_it_was(bases):
    base = bases("sdxl")
    before, pointers = copied(base), [p.data_ptr() for p in base.denoiser.parameters()]

    class Broken(dict):
        def __getitem__(self, name):
            if name == sorted(self)[len(self) // 2]:
                raise torch.OutOfMemoryError("half way")
            return super().__getitem__(name)

    with (
        pytest.raises(torch.OutOfMemoryError),
        worn(base, [Broken({k: v + 1 for k, v in before.items()})]) as bank,
    ):
        bank.assign_all(0)
    assert all(torch.equal(value, before[name]) for name, value in base.denoiser.state_dict().items())
    assert [p.data_ptr() for p in base.denoiser.parameters()] == pointers
    with pytest.raises(ValueError, match="cannot share a forward"), worn(base, [before, before]) as bank:
        bank.assign([0, 1])


def test_weights_of_another_base_fail_only_their_prompt(bases, store):
    base = bases("sdxl")
    wrong = write_tensors(store, "wrong.safetensors", copied(bases("sd15")), {})
    settings = RenderSettings(seed=3, steps=2, guidance_scale=1.0, width=64, height=64)
    jobs = [RenderJob("good", PROMPT, settings), RenderJob("bad", PROMPT, settings, [(wrong, 1.0)])]
    good, bad = render(jobs, base, Delivery(store, "out", Silent()))
    assert good.failure is None and "do not fit the base" in bad.failure.message
