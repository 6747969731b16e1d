"""One random tiny base of each pipeline class, and how its stock pipeline is called, for tests of all families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.tiny_bases import make_random_sd15, make_random_sdxl
from tests.support.tiny_flux import make_random_flux, make_random_flux2, make_random_klein
from tunes_dagster.families.catalog import BaseModelEntry

TOKENS = 48


@dataclass(frozen=True)
class Case:
    """A tiny base.

    Attributes:
        family: Of the catalog.
        pipeline: Name of its stock class in diffusers.
        make: Writes it to a folder.
        options: Arguments of `make`.
        entry: Fields of its catalog entry.
        call: (prompt, negative prompt, guidance scale) -> arguments of the stock call, in the words of its docs.
        negatives: Whether it takes negative prompts.
    """

    family: str
    pipeline: str
    make: Callable[..., Path]
    call: Callable[[str, str, float], dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    entry: dict[str, Any] = field(default_factory=dict)
    negatives: bool = False


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
    "sd15": Case("sd15", "StableDiffusionPipeline", make_random_sd15, _stable_diffusion, negatives=True),
    "sdxl": Case("sdxl", "StableDiffusionXLPipeline", make_random_sdxl, _stable_diffusion, negatives=True),
    "flux": Case(
        "flux",
        "FluxPipeline",
        make_random_flux,
        _true_guidance,
        {"shift": 1.5},
        _SHORT | {"guidance": "classifier-free"},
        negatives=True,
    ),
    "flux-dev": Case(
        "flux",
        "FluxPipeline",
        make_random_flux,
        _embedded_guidance,
        {"guidance_embeds": True, "dynamic_shift": True},
        _SHORT,
    ),
    "flux-schnell": Case("flux", "FluxPipeline", make_random_flux, _embedded_guidance, {}, _SHORT),
    "flux2-dev": Case("flux2", "Flux2Pipeline", make_random_flux2, _embedded_guidance, {}, _SHORT),
    "flux2-klein": Case(
        "flux2", "Flux2KleinPipeline", make_random_klein, _embedded_guidance, {"distilled": True}, _SHORT
    ),
    "flux2-klein-base": Case(
        "flux2", "Flux2KleinPipeline", make_random_klein, _embedded_guidance, {}, _SHORT
    ),
}


def entry_of(name: str, folder: Path) -> BaseModelEntry:
    """Return a catalog entry for a case that lies in a folder."""
    case = CASES[name]
    return BaseModelEntry(
        branch=f"random-{name}",
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
    case.make(folder, **case.options)
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
