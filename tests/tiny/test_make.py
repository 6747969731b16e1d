"""The training scripts run from nothing to exported folders, and go on where they stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from factory.__main__ import build_from, parser
from factory.cards import write_cards
from factory.make import STEPS, BuildOptions
from factory.sheets import render
from factory.train.clock import Budget, learning_rate, load_checkpoint, save_checkpoint
from factory.train.course import Training
from tunes_dagster.tiny import (
    CAPTIONER,
    CLASSIFIER,
    FACEADAPTER,
    FACEADAPTER_FILE,
    FACES,
    FLUX,
    SCORER,
    SDXL,
    load_base,
    load_captioner,
    load_classifier,
    load_faces,
    load_scorer,
)
from tunes_dagster.tiny.world import picture

FEW = dict.fromkeys(
    ("vae", "refine", "decoder", "unet", "flux", "captioner", "scorer", "classifier", "faces", "faceadapter"),
    2,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    work = tmp_path_factory.mktemp("tiny")
    build = BuildOptions(
        work=work, out=work / "weights", pictures=72, base_pictures=32, steps=FEW, sheet_steps=1
    )
    for step in ("base", "flux", "classifier", "scorer", "captioner", "faces", "faceadapter"):
        STEPS[step](build)
    return build


def test_every_model_is_exported_and_loads(made):
    from diffusers import FluxPipeline, StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(made.out / SDXL)
    assert pipe.default_sample_size * pipe.vae_scale_factor == 128
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    flux = load_base(FLUX, made.out)
    assert isinstance(flux, FluxPipeline)
    assert flux.vae.config.shift_factor == 0.0
    assert render(flux, ["a photo of Ohwx woman"], steps=2)[0].size == (128, 128)
    images = [picture(i)[0] for i in range(2)]
    assert load_scorer(made.out / SCORER).embed_images(images).shape == (2, 128)
    assert len(load_captioner(made.out / CAPTIONER).caption(images)) == 2
    assert set(load_classifier(made.out / CLASSIFIER).predict(images)[0]) >= {"kind", "background"}
    assert isinstance(load_faces(made.out / FACES).detect(images[0]), list)
    pipe.load_ip_adapter(
        str(made.out / FACEADAPTER), subfolder="", weight_name=FACEADAPTER_FILE, image_encoder_folder=None
    )
    assert pipe.unet.encoder_hid_proj.num_ip_adapters == 1


def test_training_goes_on_from_finished_models(made, tmp_path):
    import torch

    for name in ("train.npy", "held-out.npy", "pairs.npy"):
        (tmp_path / name).symlink_to(made.work / name)
    build = replace(
        made, work=tmp_path, out=tmp_path / "out", start=made.out, steps={**FEW, "refine": 0, "unet": 0}
    )
    STEPS["refine"](build)
    STEPS["unet"](build)
    before, after = load_base(SDXL, made.out), load_base(SDXL, build.out)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        old, new = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        assert all(torch.equal(old[key], new[key]) for key in old), part


def test_cards_tell_the_figures(made):
    figures = json.loads((made.work / "figures.json").read_text())
    assert {"vae", "unet", "flux", "captioner", "scorer", "classifier", "faces"} <= set(figures)
    assert figures["flux"]["taught"]  # by the base that was made before it
    write_cards(made.out, figures)
    assert f"{figures['vae']['psnr_db']} dB" in (made.out / SDXL / "README.md").read_text()
    assert f"MSE {figures['flux']['held_out_velocity_mse']}" in (made.out / FLUX / "README.md").read_text()


def test_training_with_steps_is_repeatable(made, tmp_path):
    import torch

    from factory.train import classifier

    for name in ("train.npy", "held-out.npy"):
        (tmp_path / name).symlink_to(made.work / name)
    trainings = [
        Training(work=tmp_path, budget=Budget(steps=2), pictures=72, log=lambda _: None) for _ in range(2)
    ]
    nets = [classifier.train(training).net for training in trainings]
    states = [net.state_dict() for net in nets]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_budget_goes_on_from_its_checkpoint(tmp_path):
    budget = Budget(steps=10, step=4)
    save_checkpoint(tmp_path / "x.pt", budget, model={})
    again = Budget(steps=10)
    assert load_checkpoint(tmp_path / "x.pt", again) is not None
    assert again.step == 4
    assert again.fraction == pytest.approx(0.4)
    assert load_checkpoint(tmp_path / "none.pt", replace(again)) is None


def test_learning_rate_warms_up_holds_and_falls():
    assert learning_rate(1.0, 0, 0.0, warmup=10) == pytest.approx(0.1)
    assert learning_rate(1.0, 50, 0.2, warmup=10) == 1.0
    assert learning_rate(1.0, 50, 1.0, warmup=10) == pytest.approx(0.03)


def test_the_command_line_builds_a_plan():
    options = parser().parse_args(
        ["make", "vae", "--minutes-vae", "3", "--steps-unet", "9", "--snapshots", "15,40"]
    )
    build = build_from(options)
    assert build.budget("vae").minutes == 3
    assert build.budget("unet").steps == 9
    assert build.snapshot_minutes == (15.0, 40.0)


def test_a_team_averages_weights_and_agrees(tmp_path):
    import torch

    from factory.train.team import Team, together

    def job(team: Team) -> tuple[float, list[float]]:
        weight = torch.full((2, 2), float(team.rank))
        team.average([weight])
        return team.agree(5.0 + team.rank), weight.flatten().tolist()

    assert together(2, tmp_path, job) == (5.0, [0.5] * 4)
    assert together(1, tmp_path, job) == (5.0, [0.0] * 4)
