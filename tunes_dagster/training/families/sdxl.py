"""The SDXL family: everything that `StableDiffusionXLPipeline` loads, from the shipped base to full SDXL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.catalog import BaseModelEntry
from tunes_dagster.failures import Failure, FailureCode
from tunes_dagster.training.families.base import Conditioning, Latents, LoadedBase, Targets

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


def load_stock_pipeline(folder: str | Path, revision: str | None, dtype: Any) -> Any:
    """Load a `StableDiffusionXLPipeline` from a folder, a single file or a hub id.

    Raises:
        Failure: `BASE_NOT_INSTALLED` when that is not possible.
    """
    from diffusers import StableDiffusionXLPipeline

    try:
        if str(folder).endswith((".safetensors", ".ckpt")):
            return StableDiffusionXLPipeline.from_single_file(str(folder), dtype=dtype)
        return StableDiffusionXLPipeline.from_pretrained(
            str(folder), revision=None if Path(folder).exists() else revision, dtype=dtype,
            add_watermarker=False,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise Failure(
            FailureCode.BASE_NOT_INSTALLED,
            f"No model of the SDXL class can be loaded from {folder}: {str(error).splitlines()[0]}",
            "Run `tunes bases list` to see what is installed and `tunes bases pull` to install it.",
        ) from error


class SdxlBase(LoadedBase):
    """A loaded model of the SDXL class."""

    denoiser_name = "unet"

    def __init__(self, entry: BaseModelEntry, folder: str | Path, pipeline: Any) -> None:
        import torch
        from diffusers import DDPMScheduler

        self.entry, self.folder, self._pipeline = entry, folder, pipeline
        self.device, self.dtype = pipeline.unet.device, pipeline.unet.dtype
        self.denoiser = pipeline.unet
        self.pixels_per_latent = int(pipeline.vae_scale_factor)
        noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.prediction_type = str(noise.config.prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise Failure(
                FailureCode.UNKNOWN_BASE,
                f"The base {entry.branch!r} predicts {self.prediction_type!r}, which cannot be trained on.",
                "Use a base whose scheduler says epsilon or v_prediction.",
            )
        self.train_timesteps = int(noise.config.num_train_timesteps)
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        cumulative = noise.alphas_cumprod.to(device=self.device, dtype=wide)
        # Zero terminal SNR gives exactly 0, whose loss weight would be 0 / 0.
        self._alpha = cumulative.sqrt()
        self._sigma = (1 - cumulative).sqrt()
        self._time_ids: dict[tuple[int, int], torch.Tensor] = {}
        self._nothing: Conditioning | None = None
        self._snr = (cumulative / (1 - cumulative)).clamp_min(1e-8)

    @classmethod
    def load(
        cls, entry: BaseModelEntry, folder: str | Path, device: torch.device, dtype: torch.dtype
    ) -> SdxlBase:
        """See `LoadedBase.load`."""
        import torch

        pipeline = load_stock_pipeline(folder, entry.revision, dtype)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(device)
        # The original SDXL VAE overflows in half precision; its config says so.
        if pipeline.vae.config.force_upcast and dtype in (torch.float16, torch.bfloat16):
            pipeline.vae.to(torch.float32)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            part.requires_grad_(False).eval()
        # Convolutions and the transformers' permuted views of their outputs are both faster this way round.
        pipeline.unet.to(memory_format=torch.channels_last)
        return cls(entry, folder, pipeline)

    def pipeline(self) -> Any:
        """See `LoadedBase.pipeline`."""
        return self._pipeline

    def load_fresh_pipeline(self) -> Any:
        """See `LoadedBase.load_fresh_pipeline`."""
        pipeline = load_stock_pipeline(self.folder, self.entry.revision, self.dtype).to(self.device)
        if pipeline.vae.dtype != self._pipeline.vae.dtype:
            pipeline.vae.to(self._pipeline.vae.dtype)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def parts(self) -> dict[str, torch.nn.Module]:
        """See `LoadedBase.parts`."""
        import torch

        one, two = self._pipeline.text_encoder, self._pipeline.text_encoder_2
        return {
            "vae": self._pipeline.vae,
            "text": torch.nn.ModuleList([one, two]),
            "denoiser": self.denoiser,
        }

    def encode_images(self, pixels: torch.Tensor) -> Latents:
        """See `LoadedBase.encode_images`."""
        import torch

        vae = self._pipeline.vae
        with torch.no_grad():
            posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        centre, scale = self._latent_statistics(posterior.mean)
        return Latents((posterior.mean - centre) * scale, posterior.std * scale)

    def _latent_statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (centre, scale) such that (VAE latents - centre) * scale is what the denoiser sees."""
        config = self._pipeline.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or std is None:
            return like.new_zeros(()), like.new_tensor(config.scaling_factor)
        shape = (1, -1, 1, 1)
        return like.new_tensor(mean).view(shape), config.scaling_factor / like.new_tensor(std).view(shape)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `LoadedBase.decode`."""
        import torch

        vae = self._pipeline.vae
        latents = latents.to(vae.device, vae.dtype)
        centre, scale = self._latent_statistics(latents)
        with torch.no_grad():
            pixels = vae.decode(latents / scale + centre).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        """See `LoadedBase.encode_text`; hidden states [rows, 77, d] and the pooled projection [rows, p]."""
        import torch

        with torch.no_grad():
            hidden, _, pooled, _ = self._pipeline.encode_prompt(
                list(texts), device=self.device, do_classifier_free_guidance=False
            )
        return {"hidden": hidden.to(self.dtype), "pooled": pooled.to(self.dtype)}

    def text_left_out(self, text: str) -> str:
        """See `LoadedBase.text_left_out`; both encoders read 77 tokens, two of which mark start and end."""
        tokenizer = self._pipeline.tokenizer_2
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        return str(tokenizer.decode(tokens[tokenizer.model_max_length - 2 :])).strip()

    def no_text(self, rows: int) -> Conditioning:
        """See `LoadedBase.no_text`: zeros, or the empty caption where the pipeline's config says so."""
        import torch

        if self._nothing is None:
            # Renderers call this in inference mode, whose tensors training could not use later.
            with torch.inference_mode(False):
                empty = self.encode_text([""])
                if self._pipeline.config.force_zeros_for_empty_prompt:
                    empty = {name: torch.zeros_like(value) for name, value in empty.items()}
            self._nothing = empty
        return {name: value.expand(rows, *value.shape[1:]).clone() for name, value in self._nothing.items()}

    def with_size(self, text: Conditioning, width: int, height: int) -> Conditioning:
        """See `LoadedBase.with_size`.

        Original and target size are the picture's own and the crop is (0, 0), as in the stock pipeline's
        defaults: a tune is trained under the micro-conditioning it will be rendered with.
        """
        import torch

        if (width, height) not in self._time_ids:
            # Renderers call this in inference mode, whose tensors training could not use later.
            with torch.inference_mode(False):
                ids = torch.tensor([height, width, 0, 0, height, width], device=self.device, dtype=self.dtype)
            self._time_ids[width, height] = ids
        return {**text, "time_ids": self._time_ids[width, height].expand(len(text["pooled"]), 6)}

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """See `LoadedBase.predict`."""
        added = {"text_embeds": conditioning["pooled"], "time_ids": conditioning["time_ids"]}
        return self.denoiser(
            noisy, timesteps, encoder_hidden_states=conditioning["hidden"], added_cond_kwargs=added,
            return_dict=False,
        )[0]  # fmt: skip

    def draw_timesteps(self, uniform: torch.Tensor) -> torch.Tensor:
        """See `LoadedBase.draw_timesteps`: uniform over the integers, as SDXL was trained."""
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
