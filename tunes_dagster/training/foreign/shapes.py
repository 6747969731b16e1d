"""The layers of a base as the headers of its files name them: enough to tell whose a LoRA is. Needs no torch.

A base in one file has the names of the original checkpoint, which are not looked at: whoever wants it names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tunes_dagster.core.failures import Failure
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.families.headers import shapes_in
from tunes_dagster.families.originals import Shape
from tunes_dagster.families.specs import families
from tunes_dagster.training.foreign.fitting import Networks, fitted
from tunes_dagster.training.foreign.names import DENOISER, Entry, Reading

# Weights that are of no layer that adapters are put on.
_NOT_LAYERS = ("embedding", "norm", "shared")


def networks_in(entry: BaseModelEntry, folder: Path) -> Networks | None:
    """Return the layers of an installed base, or None when its files do not name them as diffusers does."""
    spec = families().get(entry.family)
    if spec is None or not folder.is_dir():
        return None
    denoiser = getattr(spec.base_class, "denoiser_name", "")
    parts = {DENOISER: denoiser} | {name: name for name in spec.base_class.encoder_names.values()}
    shapes = {network: dict(_layers(folder / name)) for network, name in parts.items() if name}
    shapes = {network: layers for network, layers in shapes.items() if layers}
    if DENOISER not in shapes:
        return None
    return Networks(spec.base_class, denoiser, shapes, None)


def _layers(folder: Path) -> Iterator[tuple[str, Shape]]:
    for file in sorted(folder.glob("*.safetensors")):
        for name, shape in shapes_in(file).items():
            layer = name.removesuffix(".weight")
            named = not any(word in layer.rpartition(".")[2] for word in _NOT_LAYERS)
            if layer != name and len(shape) in (2, 4) and named:
                yield layer, shape


def why_not(
    reading: Reading, entries: Mapping[str, Entry], entry: BaseModelEntry, folder: Path
) -> Failure | None:
    """Return why a file is not for an installed base, or None when it is, or only the loaded base can tell."""
    networks = networks_in(entry, folder)
    if networks is None:
        return None
    try:
        fitted(reading, entries, networks, entry.base_id)
    except Failure as failure:
        return failure
    return None


def looks_like(entries: Mapping[str, Entry]) -> str:
    """Return what a file seems to be made for, for a sentence; empty when it cannot be told."""
    for key, entry in entries.items():
        if "attn2" in key and "to_k" in key and ("down" in key.rpartition(".lora")[2] or "lora_A" in key):
            width = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
            return width.get(entry.shape[-1] if len(entry.shape) == 2 else entry.shape[1], "")
    if any("single_blocks" in key or "single_transformer_blocks" in key for key in entries):
        return "FLUX.1 or FLUX.2"
    return ""
