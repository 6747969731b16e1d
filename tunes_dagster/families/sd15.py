"""The SD 1.x family: everything that `StableDiffusionPipeline` loads (SD 1.4, 1.5 and their many descendants)."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tunes_dagster.families.base import MASK, Conditioning
from tunes_dagster.families.specs import FamilySpec
from tunes_dagster.families.unet import UnetBase

if TYPE_CHECKING:
    import torch


class Sd15Base(UnetBase):
    """A loaded model of the SD 1.x class."""

    architecture = "stable-diffusion-v1/lora"
    kohya_name = "sd_v1"
    kohya_encoders = MappingProxyType({"text_encoder": "te"})
    # The stock checker replaces pictures by black ones; what a picture may show is decided after rendering, once
    # for all families.
    load_arguments = {"safety_checker": None, "requires_safety_checker": False}

    @staticmethod
    def pipeline_class() -> Any:
        """See `UnetBase.pipeline_class`."""
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline

    def parts(self) -> dict[str, torch.nn.Module]:
        """See `LoadedBase.parts`."""
        return {"vae": self._pipeline.vae, "text": self._pipeline.text_encoder, "denoiser": self.denoiser}

    def encode_text_with_gradients(self, texts: Sequence[str]) -> Conditioning:
        """See `LoadedBase.encode_text_with_gradients`; hidden states [rows, 77, d]."""
        hidden, _ = self._pipeline.encode_prompt(
            list(texts), self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"hidden": hidden.to(self.dtype)}

    def text_left_out(self, text: str) -> str:
        """See `LoadedBase.text_left_out`; the encoder reads 77 tokens, two of which mark start and end."""
        tokenizer = self._pipeline.tokenizer
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        return str(tokenizer.decode(tokens[tokenizer.model_max_length - 2 :])).strip()

    def word_encoders(self) -> dict[str, tuple[Any, Any]]:
        """See `LoadedBase.word_encoders`."""
        return {"clip_l": (self._pipeline.tokenizer, self._pipeline.text_encoder)}

    def clip_encoders(self) -> list[tuple[Any, Any, int]]:
        """Return (tokenizer, encoder, layer) for weighted and long texts; 0 is the last layer after its norm."""
        return [(self._pipeline.tokenizer, self._pipeline.text_encoder, 0)]

    def no_text(self, rows: int) -> Conditioning:
        """See `LoadedBase.no_text`: the empty caption."""
        import torch

        if self._nothing is None:
            # Renderers call this in inference mode, whose tensors training could not use later.
            with torch.inference_mode(False):
                self._nothing = self.encode_text([""])
        return {name: value.expand(rows, *value.shape[1:]).clone() for name, value in self._nothing.items()}

    def with_size(
        self, text: Conditioning, width: int, height: int, guidance: torch.Tensor | float | None = None
    ) -> Conditioning:
        """See `LoadedBase.with_size`: SD 1.x is told nothing about size."""
        return text

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """See `LoadedBase.predict`."""
        return self.denoiser(
            noisy,
            timesteps,
            encoder_hidden_states=conditioning["hidden"],
            return_dict=False,
            encoder_attention_mask=conditioning.get(MASK),
            added_cond_kwargs=self.shown(conditioning) or None,
            **self.steering(conditioning),
        )[0]


SPEC = FamilySpec(
    name="sd15",
    title="Stable Diffusion 1.x",
    base_class=Sd15Base,
    kinds=("lora", "pti", "checkpoint", "faceid"),
    prediction="noise",
    guidance="classifier-free",
    weighted_text=True,
    controlnets=True,
    ip_adapter=True,
    dora=True,
    quantize=(),
    sizes_like="realistic-vision",
    default_guidance=7.5,
    programs=("ComfyUI", "SwarmUI", "Forge", "AUTOMATIC1111", "sd-scripts"),
    word_programs=("ComfyUI", "SwarmUI", "Forge", "AUTOMATIC1111"),
    dora_programs=("ComfyUI", "SwarmUI", "Forge"),
)
