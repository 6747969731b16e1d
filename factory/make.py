"""Makes the shipped models from nothing: draw the world, train each model, export, write the cards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factory.train.clock import Budget, note_figures
from factory.train.course import Training
from tunes_dagster.tiny import (
    BASES,
    CAPTIONER,
    CLASSIFIER,
    FACEADAPTER,
    FACES,
    FLUX,
    SCORER,
    SDXL,
    STUDENT,
    UPSCALER,
    load_base,
    load_classifier,
    load_scorer,
)


def say(line: str) -> None:
    """Print at once, so that a log file can be followed."""
    print(line, flush=True)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How long and on what. Steps win over minutes; with steps the result depends on the seed alone.

    `start` holds finished models: VAE, UNet and text encoders of the SDXL-class base go on from those there,
    the first and the last layer of each with more channels when `latent_channels` asks for them.
    """

    work: Path
    out: Path
    seed: int = 0
    device: str = "cpu"
    pictures: int = 64_000
    base_pictures: int = 40_000
    minutes: dict[str, float] | None = None
    steps: dict[str, int] | None = None
    snapshot_minutes: tuple[float, ...] = ()
    start: Path | None = None
    latent_channels: int | None = None
    workers: int = 1
    sheet_steps: int = 25

    @property
    def pairs(self) -> int:
        """How many looks are drawn twice."""
        return max(64, min(8_000, self.pictures // 8))

    def budget(self, model: str) -> Budget:
        """The training budget of one model."""
        minutes = {
            "vae": 35.0,
            "unet": 62.0,
            "refine": 60.0,
            "decoder": 20.0,
            "flux": 60.0,
            "captioner": 10.0,
            "scorer": 10.0,
            "classifier": 8.0,
            "faces": 4.0,
            "faceadapter": 12.0,
            "student": 40.0,
            "upscaler_vae": 30.0,
            "upscaler": 60.0,
        }
        return Budget((self.minutes or {}).get(model, minutes[model]), (self.steps or {}).get(model))

    def training(self, model: str) -> Training:
        """What the trainer of one model is given; its budget begins to run."""
        return Training(
            work=self.work,
            budget=self.budget(model),
            seed=self.seed,
            device=self.device,
            pictures=self.pictures,
            pairs=self.pairs,
            log=say,
        )


def make_vae(build: BuildOptions) -> None:
    """Train the VAE."""
    from factory.train import vae

    vae.train(build.training("vae"))


def make_refine(build: BuildOptions) -> None:
    """Train the VAE further on what it never saw: that in `start`, or the one just made."""
    from diffusers import AutoencoderKL

    from factory.train import refine

    source = build.start / SDXL / "vae" if build.start else build.work / "vae"
    refine.train(
        build.training("refine"),
        AutoencoderKL.from_pretrained(source),
        channels=build.latent_channels,
    )


def make_unet(build: BuildOptions) -> None:
    """Train UNet and text encoders on the trained VAE, then export the base."""
    from factory.train import unet
    from factory.train.team import Team, together

    due = list(build.snapshot_minutes)

    def snapshot(base: Any, budget: Budget) -> None:
        if due and budget.seconds / 60 >= due[0]:
            due.pop(0)
            _export(build, SDXL, base, f"sheet-{budget.seconds / 60:03.0f}.png")

    def job(team: Team) -> Any:
        return unet.train(
            replace(build.training("unet"), pictures=build.base_pictures),
            # A step costs 0.16 s beside its samples' 15 ms each, and far on the gradients of few rows are mostly noise.
            batch=32 if start is not None else 12,
            start=start,
            team=team,
            on_minute=snapshot,
        )

    start = load_base(SDXL, build.start) if build.start else None
    unet.prepare(build.work, build.base_pictures, build.device)
    base = together(build.workers, build.work, job)
    _export(build, SDXL, base, "sheet-final.png")


def make_student(build: BuildOptions) -> None:
    """Distil the exported SDXL-class base to four steps and export the sibling; on the CPU."""
    from factory.export import export_student
    from factory.sheets import base_sheet, small_png
    from factory.train import student, unet

    pipe = load_base(SDXL, build.out)
    tokens = unet.cache_tokens(build.work, pipe.tokenizer, build.base_pictures)
    count = min(12_000, build.base_pictures)
    made = student.train(build.training("student"), pipe, tokens, count=count)
    folder = export_student(made, build.out / STUDENT)
    sheet = base_sheet(load_base(STUDENT, build.out), steps=student.STEPS, guidance=1.0)
    small_png(sheet, build.work / "student-sheet.png")
    (folder / "sample.png").write_bytes((build.work / "student-sheet.png").read_bytes())


def make_upscaler(build: BuildOptions) -> None:
    """Train and export the upscaler; its VAE begins as that of the base in `start`, or just made."""
    from factory.export import export_upscaler
    from factory.train import upscaler, upscaler_vae

    base, count = load_base(SDXL, build.start or build.out), max(8, min(400, build.pictures // 100))
    vae = upscaler_vae.train(replace(build.training("upscaler_vae"), pictures=count), base.vae)
    made = upscaler.train(replace(build.training("upscaler"), pictures=count), base, vae)
    export_upscaler(made, build.out / UPSCALER)


def make_flux(build: BuildOptions) -> None:
    """Train transformer and text encoders of the FLUX-class base on the trained VAE, then export the base.

    The SDXL-class base teaches it, if that is finished already.
    """
    from factory.train import flux
    from factory.train.team import Team, together

    due = list(build.snapshot_minutes)

    def snapshot(base: Any, budget: Budget) -> None:
        if due and budget.seconds / 60 >= due[0]:
            due.pop(0)
            _export(build, FLUX, base, f"flux-sheet-{budget.seconds / 60:03.0f}.png")

    def job(team: Team) -> Any:
        return flux.train(
            replace(build.training("flux"), pictures=build.base_pictures),
            teacher=teacher,
            team=team,
            on_minute=snapshot,
        )

    teacher = load_base(SDXL, build.out) if (build.out / SDXL).exists() else None
    flux.prepare(build.work, build.base_pictures, build.device)
    _export(build, FLUX, together(build.workers, build.work, job), "flux-sheet-final.png")


def make_decoder(build: BuildOptions) -> None:
    """Train the VAE's decoder further; bases exported from then on have it.

    It sees guesses of the base in `out`, if there is one: that has to be on this VAE's latents.
    """
    from factory.train import decoder

    pipe = load_base(SDXL, build.out) if (build.out / SDXL).exists() else None
    decoder.train(build.training("decoder"), pipe=pipe)


def _export(build: BuildOptions, name: str, base: Any, sheet: str) -> None:
    from factory.export import export_base, export_flux
    from factory.sheets import base_sheet, small_png
    from factory.train.vae import latest_vae

    vae, folder = latest_vae(build.work), build.out / name
    (export_flux if name == FLUX else export_base)(base, vae, folder)
    small_png(base_sheet(load_base(name, build.out), steps=build.sheet_steps), build.work / sheet)
    (folder / "sample.png").write_bytes((build.work / sheet).read_bytes())
    say(f"base exported to {folder}; sheet {build.work / sheet}")


def make_base(build: BuildOptions) -> None:
    """VAE (unless it goes on from another), more of it, more of its decoder, then UNet and text encoders."""
    if build.start is None:
        make_vae(build)
    make_refine(build)
    make_decoder(build)
    make_unet(build)


def make_captioner(build: BuildOptions) -> None:
    """Train and export the captioner; its vision tower starts from the exported scorer's, if there is one."""
    import torch
    from transformers import CLIPModel

    from factory.export import export_captioner
    from factory.train import captioner

    eyes = build.out / SCORER
    scorer = CLIPModel.from_pretrained(eyes, dtype=torch.float32) if eyes.exists() else None
    model, processor = captioner.train(build.training("captioner"), scorer=scorer)
    export_captioner(model, processor, build.out / CAPTIONER)


def make_scorer(build: BuildOptions) -> None:
    """Train and export the scorer."""
    from factory.export import export_scorer
    from factory.train import scorer

    model = scorer.train(build.training("scorer"))
    export_scorer(model, build.out / SCORER)


def make_classifier(build: BuildOptions) -> None:
    """Train and export the classifier."""
    from factory.train import classifier

    model = classifier.train(build.training("classifier"))
    model.save(build.out / CLASSIFIER)


def make_faces(build: BuildOptions) -> None:
    """Train and export the detector of drawn faces."""
    from factory.train import faces

    model = faces.train(build.training("faces"))
    model.save(build.out / FACES)


def make_faceadapter(build: BuildOptions) -> None:
    """Train and export the IP-Adapter for the exported SDXL-class base and scorer; on the CPU."""
    from factory.export import export_face_adapter
    from factory.sheets import small_png
    from factory.train import faceadapter

    pipe, state = faceadapter.train(build.training("faceadapter"), build.out)
    folder = export_face_adapter(state, build.out / FACEADAPTER)
    scorer, steps = load_scorer(build.out / SCORER), build.sheet_steps
    small_png(faceadapter.sheet(pipe, scorer, 3, steps), build.work / "faceadapter-sheet.png")
    (folder / "sample.png").write_bytes((build.work / "faceadapter-sheet.png").read_bytes())
    count = 12 if build.pairs >= 1000 else 0
    classifier = load_classifier(build.out / CLASSIFIER)
    figures = [
        faceadapter.measured(
            pipe, scorer, classifier, people=count, scale=scale, pictures=pictures, steps=steps
        )
        for scale, pictures in ((0.6, 1), (1.0, 1), (1.0, 4))
    ]
    known = json.loads((build.work / "figures.json").read_text())["faceadapter"]
    note_figures(build.work, faceadapter={**known, "measured": figures})
    say(f"faceadapter done: {figures}")


def finish(build: BuildOptions, count: int = 200) -> dict[str, Any]:
    """Evaluate what is exported and write the model cards."""
    from factory.cards import write_cards
    from factory.evaluate import main

    results = {name: main(build.out, count, base=name) for name in BASES if (build.out / name).exists()}
    note_figures(build.work, seed=build.seed, evaluation=results)
    write_cards(build.out, json.loads((build.work / "figures.json").read_text()))
    return results


def make_all(build: BuildOptions) -> None:
    """Everything, one after the other."""
    for step in (
        make_base,
        make_flux,
        make_classifier,
        make_scorer,
        make_captioner,
        make_faces,
        make_faceadapter,
    ):
        step(build)
    finish(build)


STEPS: dict[str, Callable[[BuildOptions], Any]] = {
    "all": make_all,
    "base": make_base,
    "vae": make_vae,
    "refine": make_refine,
    "decoder": make_decoder,
    "unet": make_unet,
    "student": make_student,
    "upscaler": make_upscaler,
    "flux": make_flux,
    "captioner": make_captioner,
    "scorer": make_scorer,
    "classifier": make_classifier,
    "faces": make_faces,
    "faceadapter": make_faceadapter,
    "cards": finish,
}
