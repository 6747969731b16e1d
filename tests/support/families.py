"""One random tiny base of each pipeline class, and how its stock pipeline is called, for tests of all families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.doubles import write_double
from tunes_dagster.families.catalog import BaseModelEntry

TOKENS = 48


@dataclass(frozen=True)
class Case:
    """A tiny base.

    Attributes:
        family: Of the catalog.
        pipeline: Name of its stock class in diffusers.
        double: Name of the released base, see `doubles`.
        changed: What it differs in on purpose, see `write_double`.
        entry: Fields of its catalog entry.
        call: (prompt, negative prompt, guidance scale) -> arguments of the stock call, in the words of its docs.
        negatives: Whether it takes negative prompts.
        lora_strength: Of random LoRAs on all layers that change pictures, but do not make the network chaotic: with
            0.8, a stock SD 1.5 makes pictures 37 dB apart from noise that differs by a millionth.
    """

    family: str
    pipeline: str
    double: str
    call: Callable[[str, str, float], dict[str, Any]]
    changed: dict[str, Any] = field(default_factory=dict)
    entry: dict[str, Any] = field(default_factory=dict)
    negatives: bool = False
    lora_strength: float = 0.8


def _stable_diffusion(text: str, negative: str, scale: float) -> dict[str, Any]:
    return {"prompt": text, "negative_prompt": negative or None, "guidance_scale": scale}


def _true_guidance(text: str, negative: str, scale: float) -> dict[str, Any]:
    return {
        "prompt": text,
        "negative_prompt": negative,
        "true_cfg_scale": scale,
        "guidance_scale": 1.0,
        "max_sequence_length": TOKENS,
    }


def _embedded_guidance(text: str, negative: str, scale: float) -> dict[str, Any]:
    return {"prompt": text, "guidance_scale": scale, "max_sequence_length": TOKENS}


_SHORT = {"max_sequence_length": TOKENS}
CASES = {
    "sd15": Case(
        "sd15", "StableDiffusionPipeline", "sd15", _stable_diffusion, negatives=True, lora_strength=0.4
    ),
    "realistic-vision": Case(
        "sd15",
        "StableDiffusionPipeline",
        "realistic-vision",
        _stable_diffusion,
        negatives=True,
        lora_strength=0.4,
    ),
    "sdxl": Case("sdxl", "StableDiffusionXLPipeline", "sdxl", _stable_diffusion, negatives=True),
    "sdxl-fine-tune": Case(
        "sdxl", "StableDiffusionXLPipeline", "sdxl-fine-tune", _stable_diffusion, negatives=True
    ),
    # As nobody released it: not distilled, like the one that is shipped.
    "flux": Case(
        "flux",
        "FluxPipeline",
        "flux1-schnell",
        _true_guidance,
        {"scheduler": {"shift": 1.5}},
        _SHORT | {"guidance": "classifier-free"},
        negatives=True,
    ),
    "flux-dev": Case("flux", "FluxPipeline", "flux1-dev", _embedded_guidance, {}, _SHORT),
    "flux-schnell": Case("flux", "FluxPipeline", "flux1-schnell", _embedded_guidance, {}, _SHORT),
    "flux2-dev": Case("flux2", "Flux2Pipeline", "flux2-dev", _embedded_guidance, {}, _SHORT),
    "flux2-klein": Case("flux2", "Flux2KleinPipeline", "flux2-klein-4b", _embedded_guidance, {}, _SHORT),
    "flux2-klein-base": Case(
        "flux2", "Flux2KleinPipeline", "flux2-klein-base-4b", _embedded_guidance, {}, _SHORT
    ),
}


def entry_of(name: str, folder: Path) -> BaseModelEntry:
    """Return a catalog entry for a case that lies in a folder."""
    case = CASES[name]
    return BaseModelEntry(
        base_id=f"random-{name}",
        family=case.family,
        repo_id=str(folder),
        licence="none",
        native_size=64,
        max_pixels=128 * 128,
        memory_gb=1,
        embedded=f"random-{name}",
        token="ohwx",
        **case.entry,
    )


def make_base(name: str, folder: Path, dtype: str = "float32"):
    """Write a case to a folder and load it."""
    from tunes_dagster.families.base import load_family

    case = CASES[name]
    write_double(case.double, folder, **case.changed)
    return load_family(entry_of(name, folder), folder, dtype=dtype)


def stock_pipeline(name: str, folder: Path):
    """Load a case the usual way, with nothing of ours."""
    import diffusers

    pipeline = getattr(diffusers, CASES[name].pipeline).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def fresh_pipeline(base):
    """Load a second, independent stock pipeline of a loaded base."""
    from tunes_dagster.families.base import load_family

    return load_family(base.entry, base.folder, base.device, base.dtype).pipeline()


def random_lora(base, seed: int, rank: int = 4, targets: str = "all", strength: float = 0.4):
    """Return a LoRA in peft's format that changes pictures visibly."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    modules = dict(base.denoiser.named_modules())
    state = {}
    for name in base.adapter_targets(targets):
        weight = modules[name].weight
        a = torch.randn(rank, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
        b = torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2), generator=generator)
        state[f"{base.denoiser_name}.{name}.lora_A.weight"] = a
        state[f"{base.denoiser_name}.{name}.lora_B.weight"] = b * strength
    return state
