"""Doubles of the Stable Diffusion bases, see `doubles`: nothing learned, but every path runs on them in seconds."""

from __future__ import annotations

from pathlib import Path

from tests.support.doubles import small, write_double


def tiny_vae():
    """Return an untrained VAE of SDXL."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(small("sdxl", "vae"))


def make_random_sdxl(folder: Path, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write a double of SDXL 1.0 (about 2M parameters, 64x64 pixels).

    Args:
        folder: Where to; returned.
        prediction_type: Of the scheduler; the released one's is `epsilon`.
        seed: Decides the weights.
    """
    return write_double("sdxl", folder, seed, scheduler={"prediction_type": prediction_type})


def make_random_sd15(folder: Path, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write a double of SD 1.5 (about 2M parameters, 64x64 pixels).

    Args:
        folder: Where to; returned.
        prediction_type: Of the scheduler; the released one says none, which is `epsilon`.
        seed: Decides the weights.
    """
    return write_double("sd15", folder, seed, scheduler={"prediction_type": prediction_type})
