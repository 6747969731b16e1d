"""What tests need to set up an installation: a catalog on the random base, and pictures."""

from __future__ import annotations

import random
import re
from pathlib import Path

import dagster as dg
import yaml
from PIL import Image, ImageDraw

# Enough to train, resume and render through, in a second or two.
QUICK = {
    "steps": 12,
    "rank": 4,
    "batch_size": 1,
    "resolution": 64,
    "prior_prompts": 2,
    "warmup_steps": 2,
    "checkpoint_every": 4,
    "targets": "attention",
}


def write_catalog(path: Path, base_folder: Path) -> Path:
    """Write an overlay that puts random bases in the place of the shipped ones.

    Args:
        path: Of the overlay.
        base_folder: A base of the SDXL class, or a folder that only looks like one where nothing is loaded.
    """
    common = {
        "licence": "none",
        "native_size": 64,
        "max_pixels": 65536,
        "memory_gb": 1,
        "token": "ohwx",
        "training": {**QUICK, "learning_rate": 0.001, "min_snr_gamma": 0, "prior_weight": 1.0},
        "rendering": {"steps": 3, "guidance_scale": 2.0, "width": 64, "height": 64, "scheduler": "euler"},
    }
    entries = {
        "tiny-sdxl": {
            **common,
            "family": "sdxl",
            "repo_id": str(base_folder),
            "embedded": "tiny-sdxl",
            "aliases": ["tiny", "fast", "embedded"],
        },
        "tiny-flux": {
            **common,
            "family": "flux",
            "repo_id": str(_flux_beside(base_folder)),
            "embedded": "tiny-flux",
            "guidance": "classifier-free",
            "max_sequence_length": 48,
        },
    }
    path.write_text(yaml.safe_dump(entries))
    return path


def _flux_beside(base_folder: Path) -> Path:
    """Return a random base of the FLUX class beside a real one, made once."""
    from tests.support.doubles import write_double

    folder = base_folder.with_name("random-flux")
    if not (base_folder / "unet").is_dir():
        return base_folder
    if not (folder / "model_index.json").is_file():
        write_double("flux1-schnell", folder)
    return folder


def odd_keys(instance: dg.DagsterInstance) -> set[str]:
    """Return the keys of metadata of all that runs materialized, checked or failed with that are not snake_case."""
    found: set[str] = set()
    for run in instance.get_runs():
        for entry in instance.all_logs(run.run_id):
            event = entry.dagster_event
            data = event.event_specific_data if event is not None else None
            for holder in (
                getattr(data, "materialization", None),
                data,
                getattr(data, "user_failure_data", None),
            ):
                found |= set(getattr(holder, "metadata", None) or {})
    return {key for key in found if not re.fullmatch(r"[a-z0-9_]+|.*:init_\w+|dagster/.*|__.*", key)}


def draw_pictures(folder: Path, count: int = 5, seed: int = 0) -> Path:
    """Draw pictures that intake accepts and that differ from each other."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    for number in range(count):
        image = Image.effect_noise((200, 160 + 20 * (number % 3)), 90).convert("RGB")
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            x, y = chance.randrange(180), chance.randrange(150)
            colour = tuple(chance.randrange(256) for _ in range(3))
            draw.ellipse((x, y, x + chance.randrange(20, 90), y + chance.randrange(20, 90)), fill=colour)
        image.save(folder / f"picture-{number}.png")
    return folder
