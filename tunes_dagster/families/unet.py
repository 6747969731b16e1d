"""What the families with a UNet share (SD 1.x, SDXL): noise schedule, loss, VAE scaling, layer names, layouts."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.families.base import Conditioning, Guidance, Latents, LoadedBase, Targets
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.families.diffusers_private import execution_device
from tunes_dagster.families.loading import load_pipeline, settle
from tunes_dagster.families.originals import Original, Shape, unet_originals

if TYPE_CHECKING:
    import torch

# Suffixes of layer names inside the UNet, as diffusers calls them.
_ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)"
_MLP = r"ff\.net\.(0\.proj|2)"
_PROJECTION = r"attentions\.\d+\.(proj_in|proj_out)"
_CONVOLUTION = r"resnets\.\d+\.(conv1|conv2)"
_TARGETS: dict[Targets, tuple[str, ...]] = {
    "attention": (_ATTENTION,),
    "attention+mlp": (_ATTENTION, _MLP),
    "all": (_ATTENTION, _MLP, _PROJECTION, _CONVOLUTION),
}
# Copies of the UNet's first, widest feature map that are alive at the peak of a forward without gradients:
# SDXL at 1024² in bfloat16 is 16,384 positions x 320 channels x 2 bytes x 72 = 0.75 GB a row.
_MAPS_ALIVE = 72


class UnetBase(LoadedBase):
    """A loaded model with a UNet."""

    denoiser_name = "unet"
    guidance: Guidance = "classifier-free"
    # Arguments of the pipeline class when it is loaded.
    load_arguments: dict[str, Any] = {}

    def __init__(self, entry: BaseModelEntry, folder: str | Path, pipeline: Any) -> None:
        import torch
        from diffusers import DDPMScheduler

        self.entry, self.folder, self._pipeline = entry, folder, pipeline
        # A UNet's configuration does not say whether it was distilled to do without guidance; its entry does.
        self.guidance = entry.guidance or self.guidance
        self.device, self.dtype = execution_device(pipeline), pipeline.unet.dtype
        self.denoiser = pipeline.unet
        self.pixels_per_latent = int(pipeline.vae_scale_factor)
        noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.prediction_type = str(noise.config.prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise Failure(
                FailureCode.UNKNOWN_BASE,
                f"The base {entry.base_id!r} predicts {self.prediction_type!r}, which cannot be trained on.",
                "Use a base whose scheduler says epsilon or v_prediction.",
            )
        self.prediction = "v" if self.prediction_type == "v_prediction" else "epsilon"
        self.train_timesteps = int(noise.config.num_train_timesteps)
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        cumulative = noise.alphas_cumprod.to(device=self.device, dtype=wide)
        # Zero terminal SNR gives exactly 0, whose loss weight would be 0 / 0.
        self._alpha = cumulative.sqrt()
        self._sigma = (1 - cumulative).sqrt()
        self._nothing: Conditioning | None = None
        self._snr = (cumulative / (1 - cumulative)).clamp_min(1e-8)

    @staticmethod
    @abstractmethod
    def pipeline_class() -> Any:
        """Return the family's diffusers pipeline class."""

    @classmethod
    def original_names(cls, layers: Mapping[str, Shape]) -> dict[str, Original]:
        """See `LoadedBase.original_names`."""
        return unet_originals(layers)

    @classmethod
    def load(
        cls, entry: BaseModelEntry, folder: str | Path, device: torch.device, dtype: torch.dtype
    ) -> UnetBase:
        """See `LoadedBase.load`."""
        import torch

        pipeline = load_pipeline(cls.pipeline_class(), entry, folder, dtype, **cls.load_arguments)
        settle(pipeline, device)
        # Convolutions and the transformers' permuted views of their outputs are both faster this way round.
        pipeline.unet.to(memory_format=torch.channels_last)
        return cls(entry, folder, pipeline)

    def pipeline(self) -> Any:
        """See `LoadedBase.pipeline`."""
        return self._pipeline

    def stock_arguments(self, text: str, negative: str, guidance: float) -> dict[str, Any]:
        """See `LoadedBase.stock_arguments`."""
        scale = guidance if self.guidance == "classifier-free" else 1.0
        return {"prompt": text, "negative_prompt": negative or None, "guidance_scale": scale}

    def encode_images(self, pixels: torch.Tensor) -> Latents:
        """See `LoadedBase.encode_images`."""
        import torch

        vae = self._pipeline.vae
        with torch.no_grad():
            posterior = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        centre, scale = self._latent_statistics(posterior.mean)
        return Latents((posterior.mean - centre) * scale, posterior.std * scale)

    def _latent_statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (centre, scale) such that (VAE latents - centre) * scale is what the denoiser sees."""
        return like.new_zeros(()), like.new_tensor(self._pipeline.vae.config.scaling_factor)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `LoadedBase.decode`."""
        import torch

        vae = self._pipeline.vae
        latents = latents.to(self.device, vae.dtype)
        centre, scale = self._latent_statistics(latents)
        with torch.no_grad():
            pixels = vae.decode(latents / scale + centre).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    @staticmethod
    def steering(conditioning: Conditioning) -> dict[str, Any]:
        """Return the UNet's arguments for a ControlNet's residuals, which travel as `control.0` …, `control.mid`."""
        if "control.mid" not in conditioning:
            return {}
        count = sum(name.startswith("control.") for name in conditioning) - 1
        return {
            "down_block_additional_residuals": tuple(conditioning[f"control.{i}"] for i in range(count)),
            "mid_block_additional_residual": conditioning["control.mid"],
        }

    @staticmethod
    def shown(conditioning: Conditioning) -> dict[str, Any]:
        """Return the UNet's argument for the pictures an IP-Adapter is shown, which travel as `face.0`, `face.1` …"""
        faces = [value for name, value in conditioning.items() if name.startswith("face.")]
        return {"image_embeds": faces} if faces else {}

    def draw_timesteps(self, uniform: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """See `LoadedBase.draw_timesteps`: uniform over the integers, as Stable Diffusion was trained."""
        return (uniform * self.train_timesteps).long().clamp_(0, self.train_timesteps - 1)

    def _coefficients(self, like: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (-1, *(1,) * (like.ndim - 1))
        return (
            self._alpha[timesteps].to(like.dtype).view(shape),
            self._sigma[timesteps].to(like.dtype).view(shape),
        )

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """See `LoadedBase.add_noise`."""
        alpha, sigma = self._coefficients(latents, timesteps)
        return alpha * latents + sigma * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """See `LoadedBase.target`: the noise, or the velocity of Salimans & Ho 2022 (arXiv 2202.00512)."""
        if self.prediction_type == "epsilon":
            return noise
        alpha, sigma = self._coefficients(latents, timesteps)
        return alpha * noise - sigma * latents

    def loss_weights(self, timesteps: torch.Tensor, min_snr_gamma: torch.Tensor) -> torch.Tensor:
        """See `LoadedBase.loss_weights`: min-SNR-gamma of Hang et al. 2023 (arXiv 2303.09556)."""
        import torch

        snr = self._snr[timesteps].to(min_snr_gamma.dtype)
        clipped = torch.minimum(snr, min_snr_gamma)
        weights = clipped / snr if self.prediction_type == "epsilon" else clipped / (snr + 1)
        return torch.where(min_snr_gamma > 0, weights, torch.ones_like(weights))

    def adapter_targets(self, targets: Targets) -> list[str]:
        """See `LoadedBase.adapter_targets`."""
        from tunes_dagster.training.adapters import base_layer_names

        pattern = re.compile(rf"(^|\.)({'|'.join(_TARGETS[targets])})$")
        return [name for name in base_layer_names(self.denoiser) if pattern.search(name)]

    def kohya_layout(self, adapter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `LoadedBase.kohya_layout`.

        The names come from diffusers; its alpha is an integer tensor, which kohya's own loader multiplies into
        half precision weights, so it is made a float here. A DoRA's magnitudes become the `dora_scale` with which
        ComfyUI and Forge render what was trained.
        """
        import torch
        from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

        from tunes_dagster.training.dora import kohya_scales
        from tunes_dagster.training.names import MAGNITUDE

        converted = convert_state_dict_to_kohya(
            {key: value for key, value in adapter.items() if MAGNITUDE not in key}
        )
        scales = kohya_scales(self.denoiser, adapter)
        return scales | {
            key: torch.tensor(float(value)) if key.endswith(".alpha") else value.contiguous()
            for key, value in converted.items()
        }

    def forward_bytes(self, width: int, height: int) -> int:
        """See `LoadedBase.forward_bytes`."""
        _, rows, columns = self.latent_shape(width, height)
        widest = int(self.denoiser.config.block_out_channels[0])
        return rows * columns * widest * self.dtype.itemsize * _MAPS_ALIVE
