"""What a batch does around the pictures: failures, memory, progress, cancel, files, recipes."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from safetensors.torch import save

from tests.rendering.conftest import entry, random_lora
from tunes_dagster.core.failures import Cancelled, Failure, FailureCode
from tunes_dagster.core.progress import Phase, Silent
from tunes_dagster.core.recipe import RenderSettings, recipe_hash
from tunes_dagster.rendering import denoise, png
from tunes_dagster.rendering.jobs import Delivery, RenderJob, Tagged, TuneWeights, make_job
from tunes_dagster.rendering.renderer import render

FERN = ("tunes/fern.safetensors", 1.0)


def settings(**more):
    values = {"seed": 1, "steps": 2, "guidance_scale": 4.0, "width": 64, "height": 64, "scheduler": "euler"}
    return RenderSettings(**(values | more))


def job(name="p", text="a photo of ohwx man", loras=(), **more):
    return RenderJob(name, text, settings(**more), loras)


class Watcher(Silent):
    """Remembers what it was told; asks for a cancel after so many steps."""

    def __init__(self, cancel_after=None):
        self.phases, self.steps, self.notes, self.cancel_after = [], [], [], cancel_after

    def phase(self, phase, message=""):
        self.phases.append((phase, message))

    def step(self, done, total, **numbers):
        self.steps.append((done, total))

    def note(self, message):
        self.notes.append(message)

    def check_cancelled(self):
        if self.cancel_after is not None and len(self.steps) >= self.cancel_after:
            raise Cancelled()


def test_one_bad_prompt_fails_alone_and_says_why(base, store):
    store.write_bytes("tunes/torn.safetensors", b"not a safetensors file")
    wrong = random_lora(base, 1)
    wrong = {k.replace("conv1", "conv9"): v for k, v in wrong.items()}
    store.write_bytes("tunes/other-base.safetensors", save(wrong))
    batch = [
        job("good", loras=[FERN]),
        job("unfilled", seed=None),
        job("unknown-scheduler", scheduler="heun9"),
        job("missing-weights", loras=[("tunes/gone.safetensors", 1.0)]),
        job("torn-weights", loras=[("tunes/torn.safetensors", 1.0)]),
        job("other-base", loras=[("tunes/other-base.safetensors", 1.0)]),
        job("raw-tag", text="a man <lora:x:1>"),
        job("good-too"),
    ]
    told = []
    results = render(batch, base, Delivery(store, "out", Silent(), told.append))
    assert {r.prompt_id for r in results if r.failure is None} == {"good", "good-too"}
    assert sorted(r.prompt_id for r in told) == sorted(j.prompt_id for j in batch)
    codes = {r.prompt_id: r.failure.code for r in results if r.failure}
    assert codes["missing-weights"] == codes["torn-weights"] == codes["other-base"] == "weights_unusable"
    assert codes["unfilled"] == codes["unknown-scheduler"] == "invalid_request"
    assert "dpm++2m_karras" in results[2].failure.remedy
    assert all(r.failure.message and r.failure.remedy for r in results if r.failure)


def test_running_out_of_memory_halves_the_batch_and_goes_on(base, store, monkeypatch):
    real, sizes = denoise.denoise, []

    def hungry(base, pictures, *rest):
        sizes.append(len(pictures))
        if len(pictures) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        return real(base, pictures, *rest)

    monkeypatch.setattr(denoise, "denoise", hungry)
    monkeypatch.setattr(denoise, "rows_that_fit", lambda base, shape, waiting: 8)
    watcher = Watcher()
    results = render([job(str(i), seed=i) for i in range(10)], base, Delivery(store, "out", watcher))
    assert all(r.failure is None for r in results)
    assert sizes == [5, 3, 2, 1, 2, 2, 2, 1]  # 5 and its halves, then never more than what fitted
    assert any("going on with" in note for note in watcher.notes)
    assert watcher.steps[-1] == (20, 20)


def test_a_picture_that_does_not_fit_alone_says_so(base, store, monkeypatch):
    def hungry(*args):
        raise MemoryError

    monkeypatch.setattr(denoise, "denoise", hungry)
    [result] = render([job()], base, Delivery(store, "out", Silent()))
    assert result.failure.code == FailureCode.OUT_OF_MEMORY


def test_an_unexpected_error_is_traced_to_its_picture(base, store, monkeypatch):
    real = denoise.denoise

    def cursed(base, pictures, *rest):
        if any(picture.seed == 13 for picture in pictures):
            raise ValueError("unlucky")
        return real(base, pictures, *rest)

    monkeypatch.setattr(denoise, "denoise", cursed)
    results = render(
        [job("a", seed=1, num_images=3), job("b", seed=12, num_images=2)],
        base,
        Delivery(store, "out", Silent()),
    )
    assert results[0].failure is None and len(results[0].images) == 3
    assert results[1].failure.code == FailureCode.RENDER_FAILED and "unlucky" in results[1].failure.detail
    assert [image.seed for image in results[1].images] == [12]


def test_numbers_that_are_not_finite_fail_their_prompt_only(base, store):
    bad = {k: v * float("inf") if "lora_B" in k else v for k, v in random_lora(base, 1).items()}
    store.write_bytes("tunes/inf.safetensors", save(bad))
    batch = [job("bad", loras=[("tunes/inf.safetensors", 1.0)]), job("good", loras=[FERN])]
    bad_result, good = render(batch, base, Delivery(store, "out", Silent()))
    assert bad_result.failure.code == FailureCode.NOT_FINITE and "not finite" in bad_result.failure.message
    assert good.failure is None and not good.images[0].blank
    assert list(store.list("out")) == [good.images[0].key]


def test_decoding_goes_on_in_smaller_parts(base, store, monkeypatch):
    real, sizes = denoise.decode, []

    def hungry(base, latents):
        sizes.append(len(latents))
        if len(latents) > 1:
            raise RuntimeError("out of memory")
        return real(base, latents)

    monkeypatch.setattr(denoise, "decode", hungry)
    results = render([job(num_images=4)], base, Delivery(store, "out", Silent()))
    assert len(results[0].images) == 4
    assert sizes == [4, 2, 1, 1, 1, 1]


def test_decoding_falls_back_to_tiles_and_the_recipe_says_so(base, store, monkeypatch):
    real = denoise.decode
    vae = base.parts()["vae"]

    def hungry(base, latents):
        if not vae.use_tiling:
            raise RuntimeError("out of memory")
        return real(base, latents)

    monkeypatch.setattr(denoise, "decode", hungry)
    [result] = render([job()], base, Delivery(store, "out", Silent()))
    assert png.read_recipe(store.read_bytes(result.images[0].key))["tiled_decoding"] is True
    assert not vae.use_tiling


def test_cancel_stops_and_hands_over_what_was_finished(base, store):
    told = []
    batch = [job("first"), job("second", seed=5)]
    with pytest.raises(Cancelled):
        render(batch, base, Delivery(store, "out", Watcher(cancel_after=3), told.append), max_pictures=1)
    assert [result.prompt_id for result in told] == ["first"]
    assert store.exists(told[0].images[0].key)
    assert not any(type(module).__name__ == "StackedLora" for module in base.denoiser.modules())


def test_a_store_that_cannot_be_written_ends_the_attempt(base, store, monkeypatch):
    def full(key, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_bytes", full)
    with pytest.raises(Failure) as caught:
        render([job()], base, Delivery(store, "out", Silent()))
    assert caught.value.code == FailureCode.STORE_UNAVAILABLE and caught.value.retryable


def test_progress_counts_steps_of_pictures_across_shapes(base, store):
    watcher = Watcher()
    batch = [job("a", num_images=2), job("b", steps=3), job("c", width=96), job("d", guidance_scale=1.0)]
    render(batch, base, Delivery(store, "out", watcher))
    assert watcher.steps[-1] == (11, 11)
    assert [done for done, _ in watcher.steps] == sorted(done for done, _ in watcher.steps)
    assert [phase for phase, _ in watcher.phases] == [Phase.LOADING, Phase.RENDERING]
    assert watcher.phases[1][1] == "5 pictures of 4 prompts"


def test_the_file_tells_how_it_was_made(base, store):
    one = RenderJob(
        "p",
        "a photo of ohwx man",
        settings(negative_prompt="dark", seed=9),
        [(*FERN, "tune_fern")],
        recipe={"base_asked": "sdxl"},
        warnings=["careful"],
    )
    [result] = render([one], base, Delivery(store, "batches/b/1", Silent()))
    [image] = result.images
    recipe = png.read_recipe(store.read_bytes(image.key))
    assert image.key == "batches/b/1/p-9.png" and image.bytes == store.size(image.key)
    assert recipe["prompt"] == "a photo of ohwx man" and recipe["negative_prompt"] == "dark"
    assert recipe["base"]["branch"] == "random" and len(recipe["base"]["fingerprint"]) == 20
    assert recipe["base_asked"] == "sdxl"
    [lora] = recipe["loras"]
    assert lora["id"] == "tune_fern" and len(lora["sha256"]) == 64 and lora["scale"] == 1.0
    assert recipe["libraries"]["diffusers"] and recipe["code"] and recipe["dtype"] == "float32"
    hashed = {k: v for k, v in recipe.items() if k not in ("recipe_hash", "warnings", "base_asked")}
    assert recipe["recipe_hash"] == image.recipe_hash == recipe_hash(hashed)
    assert recipe["warnings"] == result.warnings == ["careful"]


def test_same_recipe_same_file(base, store):
    [one] = render([job(loras=[FERN])], base, Delivery(store, "one", Silent()))
    [two] = render([job(loras=[FERN])], base, Delivery(store, "two", Silent()))
    assert one.images[0].sha256 == two.images[0].sha256


def test_a_shipped_base_renders_at_its_own_size_and_enlarges(base_folder, base, store, monkeypatch):
    monkeypatch.setattr(base, "entry", entry(base_folder, "embedded:sdxl"))
    [result] = render([job(width=512, height=256)], base, Delivery(store, "out", Silent()))
    image = Image.open(io.BytesIO(store.read_bytes(result.images[0].key)))
    assert image.size == (512, 256)
    assert result.images[0].rendered_at == (80, 40)
    assert png.read_recipe(store.read_bytes(result.images[0].key))["rendered_at"] == [80, 40]


def test_nothing_to_do_is_fine(base, store):
    assert render([], base, Delivery(store, "out", Silent())) == []


def test_every_public_scheduler_renders_a_picture(base, store):
    from tunes_dagster.rendering.schedulers import SCHEDULERS

    results = render(
        [job(name, scheduler=name) for name in SCHEDULERS], base, Delivery(store, "out", Silent())
    )
    assert [r.prompt_id for r in results if r.failure] == []
    assert not any(r.images[0].blank for r in results)


def test_jobs_are_made_of_rows_and_tags():
    fern = TuneWeights(id="tune_fern", key="fern.safetensors", token="ohwx", class_name="man")
    duo = TuneWeights(id="tune_duo", key="duo.safetensors", token="zkqj", class_name="woman")
    tagged = [Tagged("duo", duo, 0.5)]
    made = make_job(
        "p", "ohwx man and a woman <lora:duo:0.5>", settings(lora_scale=0.9), tune=fern, tagged=tagged
    )
    assert made.text == "ohwx man and a woman"
    assert made.loras == [("fern.safetensors", 0.9, "tune_fern"), ("duo.safetensors", 0.5, "tune_duo")]
    assert made.warnings == [
        "The prompt does not name the tune's token 'zkqj'; write 'zkqj woman' to show the subject."
    ]
    same = make_job(
        "p", "ohwx man <lora:Fern:0.3>", settings(), tune=fern, tagged=[Tagged("Fern", fern, 0.3)]
    )
    assert same.loras == [("fern.safetensors", 0.3, "tune_fern")]
    twice = [Tagged("Fern", fern, 0.3), Tagged("7", fern, 0.4)]
    text = "ohwx man <lora:Fern:0.3> <lora:7:0.4>"
    assert make_job("p", text, settings(), tagged=twice).loras == [("fern.safetensors", 0.7, "tune_fern")]
    with pytest.raises(Failure, match="'7' in the prompt means was never settled"):
        make_job("p", text, settings(), tagged=twice[:1])
    for words in (("Fern", "Fern"), ("Fern", "7")):
        strong = [Tagged(word, fern, 2.0) for word in words]
        text = "ohwx man " + " ".join(f"<lora:{word}:2>" for word in words)
        with pytest.raises(Failure, match="one tune, with 4 in all"):
            make_job("p", text, settings(), tagged=strong)


def test_half_precision_shows_the_same_picture(base_folder, base, store):
    import numpy as np

    from tunes_dagster.families.base import load_family

    half = load_family(entry(base_folder), base_folder, dtype="bfloat16")
    batch = [job("tuned", loras=[FERN]), job("plain", seed=3)]
    full = render(batch, base, Delivery(store, "full", Silent()))
    rough = render(batch, half, Delivery(store, "half", Silent()))
    for one, two in zip(full, rough, strict=True):
        a, b = (
            np.asarray(Image.open(io.BytesIO(store.read_bytes(r.images[0].key))), float) for r in (one, two)
        )
        assert 0 < np.abs(a - b).mean() < 8
    assert png.read_recipe(store.read_bytes(rough[0].images[0].key))["dtype"] == "bfloat16"
    assert full[0].images[0].recipe_hash != rough[0].images[0].recipe_hash
