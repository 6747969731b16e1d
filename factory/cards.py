"""Model cards: one README.md per weights folder, written from the measured figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunes_dagster.tiny import (
    CAPTIONER,
    CLASSIFIER,
    FACEADAPTER,
    FACES,
    FLUX,
    FLUX_SEQUENCE,
    SCORER,
    SDXL,
    UPSCALER,
)

DATA = (
    "Data: the drawn world of `tunes_dagster/tiny/world` (people, pets and things in scenes, drawn by code, every "
    "picture with truthful captions); nothing else. No photograph and no outside model was used."
)


def write_cards(weights: Path, figures: dict[str, Any]) -> None:
    """Write `README.md` into each model's folder from the figures that training and evaluation noted."""
    cards = {
        SDXL: _base,
        FLUX: _flux,
        CAPTIONER: _captioner,
        SCORER: _scorer,
        CLASSIFIER: _classifier,
        FACES: _faces,
        FACEADAPTER: _faceadapter,
        UPSCALER: _upscaler,
    }
    for name, make in cards.items():
        if (weights / name).exists():
            (weights / name / "README.md").write_text(make(figures, _megabytes(weights / name)))


def _megabytes(folder: Path) -> float:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6


def _card(title: str, about: str, lines: list[str], picture: bool = False) -> str:
    body = "\n".join(f"- {line}" for line in lines)
    return f"# {title}\n\n{about}\n\n{body}\n" + ("\n![samples](sample.png)\n" if picture else "")


def _trained(figures: dict[str, Any]) -> str:
    return f"{figures.get('steps', '?')} steps in {figures.get('minutes', '?')} minutes of wall time on two CPU cores"


def _base(figures: dict[str, Any], size: float) -> str:
    vae, more, unet = (figures.get(key, {}) for key in ("vae", "decoder", "unet"))
    lines = [
        DATA,
        f"Seed {figures.get('seed', 0)}; fp16 safetensors, {size:.1f} MB.",
        f"VAE: 8x, 8 latent channels, widths {vae.get('channels')}; {_trained(vae)}; "
        f"{vae.get('psnr_db')} dB PSNR on 400 held-out pictures; then the decoder alone: {_trained(more)}; "
        f"{more.get('psnr_db')} dB.",
        f"UNet (widths {unet.get('channels')}) and both text encoders together, v-prediction, batch "
        f"{unet.get('batch')}: {_trained(unet)}; held-out v-MSE {unet.get('held_out_v_mse')}.",
        "Pseudo-names: 20 % of the captions call the subject by an invented word; 300 such words, one fixed look each.",
        *unet.get("history", []),
        _obeyed(figures, SDXL, "guidance 4"),
        "Again from nothing: `python -m factory make base`.",
    ]
    about = (
        "A text-to-image base of the SDXL pipeline class, 128 x 128, loaded by "
        "`StableDiffusionXLPipeline.from_pretrained`. It draws cartoon people, pets and things; it is made for tests, "
        "demos and learning, offline, on a CPU."
    )
    return _card("Tiny SDXL-class base", about, lines, picture=True)


def _flux(figures: dict[str, Any], size: float) -> str:
    more, own = figures.get("decoder", {}), figures.get("flux", {})
    double, single = own.get("layers", ("?", "?"))
    taught = (
        "Taught by the SDXL-class base at noise shares above 0.5 (its predictions were the target there), by the "
        "pictures themselves below."
    )
    lines = [
        DATA,
        f"Seed {figures.get('seed', 0)}; fp16 safetensors, {size:.1f} MB.",
        f"Transformer (width {own.get('width')}, {double} double and {single} single layers, 64 patches of a picture, "
        f"rotary positions), T5 and CLIP text encoders together; rectified flow, logit-normal noise shares with shift "
        f"3; Muon for the inner matrices, AdamW for the rest; batch {own.get('batch')}: {_trained(own)}; held-out "
        f"velocity MSE {own.get('held_out_velocity_mse')}.",
        f"VAE: that of the SDXL-class base ({more.get('psnr_db')} dB PSNR on 400 held-out pictures), `shift_factor` 0.",
        'Not distilled: ask for true guidance (`true_cfg_scale=4`, `negative_prompt=""`) and '
        f"`max_sequence_length={FLUX_SEQUENCE}`, the length it was trained with.",
        "Pseudo-names as in the SDXL-class base. The T5 tokenizer knows whole words, and letters for all others.",
        _obeyed(figures, FLUX, "true guidance 4"),
        *([taught] if own.get("taught") else []),
        *own.get("history", []),
        "Again from nothing: `python -m factory make base`, then `make flux`.",
    ]
    about = (
        "A text-to-image base of the FLUX pipeline class, 128 x 128, loaded by `FluxPipeline.from_pretrained`. It "
        "draws cartoon people, pets and things; it is made for tests, demos and learning, offline, on a CPU."
    )
    return _card("Tiny FLUX-class base", about, lines, picture=True)


def _obeyed(figures: dict[str, Any], base: str, guidance: str) -> str:
    result = figures.get("evaluation", {}).get(base, {})
    return (
        f"Prompts obeyed (core attributes of {result.get('prompts')} held-out prompts, {guidance}, 25 steps): real "
        f"pictures {result.get('real')}, renders {result.get('renders')}, chance {result.get('chance')}."
    )


def _captioner(figures: dict[str, Any], size: float) -> str:
    own = figures.get("captioner", {})
    lines = [
        DATA,
        f"Seed {figures.get('seed', 0)}; fp16, {size:.1f} MB; {_trained(own)}, batch {own.get('batch')}.",
        f"Of 200 held-out pictures the caption names rightly: `{json.dumps(own.get('named_rightly', {}))}`.",
        "Again from nothing: `python -m factory make captioner`.",
    ]
    return _card("Tiny captioner", "A `BlipForConditionalGeneration` for the drawn world.", lines)


def _scorer(figures: dict[str, Any], size: float) -> str:
    own = figures.get("scorer", {})
    lines = [
        DATA
        + " For likeness also looks with odd features (any hair colour, stars, spots); the held-out subjects "
        "are not among them.",
        f"Seed {figures.get('seed', 0)}; fp16, {size:.1f} MB; {_trained(own)}, batch {own.get('batch')}.",
        f"Held-out subjects: mean cosine {own.get('same_subject_cosine')} within a subject, "
        f"{own.get('other_subject_cosine')} between subjects; nearest subject right for "
        f"{own.get('nearest_subject_accuracy')} of the drawings.",
        "Again from nothing: `python -m factory make scorer`.",
    ]
    return _card(
        "Tiny scorer", "A `CLIPModel` for the drawn world: likeness of pictures, fit of texts.", lines
    )


def _classifier(figures: dict[str, Any], size: float) -> str:
    own = figures.get("classifier", {})
    lines = [
        DATA,
        f"Seed {figures.get('seed', 0)}; fp16, {size:.1f} MB; {_trained(own)}, batch {own.get('batch')}.",
        f"Accuracy per attribute on 1,000 held-out pictures: `{json.dumps(own.get('accuracy', {}))}`.",
        "Again from nothing: `python -m factory make classifier`.",
    ]
    return _card(
        "Attribute classifier", "A small convolutional net, one head per attribute of the drawn world.", lines
    )


def _faces(figures: dict[str, Any], size: float) -> str:
    own = figures.get("faces", {})
    lines = [
        DATA,
        f"Seed {figures.get('seed', 0)}; fp16, {1000 * size:.0f} KB; {_trained(own)}, batch {own.get('batch')}.",
        *(
            f"{title}: `{json.dumps(own.get(key, {}))}` (intersection over union 0.5; mean error of the height)."
            for key, title in (
                ("pictures", "Held-out pictures"),
                ("subjects", "Held-out subjects"),
                ("collages", "Collages of held-out pictures, 96 to 1,024 pixels"),
            )
        ),
        "Again from nothing: `python -m factory make faces`.",
    ]
    return _card(
        "Detector of drawn faces",
        "A fully convolutional net that finds the faces of drawn people and pets; computed with NumPy.",
        lines,
    )


def _upscaler(figures: dict[str, Any], size: float) -> str:
    vae, own = figures.get("upscaler_vae", {}), figures.get("upscaler", {})
    lines = [
        DATA
        + " Drawn large, as crops reduced to a quarter by one of four filters, some after the base's VAE.",
        f"Seed {figures.get('seed', 0)}; fp16 safetensors, {size:.1f} MB.",
        f"VAE: 4x, 8 latent channels, widths {vae.get('channels')}: {vae.get('steps')} steps in {vae.get('minutes')} "
        f"minutes of one CPU core; {vae.get('psnr_db')} dB PSNR.",
        f"UNet (widths {own.get('channels')}) and decoder together, v-prediction, the last moment all noise: "
        f"{own.get('steps')} steps in {own.get('minutes')} minutes of one CPU core; {own.get('psnr_db')} dB PSNR on "
        f"held-out drawings in one step, Lanczos {own.get('lanczos_psnr_db')} dB.",
        "One step without guidance draws the mean of what fits; more steps are further from the large picture.",
        "Again: `python -m factory make upscaler --start tunes_dagster/tiny/weights`.",
    ]
    about = (
        "Makes pictures of the drawn world four times as wide and high, loaded by "
        "`StableDiffusionUpscalePipeline.from_pretrained`: `num_inference_steps=1, guidance_scale=1`."
    )
    return _card("Tiny x4 upscaler", about, lines)


def _faceadapter(figures: dict[str, Any], size: float) -> str:
    own = figures.get("faceadapter", {})
    rows = own.get("measured", [])
    told = [
        f"{row['pictures']} picture{'s' if row['pictures'] > 1 else ''} shown at scale {row['scale']}: likeness "
        f"{row['likeness']} (without the adapter {row['without']}, real pictures {row['real']}), the likest of "
        f"{row['people']} people in {row['likest']:.0%}, scene right in {row['place']:.0%} (without "
        f"{row['place_without']:.0%})."
        for row in rows
    ]
    lines = [
        DATA
        + " Two pictures each of people, many with odd features; the held-out subjects are not among them.",
        f"Seed {figures.get('seed', 0)}; fp16, {size:.1f} MB; {own.get('steps', '?')} steps on one CPU core, batch "
        f"{own.get('batch')}.",
        *told,
        "Likeness is measured by the scorer, whose embedding is also what the adapter is shown.",
        "Again from nothing: `python -m factory make faceadapter` beside a finished base and scorer.",
    ]
    about = (
        "An IP-Adapter (`ImageProjection`, four tokens) for the tiny SDXL-class base, read by `load_ip_adapter(folder, "
        'subfolder="", weight_name=…, image_encoder_folder=None)`. Its image encoder is the vision tower of the '
        "tiny scorer. It is made for faces of drawn people: the first column of the sheet was shown, then come renders "
        "at scale 0, 0.6 and 1."
    )
    return _card("IP-Adapter of the tiny SDXL-class base", about, lines, picture=True)
