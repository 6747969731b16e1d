"""Other optimizers, scales and starts than the default's: each trains, resumes exactly and keeps its promise."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from tests.training.conftest import Recorder
from tunes_dagster.training import loop, verify
from tunes_dagster.training.adapters import attach, split_magnitudes, split_state
from tunes_dagster.training.jobs import TrainingResult
from tunes_dagster.training.layouts import Files


def trained(base, store, *jobs) -> list[TrainingResult]:
    outcomes = loop.train(jobs, base, store)
    for outcome in outcomes.values():
        assert isinstance(outcome, TrainingResult), outcome
    return [outcomes[job.tune_id] for job in jobs]


def weights(store, result) -> dict[str, torch.Tensor]:
    return load(store.read_bytes(result.weights_key))


def products(state) -> dict[str, torch.Tensor]:
    return {name: b.flatten(1) @ a.flatten(1) for name, (a, b) in split_state(state).items()}


def test_prodigy_finds_a_step_size_and_resumes_exactly(base, store, make_job):
    options = {
        "optimizer": "prodigy",
        "learning_rate": 1.0,
        "warmup_steps": 0,
        "steps": 8,
        "checkpoint_every": 4,
    }
    (whole,) = trained(base, store, make_job("one", **options))
    job = make_job("one", report=Recorder(cancel_at=4), **options)
    job.out_prefix = "tunes/again/lora/1"
    loop.train([job], base, store)
    again = make_job("one", **options)
    again.out_prefix, again.resume_from = "tunes/again/lora/2", "tunes/again/lora"
    (resumed,) = trained(base, store, again)
    assert any("Resumed at step 4" in note for note in again.report.notes)
    first, second = weights(store, whole), weights(store, resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert max(float(b.abs().max()) for name, b in first.items() if "lora_B" in name) > 1e-6


def test_prodigy_beside_adamw_changes_neither(base64, store, make_job):
    def pair():
        return make_job("one", optimizer="prodigy", learning_rate=1.0), make_job("two")

    together = trained(base64, store, *pair())
    first = [weights(store, one) for one in together]
    second = [weights(store, trained(base64, store, job)[0]) for job in pair()]
    for mine, alone in zip(first, second, strict=True):
        for name in mine:
            torch.testing.assert_close(mine[name], alone[name], rtol=1e-5, atol=1e-9)


def test_eight_bit_moments_come_back_as_they_were_and_train_alone(base, make_job):
    """bitsandbytes' state, without it: bytes in the shape of the row, and a scale per block of them."""
    from tunes_dagster.core.recipe import TrainingOptions
    from tunes_dagster.training.methods import method_of
    from tunes_dagster.training.weights import StackedWeights

    class EightBit(torch.optim.SGD):
        """Keeps what AdamW8bit keeps."""

    for options in (
        TrainingOptions(optimizer="adamw8bit"),
        TrainingOptions(optimizer="adamw8bit", kind="pti"),
    ):
        assert not method_of(options).stacks
    options = make_job("one").options

    def fresh():
        weights = StackedWeights([options], base, torch.float32)
        weights.enter(0, options)
        weights.optimizer.others[0] = EightBit([weights.optimizer.rows[0]], lr=0.0)
        return weights, weights.optimizer.rows[0], weights.optimizer.others[0]

    weights, row, optimizer = fresh()
    blocks = torch.rand(-(-row.numel() // 256))
    optimizer.state[row] = {
        "step": 7,
        "state1": torch.randint(0, 255, row.shape, dtype=torch.uint8),
        "absmax1": blocks,
    }
    kept, before = weights.state(0), dict(optimizer.state[row])
    weights.close()
    weights, row, optimizer = fresh()
    weights.optimizer.load_state(0, kept, 7)
    after = optimizer.state[row]
    weights.close()
    assert after["step"] == 7
    assert torch.equal(after["state1"], before["state1"]) and torch.equal(after["absmax1"], before["absmax1"])


def test_rslora_is_folded_into_the_file(base, store, make_job):
    def after_a_step(**options):
        job = make_job("one", steps=1, rank=16, alpha=4, warmup_steps=0, **options)
        return products(weights(store, trained(base, store, job)[0]))

    # One step of Adam from B = 0 moves B by the learning rate whatever the scale, so the products differ by it.
    first, second = after_a_step(), after_a_step(rslora=True)
    for name in first:
        assert float(second[name].norm()) == pytest.approx(4 * float(first[name].norm()), rel=0.1)


def test_a_continued_tune_starts_where_the_other_ended(base, store, make_job):
    (first,) = trained(base, store, make_job("one", alpha=2))
    job = make_job("two", steps=1, alpha=2, learning_rate=1e-12)
    job.recipe = {"continues": {"weights_key": first.weights_key}}
    (second,) = trained(base, store, job)
    before, after = weights(store, first), weights(store, second)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-7)
    assert second.recipe["continues"]["weights_key"] == first.weights_key
    fresh = make_job("two", steps=1, alpha=2, learning_rate=1e-12)
    assert fresh.data_hash("x") != job.data_hash("x")


def test_a_continued_tune_is_read_with_the_settings_it_was_exported_with(base, store, make_job):
    (first,) = trained(base, store, make_job("one", alpha=2, export_scale=0.5))
    job = make_job("two", steps=1, alpha=4, learning_rate=1e-12)
    job.recipe = {"continues": {"weights_key": first.weights_key}}
    (second,) = trained(base, store, job)
    before, after = products(weights(store, first)), products(weights(store, second))
    for name in before:
        torch.testing.assert_close(after[name], before[name] / 0.5, rtol=1e-4, atol=1e-7)


def test_weights_that_predict_something_else_are_no_start(base, store, make_job, monkeypatch):
    (first,) = trained(base, store, make_job("one", steps=1))
    job = make_job("two", steps=1)
    job.recipe = {"continues": {"weights_key": first.weights_key}}
    monkeypatch.setattr(base, "prediction", "v")
    (outcome,) = loop.train([job], base, store).values()
    assert "were trained to predict 'epsilon'" in str(outcome)


def test_a_continued_tune_of_another_shape_is_refused(base, store, make_job):
    (first,) = trained(base, store, make_job("one", targets="attention", rank=4))
    job = make_job("two", targets="all", rank=4)
    job.recipe = {"continues": {"weights_key": first.weights_key}}
    (outcome,) = loop.train([job], base, store).values()
    assert "rank 4 on" in str(outcome)


def test_a_dora_trains_resumes_and_renders_alike_in_stock_diffusers(base, store, make_job):
    options = {"dora": True, "steps": 6, "checkpoint_every": 3, "alpha": 2}
    (whole,) = trained(base, store, make_job("one", **options))
    state = weights(store, whole)
    magnitudes = split_magnitudes(state)
    assert len(magnitudes) == len(split_state(state)) > 4
    before = {
        name: torch.linalg.vector_norm(base.denoiser.get_submodule(name).weight.flatten(1), dim=1)
        for name in magnitudes
    }
    assert all((magnitudes[name].flatten() - before[name]).abs().max() > 1e-4 for name in magnitudes)
    seen = verify.verify(Files(whole.weights_key, whole.kohya_key), "a photo of ohwx woman", base, store)
    assert seen.passed and seen.kohya_difference is not None, seen
    assert seen.kohya_difference < 1e-3 < seen.base_difference
    job = make_job("one", report=Recorder(cancel_at=3), **options)
    job.out_prefix = "tunes/again/lora/1"
    loop.train([job], base, store)
    again = make_job("one", **options)
    again.out_prefix, again.resume_from = "tunes/again/lora/2", "tunes/again/lora"
    (resumed,) = trained(base, store, again)
    assert all(torch.equal(value, state[name]) for name, value in weights(store, resumed).items())


def test_other_programs_make_of_a_dora_what_was_trained(base, store, make_job):
    """As ComfyUI v0.3.77 and Forge dfdcbab merge a layer: rows times scale / norm of the untouched weight's row."""
    (result,) = trained(base, store, make_job("one", dora=True, steps=6, learning_rate=5e-2, alpha=2))
    state, kohya = weights(store, result), load(store.read_bytes(result.kohya_key))
    magnitudes = split_magnitudes(state)
    apart = 0.0
    for name, (a, b) in split_state(state).items():
        weight = base.denoiser.get_submodule(name).weight.detach()
        adapted = weight + (b.flatten(1) @ a.flatten(1)).view_as(weight)
        rows = (-1, *(1,) * (weight.ndim - 1))
        wanted = adapted * (magnitudes[name].flatten() / adapted.flatten(1).norm(dim=1)).view(rows)
        stem = f"lora_unet_{name.replace('.', '_')}"
        up, down, alpha = (
            kohya[f"{stem}.{part}"] for part in ("lora_up.weight", "lora_down.weight", "alpha")
        )
        merged = weight + (up.flatten(1) @ down.flatten(1)).view_as(weight) * (float(alpha) / len(down))
        scale = kohya[f"{stem}.dora_scale"]
        assert scale.ndim == weight.ndim and len(scale) == len(weight)  # by which readers tell the axis
        merged = merged * (scale / weight.flatten(1).norm(dim=1).view(rows))
        torch.testing.assert_close(merged, wanted, rtol=1e-5, atol=1e-6)
        apart = max(apart, float((scale.flatten() / magnitudes[name].flatten() - 1).abs().max()))
    assert apart > 1e-3  # the magnitudes themselves would have been wrong
    assert 4 * len(magnitudes) == len(kohya)


def test_scales_that_are_lost_or_no_numbers_are_noticed(base, store, make_job):
    (result,) = trained(base, store, make_job("one", dora=True, steps=6, learning_rate=5e-2))
    kohya = load(store.read_bytes(result.kohya_key))
    scale = next(key for key in kohya if key.endswith(".dora_scale"))
    for broken in (
        {key: value for key, value in kohya.items() if not key.endswith(".dora_scale")},
        {**kohya, scale: kohya[scale] * float("nan")},
    ):
        store.write_bytes("broken.safetensors", save(broken))
        files = Files(result.weights_key, "broken.safetensors")
        assert not verify.verify(files, "a photo of ohwx woman", base, store).passed


def test_a_dora_learns_what_peft_learns(base64, store, make_job):
    """One step: gradients of A, B and the magnitudes are those of peft's own DoRA layers."""
    import copy

    from peft import LoraConfig

    bank = attach(base64.denoiser, names := base64.adapter_targets("all"), 1, 4, torch.float64, dora=True)
    bank.initialise(0, 4, 8.0, names, torch.Generator().manual_seed(0), dora=True)
    with torch.no_grad():
        for _, _, up in bank.views(bank.values[0]):
            up.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    bank.values.requires_grad_(True)
    state = bank.state(0, folded=False)
    noisy = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    text = base64.with_size(base64.encode_text(["a dog", "a cat"]), 64, 64)
    moments = torch.tensor([10, 500])
    bank.assign([0, 0])
    ours = base64.predict(noisy, moments, text)
    ours.square().sum().backward()
    gradient = bank.values.grad[0]
    mine = {name: magnitude.clone() for name, magnitude in bank.magnitudes(gradient)}
    mine_up = {name: up.clone() for name, _, up in bank.views(gradient)}
    bank.detach()
    unet = copy.deepcopy(base64.denoiser)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=names, use_dora=True))
    parameters = dict(unet.named_parameters())
    with torch.no_grad():
        for name, (a, b) in split_state(state).items():
            parameters[f"{name}.lora_A.default.weight"].copy_(a)
            parameters[f"{name}.lora_B.default.weight"].copy_(
                b.view_as(parameters[f"{name}.lora_B.default.weight"])
            )
    unet.double()
    stock = unet(
        noisy,
        moments,
        encoder_hidden_states=text["hidden"],
        added_cond_kwargs={"text_embeds": text["pooled"], "time_ids": text["time_ids"]},
    ).sample
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-7)
    stock.square().sum().backward()
    for name in mine:
        theirs = parameters[f"{name}.lora_magnitude_vector.default.weight"].grad.flatten()
        torch.testing.assert_close(mine[name], theirs, rtol=1e-4, atol=1e-6)
        up = parameters[f"{name}.lora_B.default.weight"].grad.flatten(1)
        torch.testing.assert_close(mine_up[name], up, rtol=1e-4, atol=1e-6)


def test_adapters_on_a_layer_that_alone_can_multiply_by_its_weights():
    """As bitsandbytes' layers are: linear by name, packed weights, a forward of their own."""

    class Packed(torch.nn.Linear):
        def __init__(self, plain: torch.nn.Linear) -> None:
            super().__init__(plain.in_features, plain.out_features)
            self.plain = (plain,)
            self.weight = torch.nn.Parameter(plain.weight.detach().reshape(-1, 1), requires_grad=False)

        def forward(self, x):
            return self.plain[0](x)

    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(6, 5)).double().requires_grad_(False)
    packed = torch.nn.Sequential(Packed(plain[0])).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    seen = []
    for network in (plain, packed):
        bank = attach(network, ["0"], 2, 4, torch.float64)
        for slot in range(2):
            bank.initialise(slot, 4, 4.0, ["0"], torch.Generator().manual_seed(slot))
        with torch.no_grad():
            for _, _, up in bank.views(bank.values[1]):
                up.fill_(0.1)
        bank.values.requires_grad_(True)
        bank.assign([0, 1])
        out = network(x)
        (gradient,) = torch.autograd.grad(out.square().sum(), x, retain_graph=True)
        out.square().sum().backward()
        seen.append((out.detach(), gradient, bank.values.grad))
        bank.detach()
    for mine, other in zip(*seen, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_dora_is_rendered_as_stock_diffusers_renders_it(base, store, make_job):
    import io

    import numpy as np
    from PIL import Image

    from tunes_dagster.core.recipe import RenderSettings
    from tunes_dagster.rendering.jobs import Delivery, Tagged, TuneWeights
    from tunes_dagster.rendering.jobs import make_job as render_job
    from tunes_dagster.rendering.renderer import render

    (result,) = trained(base, store, make_job("one", dora=True, steps=6, learning_rate=5e-2))
    settings = RenderSettings(seed=5, steps=3, guidance_scale=2.0, width=128, height=128)
    tune = TuneWeights(id=result.tune_id, key=result.weights_key, token="ohwx", class_name="woman")
    job = render_job("prompt_1", "a photo of ohwx woman", settings, tune=tune)
    (rendered,) = render([job], base, Delivery(store, "out", Recorder()))
    ours = np.asarray(Image.open(io.BytesIO(store.read_bytes(rendered.images[0].key)))) / 255
    with verify.loaded(result.weights_key, base, store) as pipeline:
        stock = pipeline(
            prompt="a photo of ohwx woman",
            num_inference_steps=3,
            guidance_scale=2.0,
            height=128,
            width=128,
            generator=torch.Generator("cpu").manual_seed(5),
            output_type="np",
        ).images[0]
    assert abs(ours - stock).max() < 0.02
    other = TuneWeights(id="tune_x", key=result.weights_key, token="ohwx", class_name="woman")
    tagged = [Tagged("x", other, 1.0)]
    both = render_job("p", "a photo of ohwx woman <lora:x:1>", settings, tune=tune, tagged=tagged)
    (refused,) = render([both], base, Delivery(store, "out", Recorder()))
    assert refused.failure is not None and "DoRA" in refused.failure.message
