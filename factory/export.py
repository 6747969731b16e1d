"""Writes trained models as the fp16 folders that ship: stock diffusers and transformers layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def export_base(base: Any, vae: Any, folder: Path) -> Path:
    """Save UNet, VAE, text encoders, tokenizers and scheduler for `StableDiffusionXLPipeline.from_pretrained`.

    The given modules are turned to fp16 in place.
    """
    import torch

    from factory.train.unet import pipeline

    pipe = pipeline(base, vae)
    pipe.to(dtype=torch.float16)
    _contiguous(pipe.unet, pipe.vae)
    return _replace(folder, lambda part: pipe.save_pretrained(part, safe_serialization=True))


def export_flux(base: Any, vae: Any, folder: Path) -> Path:
    """Save transformer, VAE, text encoders, tokenizers and scheduler for `FluxPipeline.from_pretrained`.

    The given modules are turned to fp16 in place. FluxPipeline subtracts the VAE's `shift_factor`: it becomes 0.
    """
    import torch

    from factory.train.flux import pipeline

    vae.register_to_config(shift_factor=0.0)
    pipe = pipeline(base, vae)
    pipe.to(dtype=torch.float16)
    _contiguous(pipe.transformer, pipe.vae)
    return _replace(folder, lambda part: pipe.save_pretrained(part, safe_serialization=True))


def export_student(pipe: Any, folder: Path) -> Path:
    """Save the base's four-step sibling, whole, for `StableDiffusionXLPipeline.from_pretrained`.

    The given modules are turned to fp16 in place.
    """
    import torch

    pipe.to(dtype=torch.float16)
    _contiguous(pipe.unet, pipe.vae)
    return _replace(folder, lambda part: pipe.save_pretrained(part, safe_serialization=True))


def export_upscaler(pipe: Any, folder: Path) -> Path:
    """Save the upscaler, whole, for `StableDiffusionUpscalePipeline.from_pretrained`.

    The given modules are turned to fp16 in place.
    """
    import torch

    pipe.to(dtype=torch.float16)
    _contiguous(pipe.unet, pipe.vae)
    return _replace(folder, lambda part: pipe.save_pretrained(part, safe_serialization=True))


def export_captioner(model: Any, processor: Any, folder: Path) -> Path:
    """Save the BLIP model and its processor."""
    return _replace(
        folder, lambda part: (model.half().save_pretrained(part), processor.save_pretrained(part))
    )


def export_scorer(model: Any, folder: Path) -> Path:
    """Save the CLIP model and its processor (Pillow image processor, scaling as `tiny.images` does)."""
    from PIL.Image import Resampling
    from transformers import CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from factory.train.scorer import MEAN, STD
    from factory.train.text import build_tokenizer

    images = CLIPImageProcessorPil(
        size={"shortest_edge": 128},
        crop_size={"height": 128, "width": 128},
        image_mean=MEAN,
        image_std=STD,
        resample=Resampling.LANCZOS,
    )
    processor = CLIPProcessor(images, build_tokenizer())
    return _replace(
        folder, lambda part: (model.half().save_pretrained(part), processor.save_pretrained(part))
    )


def export_face_adapter(state: Any, folder: Path) -> Path:
    """Save an adapter in the layout of IP-Adapter files, for `load_ip_adapter`; see `train.faceadapter.file_layout`."""
    from safetensors.torch import save_file

    from tunes_dagster.tiny import FACEADAPTER_FILE

    half = {name: value.detach().half().contiguous() for name, value in state.items()}
    return _replace(folder, lambda part: save_file(half, part / FACEADAPTER_FILE, {"format": "pt"}))


def _contiguous(*modules: Any) -> None:
    """Undo channels_last, so that files and shapes are as everyone expects."""
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.contiguous()


def _replace(folder: Path, write: Any) -> Path:
    """Write into a fresh folder beside `folder`, then put it in place; README and pictures are kept."""
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    write(part)
    for config in part.rglob("config.json"):
        _forget_origin(config)
    if folder.exists():
        for kept in ("README.md", "sample.png"):
            if (folder / kept).exists():
                shutil.copy2(folder / kept, part / kept)
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _forget_origin(config: Path) -> None:
    """Leave out where the part was loaded from: a folder of the machine that it was made on."""
    known = json.loads(config.read_text())
    if known.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
