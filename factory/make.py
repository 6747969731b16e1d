"""Makes the shipped models from nothing: draw the world, train each model, export, write the cards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.train.clock import Budget, note_figures
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


@dataclass(frozen=True)
class Plan:
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


def say(line: str) -> None:
    """Print at once, so that a log file can be followed."""
    print(line, flush=True)


def make_vae(plan: Plan) -> None:
    """Train the VAE."""
    from factory.train import vae

    vae.train(
        plan.work, plan.budget("vae"), seed=plan.seed, device=plan.device, pictures=plan.pictures, log=say
    )


def make_refine(plan: Plan) -> None:
    """Train the VAE further on what it never saw: that in `start`, or the one just made."""
    from diffusers import AutoencoderKL

    from factory.train import refine

    source = plan.start / SDXL / "vae" if plan.start else plan.work / "vae"
    refine.train(
        plan.work,
        plan.budget("refine"),
        AutoencoderKL.from_pretrained(source),
        seed=plan.seed,
        device=plan.device,
        pictures=plan.pictures,
        pairs=plan.pairs,
        channels=plan.latent_channels,
        log=say,
    )


def make_unet(plan: Plan) -> None:
    """Train UNet and text encoders on the trained VAE, then export the base."""
    from factory.train import unet
    from factory.train.team import Team, together

    due = list(plan.snapshot_minutes)

    def snapshot(base: Any, budget: Budget) -> None:
        if due and budget.seconds / 60 >= due[0]:
            due.pop(0)
            _export(plan, SDXL, base, f"sheet-{budget.seconds / 60:03.0f}.png")

    def job(team: Team) -> Any:
        return unet.train(
            plan.work,
            plan.budget("unet"),
            seed=plan.seed,
            device=plan.device,
            pictures=plan.base_pictures,
            # A step costs 0.16 s beside its samples' 15 ms each, and far on the gradients of few rows are mostly noise.
            batch=32 if start is not None else 12,
            start=start,
            team=team,
            on_minute=snapshot,
            log=say,
        )

    start = load_base(SDXL, plan.start) if plan.start else None
    unet.prepare(plan.work, plan.base_pictures, plan.device)
    base = together(plan.workers, plan.work, job)
    _export(plan, SDXL, base, "sheet-final.png")


def make_student(plan: Plan) -> None:
    """Distil the exported SDXL-class base to four steps and export the sibling; on the CPU."""
    from factory.export import export_student
    from factory.sheets import base_sheet, small_png
    from factory.train import student, unet

    pipe = load_base(SDXL, plan.out)
    tokens = unet.cache_tokens(plan.work, pipe.tokenizer, plan.base_pictures)
    count = min(12_000, plan.base_pictures)
    made = student.train(
        plan.work, plan.budget("student"), pipe, tokens, seed=plan.seed, count=count, log=say
    )
    folder = export_student(made, plan.out / STUDENT)
    sheet = base_sheet(load_base(STUDENT, plan.out), steps=student.STEPS, guidance=1.0)
    small_png(sheet, plan.work / "student-sheet.png")
    (folder / "sample.png").write_bytes((plan.work / "student-sheet.png").read_bytes())


def make_upscaler(plan: Plan) -> None:
    """Train and export the upscaler; its VAE begins as that of the base in `start`, or just made."""
    from factory.export import export_upscaler
    from factory.train import upscaler, upscaler_vae

    base, count = load_base(SDXL, plan.start or plan.out), max(8, min(400, plan.pictures // 100))
    vae = upscaler_vae.train(
        plan.work,
        plan.budget("upscaler_vae"),
        base.vae,
        seed=plan.seed,
        device=plan.device,
        pictures=count,
        log=say,
    )
    made = upscaler.train(
        plan.work,
        plan.budget("upscaler"),
        base,
        vae,
        seed=plan.seed,
        device=plan.device,
        pictures=count,
        log=say,
    )
    export_upscaler(made, plan.out / UPSCALER)


def make_flux(plan: Plan) -> None:
    """Train transformer and text encoders of the FLUX-class base on the trained VAE, then export the base.

    The SDXL-class base teaches it, if that is finished already.
    """
    from factory.train import flux
    from factory.train.team import Team, together

    due = list(plan.snapshot_minutes)

    def snapshot(base: Any, budget: Budget) -> None:
        if due and budget.seconds / 60 >= due[0]:
            due.pop(0)
            _export(plan, FLUX, base, f"flux-sheet-{budget.seconds / 60:03.0f}.png")

    def job(team: Team) -> Any:
        return flux.train(
            plan.work,
            plan.budget("flux"),
            seed=plan.seed,
            device=plan.device,
            pictures=plan.base_pictures,
            teacher=teacher,
            team=team,
            on_minute=snapshot,
            log=say,
        )

    teacher = load_base(SDXL, plan.out) if (plan.out / SDXL).exists() else None
    flux.prepare(plan.work, plan.base_pictures, plan.device)
    _export(plan, FLUX, together(plan.workers, plan.work, job), "flux-sheet-final.png")


def make_decoder(plan: Plan) -> None:
    """Train the VAE's decoder further; bases exported from then on have it.

    It sees guesses of the base in `out`, if there is one: that has to be on this VAE's latents.
    """
    from factory.train import decoder

    pipe = load_base(SDXL, plan.out) if (plan.out / SDXL).exists() else None
    decoder.train(
        plan.work,
        plan.budget("decoder"),
        seed=plan.seed,
        device=plan.device,
        pictures=plan.pictures,
        pairs=plan.pairs,
        pipe=pipe,
        log=say,
    )


def _export(plan: Plan, name: str, base: Any, sheet: str) -> None:
    from factory.export import export_base, export_flux
    from factory.sheets import base_sheet, small_png
    from factory.train.vae import latest_vae

    vae, folder = latest_vae(plan.work), plan.out / name
    (export_flux if name == FLUX else export_base)(base, vae, folder)
    small_png(base_sheet(load_base(name, plan.out), steps=plan.sheet_steps), plan.work / sheet)
    (folder / "sample.png").write_bytes((plan.work / sheet).read_bytes())
    say(f"base exported to {folder}; sheet {plan.work / sheet}")


def make_base(plan: Plan) -> None:
    """VAE (unless it goes on from another), more of it, more of its decoder, then UNet and text encoders."""
    if plan.start is None:
        make_vae(plan)
    make_refine(plan)
    make_decoder(plan)
    make_unet(plan)


def make_captioner(plan: Plan) -> None:
    """Train and export the captioner; its vision tower starts from the exported scorer's, if there is one."""
    import torch
    from transformers import CLIPModel

    from factory.export import export_captioner
    from factory.train import captioner

    eyes = plan.out / SCORER
    scorer = CLIPModel.from_pretrained(eyes, dtype=torch.float32) if eyes.exists() else None
    model, processor = captioner.train(
        plan.work,
        plan.budget("captioner"),
        seed=plan.seed,
        device=plan.device,
        pictures=plan.pictures,
        pairs=plan.pairs,
        scorer=scorer,
        log=say,
    )
    export_captioner(model, processor, plan.out / CAPTIONER)


def make_scorer(plan: Plan) -> None:
    """Train and export the scorer."""
    from factory.export import export_scorer
    from factory.train import scorer

    model = scorer.train(
        plan.work,
        plan.budget("scorer"),
        seed=plan.seed,
        device=plan.device,
        pictures=plan.pictures,
        pairs=plan.pairs,
        log=say,
    )
    export_scorer(model, plan.out / SCORER)


def make_classifier(plan: Plan) -> None:
    """Train and export the classifier."""
    from factory.train import classifier

    model = classifier.train(
        plan.work,
        plan.budget("classifier"),
        seed=plan.seed,
        device=plan.device,
        pictures=plan.pictures,
        log=say,
    )
    model.save(plan.out / CLASSIFIER)


def make_faces(plan: Plan) -> None:
    """Train and export the detector of drawn faces."""
    from factory.train import faces

    model = faces.train(
        plan.work,
        plan.budget("faces"),
        seed=plan.seed,
        device=plan.device,
        pictures=plan.pictures,
        pairs=plan.pairs,
        log=say,
    )
    model.save(plan.out / FACES)


def make_faceadapter(plan: Plan) -> None:
    """Train and export the IP-Adapter for the exported SDXL-class base and scorer; on the CPU."""
    from factory.export import export_face_adapter
    from factory.sheets import small_png
    from factory.train import faceadapter

    pipe, state = faceadapter.train(
        plan.work, plan.out, plan.budget("faceadapter"), seed=plan.seed, pairs=plan.pairs, log=say
    )
    folder = export_face_adapter(state, plan.out / FACEADAPTER)
    scorer, steps = load_scorer(plan.out / SCORER), plan.sheet_steps
    small_png(faceadapter.sheet(pipe, scorer, 3, steps), plan.work / "faceadapter-sheet.png")
    (folder / "sample.png").write_bytes((plan.work / "faceadapter-sheet.png").read_bytes())
    count = 12 if plan.pairs >= 1000 else 0
    classifier = load_classifier(plan.out / CLASSIFIER)
    figures = [
        faceadapter.measured(
            pipe, scorer, classifier, people=count, scale=scale, pictures=pictures, steps=steps
        )
        for scale, pictures in ((0.6, 1), (1.0, 1), (1.0, 4))
    ]
    known = json.loads((plan.work / "figures.json").read_text())["faceadapter"]
    note_figures(plan.work, faceadapter={**known, "measured": figures})
    say(f"faceadapter done: {figures}")


def finish(plan: Plan, count: int = 200) -> dict[str, Any]:
    """Evaluate what is exported and write the model cards."""
    from factory.cards import write_cards
    from factory.evaluate import main

    results = {name: main(plan.out, count, base=name) for name in BASES if (plan.out / name).exists()}
    note_figures(plan.work, seed=plan.seed, evaluation=results)
    write_cards(plan.out, json.loads((plan.work / "figures.json").read_text()))
    return results


def make_all(plan: Plan) -> None:
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
        step(plan)
    finish(plan)


STEPS: dict[str, Callable[[Plan], Any]] = {
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
