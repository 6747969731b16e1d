"""Files of other programs as tunes: both layouts render in stock pipelines what ours do, and come back as they left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from tests.support import foreign
from tests.support.families import make_base, random_lora
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.core.store import Store
from tunes_dagster.training.files import sha256_of
from tunes_dagster.training.foreign.taking import read_file, take_in
from tunes_dagster.training.jobs import TuneJob
from tunes_dagster.training.layouts import Files
from tunes_dagster.training.verify import verify


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Random tiny bases, each made when it is first asked for."""
    made = {}

    def base(name: str):
        if name not in made:
            made[name] = make_base(name, tmp_path_factory.mktemp(name))
        return made[name]

    return base


def job_of(store: Store, path, **more) -> TuneJob:
    key = store.write_file("tunes/t/uploads/theirs.safetensors", path)
    imported = {"key": key, "name": "theirs.safetensors", "sha256": sha256_of(path), **more}
    return TuneJob(
        tune_id="t",
        options=TrainingOptions(),
        items=[],
        token="ohwx",
        class_name="woman",
        out_prefix="tunes/t/lora/1",
        recipe={"imported": imported},
        title="Theirs",
    )


def header_of(path) -> dict[str, str]:
    with safe_open(path, "pt") as opened:
        return opened.metadata()


def adapter_of(base, kind: str) -> dict[str, torch.Tensor]:
    # Attention alone: diffusers' loader of kohya's names does not take every layer of a small SDXL.
    made = random_lora(base, 1, targets="attention", strength=0.2)
    if kind == "encoders":
        made |= foreign.text_lora(base, 1)
    return made


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("sd15", "encoders"),
        ("sdxl", "encoders"),
        ("flux-dev", "plain"),
        ("flux2-klein", "plain"),
    ],
)
def test_a_taken_file_goes_round_in_both_layouts(bases, family, kind, tmp_path):
    """Import, export, import of each export: stock diffusers renders all of them alike, and so do we."""
    base, store = bases(family), Store(tmp_path / "store")
    tensors, header = foreign.new_diffusers(adapter_of(base, kind))
    file = tmp_path / "theirs.safetensors"
    save_file(tensors, file, header)
    result = take_in(job_of(store, file), base, store)
    seen = verify(Files(result.weights_key, result.kohya_key), "a photo of ohwx woman", base, store)
    assert seen.passed, seen
    first = read_file(file, base).state
    for key in (result.weights_key, result.kohya_key):
        with store.local(key) as path:
            again = read_file(path, base).state
        assert set(again) == set(first)
        for name, pair in foreign.pairs(first).items():
            wanted = foreign.delta(*pair)
            assert torch.allclose(foreign.delta(*foreign.pairs(again)[name]), wanted, atol=1e-5), (key, name)
    assert result.steps == 0 and len(result.checkpoints) == 1
    assert "imported from `theirs.safetensors`" in store.read_text(result.card_key)


def test_a_dora_goes_round_in_both_layouts(bases, tmp_path):
    base, store = bases("sd15"), Store(tmp_path / "store")
    adapter = adapter_of(base, "plain")
    tensors, header = foreign.kohya(adapter)
    for name, (_, b) in foreign.pairs(adapter).items():
        layer = name.removeprefix("unet.")
        weight = base.denoiser.get_submodule(layer).weight.detach()
        key = f"lora_unet_{layer.replace('.', '_')}.dora_scale"
        tensors[key] = weight.flatten(1).norm(dim=1).view(len(b), *(1,) * (weight.ndim - 1)) * 1.1
    file = tmp_path / "theirs.safetensors"
    save_file(tensors, file, header)
    result = take_in(job_of(store, file), base, store)
    seen = verify(Files(result.weights_key, result.kohya_key), "a photo of ohwx woman", base, store)
    assert seen.passed and seen.kohya_difference is not None, seen
    first = read_file(file, base).state
    for key in (result.weights_key, result.kohya_key):
        with store.local(key) as path:
            again = read_file(path, base).state
        for name, value in first.items():
            if "magnitude" in name:
                assert torch.allclose(again[name].flatten(), value.flatten(), rtol=1e-4), (key, name)


def test_a_word_alone_becomes_a_tune_that_says_it(bases, tmp_path):
    base, store = bases("sdxl"), Store(tmp_path / "store")
    generator = torch.Generator().manual_seed(4)
    encoders = base.word_encoders()
    words = {
        name: torch.randn(2, encoder.get_input_embeddings().weight.shape[1], generator=generator)
        for name, (_, encoder) in encoders.items()
    }
    file = tmp_path / "theirs.safetensors"
    save_file(words, file)
    result = take_in(job_of(store, file), base, store)
    assert verify(Files(result.weights_key, result.kohya_key), "a photo of ohwx woman", base, store).passed
    assert store.exists(result.figures["embeddings"])


def test_a_file_of_unknown_strength_is_refused_until_it_is_said(bases, tmp_path):
    base = bases("flux-dev")
    tensors, config = foreign.peft_own(random_lora(base, 1))
    file = tmp_path / "adapter_model.safetensors"
    save_file(tensors, file)
    with pytest.raises(Failure, match="adapter_config.json"):
        read_file(file, base)
    assert read_file(file, base, config).rank == 4 and read_file(file, base, {"lora_alpha": 8}).rank == 4


def test_another_file_than_was_handed_in_is_refused(bases, tmp_path):
    base, store = bases("flux-dev"), Store(tmp_path / "store")
    file = tmp_path / "theirs.safetensors"
    save_file(foreign.new_diffusers(random_lora(base, 1))[0], file)
    with pytest.raises(Failure, match="its hash is another one"):
        take_in(job_of(store, file, sha256="0" * 64), base, store)


def test_encoders_are_as_they_were_afterwards(bases):
    from tunes_dagster.training.encoders import dressed
    from tunes_dagster.training.layouts import in_file

    base = bases("sd15")
    said = ["a photo of a woman"]
    before, empty = base.encode_text(said)["hidden"], base.no_text(1)["hidden"]
    text = {
        f"text_encoder.{in_file(key.partition('.')[2])}": value
        for key, value in foreign.text_lora(base, 1, strength=3.0).items()
    }
    with dressed(base, [text, text], [0.5, 0.5]):
        twice, other = base.encode_text(said)["hidden"], base.no_text(1)["hidden"]
    with dressed(base, [text], [1.0]):
        once = base.encode_text(said)["hidden"]
    assert torch.allclose(once, twice, atol=1e-4) and np.abs((once - before).numpy()).max() > 1e-3
    assert not torch.equal(other, empty)
    assert torch.equal(base.encode_text(said)["hidden"], before) and torch.equal(
        base.no_text(1)["hidden"], empty
    )


@pytest.mark.parametrize("family", ["sd15", "flux2-klein"])
def test_training_goes_on_where_the_file_ended(bases, family, tmp_path):
    """Layers and ranks that the file lacks begin as those of a new adapter, which add nothing."""
    from tunes_dagster.training.earlier import read_earlier
    from tunes_dagster.training.weights import StackedWeights

    base, store = bases(family), Store(tmp_path / "store")
    some = dict(list(random_lora(base, 1, rank=2, targets="attention").items())[:8])
    file = tmp_path / "theirs.safetensors"
    save_file(some, file)
    result = take_in(job_of(store, file), base, store)
    shape = result.figures["continued_as"]
    assert shape == {"rank": 4, "targets": "attention"}
    options = TrainingOptions(**shape, alpha=2)
    job = job_of(store, file)
    job.options, job.recipe = options, {"continues": {"weights_key": result.weights_key}}
    weights = StackedWeights([options], base, torch.float32)
    try:
        weights.enter(0, options)
        weights.start_from(0, options, read_earlier(job, base, store))
        going_on = foreign.pairs(weights.adapter(0))
    finally:
        weights.close()
    assert len(going_on) == len(base.adapter_targets("attention")) > 4
    wanted = foreign.pairs(some)
    for name, (a, b) in going_on.items():
        assert bool((a.flatten(1).norm(dim=1) > 0).all()), name
        made = foreign.delta(a, b)
        expected = foreign.delta(*wanted[name]) if name in wanted else torch.zeros_like(made)
        assert torch.allclose(made, expected, atol=1e-5), name


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_words_and_adapted_encoders_are_kept_when_training_goes_on(bases, family, tmp_path):
    """The captions are encoded as the file's encoders hear them, and the new files hold them as they were."""
    from tests.training.conftest import Recorder, add_picture
    from tunes_dagster.training import words
    from tunes_dagster.training.jobs import TrainExample
    from tunes_dagster.training.loop import train

    base, store = bases(family), Store(tmp_path / "store")
    generator = torch.Generator().manual_seed(4)
    vectors = {
        name: torch.randn(2, encoder.get_input_embeddings().weight.shape[1], generator=generator)
        for name, (_, encoder) in base.word_encoders().items()
    }
    tensors, header = foreign.new_diffusers(adapter_of(base, "encoders"))
    file = tmp_path / "theirs.safetensors"
    save_file(tensors, file, header)
    first = take_in(job_of(store, file), base, store)
    key = "tunes/t/ohwx.safetensors"
    words.save(store, key, vectors, {"format": "pt", words.TOKEN_FIELD: "ohwx"})
    with store.local(first.weights_key) as path:
        state = load_file(path)
        said = header_of(path) | {words.KEY_FIELD: key, words.TOKEN_FIELD: "ohwx"}
    store.write_bytes(first.weights_key, save(state, said))

    options = TrainingOptions(
        **first.figures["continued_as"],
        steps=2,
        batch_size=1,
        learning_rate=1e-3,
        prior_weight=1.0,
        prior_prompts=1,
        resolution=64,
    )
    items = [TrainExample(key=add_picture(store, 1), caption="a photo of ohwx woman", bucket=(64, 64))]
    report = Recorder()
    recipe = {"continues": {"weights_key": first.weights_key}}
    job = TuneJob(
        tune_id="u",
        options=options,
        items=items,
        token="ohwx",
        class_name="woman",
        out_prefix="tunes/u/lora/1",
        report=report,
        recipe=recipe,
    )
    before = base.encode_text(["a woman"])["hidden"]
    result = train([job], base, store)["u"]
    assert not isinstance(result, Failure), result
    assert torch.equal(base.encode_text(["a woman"])["hidden"], before)
    assert any("words and text encoders of that tune are kept" in note for note in report.notes)
    with store.local(result.weights_key) as path:
        after = load_file(path)
    text = [name for name in state if name.startswith("text_encoder")]
    assert text and all(torch.equal(after[name], state[name]) for name in text)
    denoiser = [name for name in state if name.endswith(".lora_B.weight") and name not in text]
    assert any(not torch.equal(after[name], state[name]) for name in denoiser)
    kept = words.load(store, result.figures["embeddings"])
    assert all(torch.equal(kept[name], vectors[name]) for name in vectors)
    assert verify(Files(result.weights_key, result.kohya_key), "a photo of ohwx woman", base, store).passed

    # What the loop trained on is what the file's own words and encoders say.
    from tunes_dagster.training import run

    prepared = run.prepare(job, base, store)
    with words.speaking(base, store, first.weights_key):
        heard = base.encode_text(["a photo of ohwx woman"])["hidden"][0]
    assert torch.allclose(prepared.texts[job.captions[0]]["hidden"], heard, atol=1e-5)
    assert not torch.allclose(heard, base.encode_text(["a photo of ohwx woman"])["hidden"][0], atol=1e-2)
