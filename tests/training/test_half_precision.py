"""In half precision every kind of tune goes the whole road on every family, with VAEs that say `force_upcast`.

Released VAEs say it, and stock pipelines feed a VAE in float32 what the denoiser made in half precision.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.families import CASES, entry_of, make_base
from tests.support.tiny_aids import catalog_of, make_random_controlnet, make_random_upscaler
from tests.support.tiny_aids import entry_of as aid_of
from tests.support.tiny_faces import EMBEDDING, make_random_adapter
from tests.training.conftest import add_picture
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.evaluation.card import CardOptions
from tunes_dagster.evaluation.scorers import load_scorer, load_scorer_catalog
from tunes_dagster.evaluation.scoring import Scorers, Subject, score_tune
from tunes_dagster.families.base import load_family
from tunes_dagster.rendering.aids import Aids
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.renderer import RenderJob, render
from tunes_dagster.training import words
from tunes_dagster.training.faceid import ADAPTER_FIELD, EMBEDS, NOTHING
from tunes_dagster.training.files import write_tensors
from tunes_dagster.training.jobs import TrainingResult
from tunes_dagster.training.layouts import Files
from tunes_dagster.training.loop import train
from tunes_dagster.training.samples import write_samples
from tunes_dagster.training.verify import exported, verify

PROMPT = "a photo of ohwx woman on the beach"
KINDS = {
    "lora": {},
    "pti": {"kind": "pti"},
    "checkpoint": {"kind": "checkpoint", "learning_rate": 1e-3},
    "dora": {"dora": True},
}
# Each kind and each family at least once.
SOME = [
    ("sd15", "lora"),
    ("sd15", "checkpoint"),
    ("sdxl", "pti"),
    ("sdxl", "dora"),
    ("flux-dev", "pti"),
    ("flux2-dev", "dora"),
    ("flux2-klein", "checkpoint"),
]
ALL = [(name, kind) for name in CASES for kind in KINDS if (kind, CASES[name].family) != ("pti", "flux2")]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Return a function that makes a case once per precision and keeps it."""
    made = {}

    def get(name: str, dtype: str):
        if (name, dtype) not in made:
            made[name, dtype] = make_base(name, tmp_path_factory.mktemp("bases") / name, dtype)
        return made[name, dtype]

    return get


def walk(base, kind, store, make_job, tmp_path):
    """Encode, train, verify, sample, score, render in every way that the family has."""
    job = make_job(steps=4, checkpoint_every=2, alpha=16.0, rank=4, **kind)
    result = train([job], base, store)[job.tune_id]
    assert isinstance(result, TrainingResult), result
    seen = verify(Files(result.weights_key, result.kohya_key, result.pipeline_key), PROMPT, base, store)
    assert seen.passed, seen
    if result.pipeline_key:
        with store.local_folder(result.pipeline_key) as folder, exported(folder, base) as pipeline:
            assert pipeline.vae.dtype == base.pipeline().vae.dtype
    write_samples("samples.png", result.checkpoints, [PROMPT], base, store, Silent())
    given = picture(store, add_picture(store, 7))
    subject = Subject("tune_one", "ohwx", "woman", [given], [given], result.checkpoints)
    scorer = load_scorer(load_scorer_catalog().entry("tiny-clip"), tmp_path)
    options = CardOptions(checkpoints=1, renders=2, steps=2)
    card = score_tune(subject, base, Scorers(scorer, scorer), store, options, Silent()).card
    assert not card.failure and card.chosen_step == 4
    with words.speaking(base, store, result.weights_key):
        renders(base, result, store, tmp_path)


def renders(base, result, store, tmp_path):
    """Render in one batch all that needs pixels encoded, decoded or looked at."""
    aids, faces = Aids(check_pictures=False), []
    if base.guidance == "classifier-free" and base.entry.family.startswith("sd"):
        fits = base.entry.family
        eyes = make_random_adapter(tmp_path / "faces", base.denoiser, "random-faces", fits)
        steering = make_random_controlnet(tmp_path / "control", base.denoiser)
        control = aid_of("random-canny", "controlnet", steering, fits=fits, control="canny")
        large = aid_of(
            "upscale-4x", "upscale", make_random_upscaler(tmp_path / "large"), rendering={"steps": 1}
        )
        aids = Aids(catalog_of(eyes, control, large), tmp_path, check_pictures=False)
        embeds = {EMBEDS: torch.randn(1, EMBEDDING), NOTHING: torch.zeros(1, EMBEDDING)}
        write_tensors(store, "face.safetensors", embeds, {ADAPTER_FIELD: "random-faces"})
        faces = [("face.safetensors", 1.0)]
    image, mask = add_picture(store, 1), add_picture(store, 2)
    asked = {
        "plain": {},
        "from": {"input_image": image, "denoising_strength": 0.6},
        "hires": {"hires_fix": True},
        "masked": {"input_image": image, "mask_image": mask, "denoising_strength": 0.9},
    }
    if faces:
        asked |= {
            "control": {"input_image": image, "controlnet": "canny"},
            "large": {"super_resolution": True},
        }
    settings = {"seed": 3, "steps": 3, "guidance_scale": 3.0, "width": 64, "height": 64}
    jobs = [
        RenderJob(name, PROMPT, RenderSettings(**settings, **more), [(result.weights_key, 1.0)])
        for name, more in asked.items()
    ]
    jobs += [RenderJob("face", PROMPT, RenderSettings(**settings), [], faces=faces)] if faces else []
    for done in render(jobs, base, Delivery(store, "out", Silent()), aids=aids):
        assert done.failure is None, (done.prompt_id, done.failure)
        assert np.asarray(picture(store, done.images[0].key)).std() > 1, done.prompt_id


def picture(store, key) -> Image.Image:
    return Image.open(io.BytesIO(store.read_bytes(key))).convert("RGB")


@pytest.mark.parametrize(("name", "kind"), SOME)
def test_the_whole_road_in_bfloat16(bases, store, make_job, tmp_path, name, kind):
    walk(bases(name, "bfloat16"), KINDS[kind], store, make_job, tmp_path)


@pytest.mark.proof
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("name", "kind"), ALL)
def test_every_kind_on_every_family_in_half_precision(bases, store, make_job, tmp_path, name, kind, dtype):
    walk(bases(name, dtype), KINDS[kind], store, make_job, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux-dev"])
def test_a_vae_that_overflows_in_half_precision_shows_the_picture_of_float32(tmp_path, name, dtype):
    """The released VAE of SDXL does, so the weights of this one are made to."""
    from diffusers import AutoencoderKL

    make_base(name, tmp_path / "base")
    vae = AutoencoderKL.from_pretrained(tmp_path / "base" / "vae")
    # The norms that follow take it out again, where float32 has held it.
    vae.decoder.conv_in.weight.data.mul_(3e5)
    vae.decoder.conv_in.bias.data.mul_(3e5)
    vae.save_pretrained(tmp_path / "base" / "vae")
    whole, half = (
        load_family(entry_of(name, tmp_path / "base"), tmp_path / "base", dtype=one)
        for one in (torch.float32, dtype)
    )
    latents = torch.randn(1, *half.latent_shape(64, 64), generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.testing.assert_close(half.decode(latents), whole.decode(latents.float()), rtol=0, atol=1e-5)
    pixels = half.pipeline()(
        **half.stock_arguments("a mug", "", 2.0),
        num_inference_steps=2,
        height=64,
        width=64,
        output_type="np",
        generator=torch.Generator().manual_seed(1),
    ).images
    assert np.isfinite(pixels).all() and pixels.std() > 0.01
    assert half.pipeline().vae.dtype == torch.float32


def test_a_vae_that_does_without_computes_in_half_precision(tmp_path):
    make_base("sdxl", tmp_path / "base")
    config = tmp_path / "base" / "vae" / "config.json"
    config.write_text(config.read_text().replace('"force_upcast": true', '"force_upcast": false'))
    base = load_family(entry_of("sdxl", tmp_path / "base"), tmp_path / "base", dtype="bfloat16")
    assert base.pipeline().vae.dtype == torch.bfloat16
    assert base.decode(torch.zeros(1, 4, 8, 8)).dtype == torch.float32
