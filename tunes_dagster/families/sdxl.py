"""The SDXL family: everything that `StableDiffusionXLPipeline` loads, from the shipped base to full SDXL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.families.base import MASK, Conditioning
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.families.specs import FamilySpec
from tunes_dagster.families.unet import UnetBase

if TYPE_CHECKING:
    import torch


class SdxlBase(UnetBase):
    """A loaded model of the SDXL class."""

    architecture = "stable-diffusion-xl-v1-base/lora"
    kohya_name = "sdxl_base_v1-0"
    implementation = "https://github.com/Stability-AI/generative-models"
    load_arguments = {"add_watermarker": False}

    def __init__(self, entry: BaseModelEntry, folder: str | Path, pipeline: Any) -> None:
        super().__init__(entry, folder, pipeline)
        self._time_ids: dict[tuple[int, int], torch.Tensor] = {}

    @staticmethod
    def pipeline_class() -> Any:
        """See `UnetBase.pipeline_class`."""
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline

    def parts(self) -> dict[str, torch.nn.Module]:
        """See `LoadedBase.parts`."""
        import torch

        one, two = self._pipeline.text_encoder, self._pipeline.text_encoder_2
        return {
            "vae": self._pipeline.vae,
            "text": torch.nn.ModuleList([one, two]),
            "denoiser": self.denoiser,
        }

    def _latent_statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (centre, scale) such that (VAE latents - centre) * scale is what the denoiser sees."""
        config = self._pipeline.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or std is None:
            return like.new_zeros(()), like.new_tensor(config.scaling_factor)
        shape = (1, -1, 1, 1)
        return like.new_tensor(mean).view(shape), config.scaling_factor / like.new_tensor(std).view(shape)

    def encode_text_with_gradients(self, texts: Sequence[str]) -> Conditioning:
        """See `LoadedBase.encode_text_with_gradients`; hidden states [rows, 77, d], pooled projection [rows, p]."""
        hidden, _, pooled, _ = self._pipeline.encode_prompt(
            list(texts), device=self.device, do_classifier_free_guidance=False
        )
        return {"hidden": hidden.to(self.dtype), "pooled": pooled.to(self.dtype)}

    def text_left_out(self, text: str) -> str:
        """See `LoadedBase.text_left_out`; both encoders read 77 tokens, two of which mark start and end."""
        tokenizer = self._pipeline.tokenizer_2
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        return str(tokenizer.decode(tokens[tokenizer.model_max_length - 2 :])).strip()

    def word_encoders(self) -> dict[str, tuple[Any, Any]]:
        """See `LoadedBase.word_encoders`."""
        pipe = self._pipeline
        return {
            "clip_l": (pipe.tokenizer, pipe.text_encoder),
            "clip_g": (pipe.tokenizer_2, pipe.text_encoder_2),
        }

    def clip_encoders(self) -> list[tuple[Any, Any, int]]:
        """Return (tokenizer, encoder, layer) for weighted and long texts: both encoders, the layer before the last."""
        pipe = self._pipeline
        return [(pipe.tokenizer, pipe.text_encoder, -2), (pipe.tokenizer_2, pipe.text_encoder_2, -2)]

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

    def with_size(
        self, text: Conditioning, width: int, height: int, guidance: torch.Tensor | float | None = None
    ) -> Conditioning:
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
        added = {
            "text_embeds": conditioning["pooled"],
            "time_ids": conditioning["time_ids"],
            **self.shown(conditioning),
        }
        return self.denoiser(
            noisy,
            timesteps,
            encoder_hidden_states=conditioning["hidden"],
            added_cond_kwargs=added,
            return_dict=False,
            encoder_attention_mask=conditioning.get(MASK),
            **self.steering(conditioning),
        )[0]


SPEC = FamilySpec(
    name="sdxl",
    title="Stable Diffusion XL",
    base_class=SdxlBase,
    kinds=("lora", "pti", "checkpoint", "faceid"),
    prediction="noise",
    guidance="classifier-free",
    weighted_text=True,
    controlnets=True,
    ip_adapter=True,
    dora=True,
    quantize=(),
    sizes_like="sdxl1",
    default_guidance=7.5,
    programs=("ComfyUI", "SwarmUI", "Forge", "AUTOMATIC1111", "sd-scripts"),
    word_programs=("ComfyUI", "SwarmUI", "Forge", "AUTOMATIC1111"),
    dora_programs=("ComfyUI", "SwarmUI", "Forge"),
)
