"""The FLUX.1 family: everything that `FluxPipeline` loads: dev (guidance distilled), schnell (step distilled), and
bases that were not distilled at all and take classifier-free guidance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tunes_dagster.families.base import Conditioning, Latents, Targets
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.families.diffusers_private import flux_picture_positions
from tunes_dagster.families.flow import FlowBase, fused, kohya_entry, load_transformer_pipeline
from tunes_dagster.families.originals import Original, Shape, numbered, originals_of
from tunes_dagster.families.specs import FamilySpec

if TYPE_CHECKING:
    import torch

_ATTENTION = (
    r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)",
    r"single_transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v)",
)
_MLP = (
    r"transformer_blocks\.\d+\.(ff|ff_context)\.net\.(0\.proj|2)",
    r"single_transformer_blocks\.\d+\.(proj_mlp|proj_out)",
)
_MODULATION = (
    r"transformer_blocks\.\d+\.(norm1|norm1_context)\.linear",
    r"single_transformer_blocks\.\d+\.norm\.linear",
)
# Our name inside a double block, and that of the original checkpoint, which kohya's layout uses.
_DOUBLE = {
    "attn.to_out.0": "img_attn_proj",
    "ff.net.0.proj": "img_mlp_0",
    "ff.net.2": "img_mlp_2",
    "norm1.linear": "img_mod_lin",
    "attn.to_add_out": "txt_attn_proj",
    "ff_context.net.0.proj": "txt_mlp_0",
    "ff_context.net.2": "txt_mlp_2",
    "norm1_context.linear": "txt_mod_lin",
}
_SINGLE = {"proj_out": "linear2", "norm.linear": "modulation_lin"}
_OUTER = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
# What DiffSynth-Studio calls the layers of a double block: `a` is the picture's stream, `b` the text's.
_DIFFSYNTH = {
    "attn.{0}_to_out": "{1}_attn_proj",
    "ff_{0}.0": "{1}_mlp_0",
    "ff_{0}.2": "{1}_mlp_2",
    "norm1_{0}.linear": "{1}_mod_lin",
}
# The width of FLUX.1, which loaders of kohya's layout take for granted where they split fused layers.
_WIDTH = 3072


def _originals(double: int, single: int) -> dict[str, tuple[str, ...]]:
    """Return our layers by what the original checkpoint and DiffSynth-Studio call theirs."""
    made: dict[str, tuple[str, ...]] = {theirs: (ours,) for theirs, ours in _OUTER.items()}
    theirs_by_ours = {theirs: ours for ours, theirs in _DOUBLE.items()}
    for i in range(double):
        block = f"transformer_blocks.{i}"
        streams = {
            "img": tuple(f"{block}.attn.to_{x}" for x in "qkv"),
            "txt": tuple(f"{block}.attn.add_{x}_proj" for x in "qkv"),
        }
        made |= {
            f"double_blocks.{i}.{theirs}": (f"{block}.{ours}",) for theirs, ours in theirs_by_ours.items()
        }
        for letter, stream in (("a", "img"), ("b", "txt")):
            made[f"double_blocks.{i}.{stream}_attn_qkv"] = streams[stream]
            made[f"blocks.{i}.attn.{letter}_to_qkv"] = streams[stream]
            for name, theirs in _DIFFSYNTH.items():
                ours = theirs_by_ours[theirs.format(letter, stream)]
                made[f"blocks.{i}.{name.format(letter)}"] = (f"{block}.{ours}",)
    for i in range(single):
        block = f"single_transformer_blocks.{i}"
        joined = tuple(f"{block}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
        made |= {f"single_blocks.{i}.linear1": joined, f"single_blocks.{i}.to_qkv_mlp": joined}
        made |= {f"single_blocks.{i}.{theirs}": (f"{block}.{ours}",) for ours, theirs in _SINGLE.items()}
        made[f"single_blocks.{i}.proj_out"] = (f"{block}.proj_out",)
        made[f"single_blocks.{i}.norm.linear"] = (f"{block}.norm.linear",)
    return made


class FluxBase(FlowBase):
    """A loaded model of the FLUX.1 class."""

    architecture = "flux-1-dev/lora"
    kohya_name = "flux1"
    network_module = "networks.lora_flux"
    implementation = "https://github.com/black-forest-labs/flux"
    target_patterns: dict[Targets, tuple[str, ...]] = {
        "attention": _ATTENTION,
        "attention+mlp": (*_ATTENTION, *_MLP),
        "all": (*_ATTENTION, *_MLP, *_MODULATION),
    }
    encoder_names = MappingProxyType(
        {
            "te": "text_encoder",
            "te1": "text_encoder",
            "te2": "text_encoder_2",
            "te3": "text_encoder_2",  # sd-scripts counts CLIP-G, which FLUX.1 has not
        }
    )
    kohya_encoders = MappingProxyType({"text_encoder": "te1", "text_encoder_2": "te3"})

    @classmethod
    def original_names(cls, layers: Mapping[str, Shape]) -> dict[str, Original]:
        """See `LoadedBase.original_names`."""
        double, single = (
            numbered(layers, name) for name in ("transformer_blocks", "single_transformer_blocks")
        )
        return originals_of(layers, _originals(double, single), ["final_layer.adaLN_modulation.1"])

    def __init__(self, entry: BaseModelEntry, folder: str | Path, pipeline: Any) -> None:
        super().__init__(entry, folder, pipeline)
        self.pixels_per_latent = int(pipeline.vae_scale_factor)
        embedded = bool(self.denoiser.config.guidance_embeds)
        self.guidance = entry.guidance or ("distilled" if embedded else "none")
        self.max_sequence_length = entry.max_sequence_length or 512
        if not embedded:
            self.architecture = "flux-1-schnell/lora"

    @staticmethod
    def load_stock_pipeline(entry: BaseModelEntry, folder: str | Path, dtype: torch.dtype) -> Any:
        """See `FlowBase.load_stock_pipeline`."""
        from diffusers import FluxPipeline, FluxTransformer2DModel

        return load_transformer_pipeline(FluxPipeline, FluxTransformer2DModel, entry, folder, dtype)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents before four neighbours are packed into a token."""
        return int(self.denoiser.config.in_channels) // 4

    @property
    def size_multiple(self) -> int:
        """See `LoadedBase.size_multiple`: a token is two by two latents."""
        return 2 * self.pixels_per_latent

    def parts(self) -> dict[str, torch.nn.Module]:
        """See `LoadedBase.parts`."""
        import torch

        clip, t5 = self._pipeline.text_encoder, self._pipeline.text_encoder_2
        return {
            "vae": self._pipeline.vae,
            "text": torch.nn.ModuleList([clip, t5]),
            "denoiser": self.denoiser,
        }

    def stock_arguments(self, text: str, negative: str, guidance: float) -> dict[str, Any]:
        """See `LoadedBase.stock_arguments`."""
        arguments = {"prompt": text, "max_sequence_length": self.max_sequence_length}
        if self.guidance == "classifier-free":
            return arguments | {
                "negative_prompt": negative,
                "true_cfg_scale": guidance,
                "guidance_scale": 1.0,
            }
        return arguments | {"guidance_scale": guidance if self.guidance == "distilled" else 1.0}

    def encode_images(self, pixels: torch.Tensor) -> Latents:
        """See `LoadedBase.encode_images`."""
        import torch

        vae = self._pipeline.vae
        with torch.no_grad():
            posterior = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return Latents((posterior.mean - vae.config.shift_factor) * scale, posterior.std * scale)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `LoadedBase.decode`."""
        import torch

        vae = self._pipeline.vae
        latents = latents.to(self.device, vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        with torch.no_grad():
            pixels = vae.decode(latents).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def encode_text_with_gradients(self, texts: Sequence[str]) -> Conditioning:
        """See `LoadedBase.encode_text_with_gradients`; T5's states [rows, tokens, d], CLIP's pooled one [rows, p]."""
        hidden, pooled, _ = self._pipeline.encode_prompt(
            list(texts), None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"hidden": hidden.to(self.dtype), "pooled": pooled.to(self.dtype)}

    def word_encoders(self) -> dict[str, tuple[Any, Any]]:
        """See `LoadedBase.word_encoders`: both, under the names of diffusers' own training script.

        T5's states are what the denoiser reads of a prompt, so the subject has to be there. CLIP's summary of the
        prompt would otherwise be made of a token that means nothing.
        """
        pipe = self._pipeline
        return {"clip_l": (pipe.tokenizer, pipe.text_encoder), "t5": (pipe.tokenizer_2, pipe.text_encoder_2)}

    def text_left_out(self, text: str) -> str:
        """See `LoadedBase.text_left_out`; T5 reads the text, of which CLIP gives a summary; one token is the end."""
        tokenizer = self._pipeline.tokenizer_2
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        return str(tokenizer.decode(tokens[self.max_sequence_length - 1 :])).strip()

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """See `LoadedBase.predict`; two by two latents become one token and back."""
        rows, channels, height, width = noisy.shape
        packed = noisy.reshape(rows, channels, height // 2, 2, width // 2, 2)
        packed = packed.permute(0, 2, 4, 1, 3, 5).reshape(rows, -1, channels * 4)
        said = self.denoiser(
            packed,
            timestep=timesteps / self.train_timesteps,
            guidance=conditioning.get("guidance"),
            pooled_projections=conditioning["pooled"],
            encoder_hidden_states=conditioning["hidden"],
            txt_ids=self.positions("text", conditioning["hidden"].shape[1]),
            img_ids=self.positions("picture", height // 2, width // 2),
            return_dict=False,
        )[0]
        said = said.reshape(rows, height // 2, width // 2, channels, 2, 2)
        return said.permute(0, 3, 1, 4, 2, 5).reshape(noisy.shape)

    def _picture_positions(self, rows: int, columns: int) -> torch.Tensor:
        return flux_picture_positions(self._pipeline, rows, columns, self.device, self.dtype)

    def _text_positions(self, length: int) -> torch.Tensor:
        import torch

        return torch.zeros(length, 3, dtype=self.dtype)

    def training_mu(self, tokens: int) -> float:
        """See `FlowBase.training_mu`: what the base samples with, a line in the tokens for dev, 0 for schnell."""
        config = self._pipeline.scheduler.config
        return self.sampling_mu(tokens, 0) if config.use_dynamic_shifting else math.log(config.shift)

    def sampling_mu(self, tokens: int, steps: int) -> float:
        """See `FlowBase.sampling_mu`."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config = self._pipeline.scheduler.config
        return float(
            calculate_shift(
                tokens,
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.15),
            )
        )

    def kohya_layout(self, adapter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `LoadedBase.kohya_layout`.

        The original checkpoint fuses q, k, v (and the MLP's first layer in single blocks), which takes the sum of
        the ranks. Loaders split them by the numbers of FLUX.1, so a model of another width keeps its layers
        apart, under the names that diffusers and ComfyUI both know.
        """
        config = self.denoiser.config
        if int(config.num_attention_heads) * int(config.attention_head_dim) != _WIDTH:
            return {
                key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): value.contiguous()
                for key, value in adapter.items()
            }
        made: dict[str, torch.Tensor] = {}
        for i in range(config.num_layers):
            ours, theirs = f"transformer.transformer_blocks.{i}", f"lora_unet_double_blocks_{i}"
            made |= _renamed(adapter, ours, theirs, _DOUBLE)
            made |= _joined(adapter, f"{ours}.attn", ("to_q", "to_k", "to_v"), f"{theirs}_img_attn_qkv")
            added = ("add_q_proj", "add_k_proj", "add_v_proj")
            made |= _joined(adapter, f"{ours}.attn", added, f"{theirs}_txt_attn_qkv")
        for i in range(config.num_single_layers):
            ours, theirs = f"transformer.single_transformer_blocks.{i}", f"lora_unet_single_blocks_{i}"
            made |= _renamed(adapter, ours, theirs, _SINGLE)
            layers = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
            made |= _joined(adapter, ours, layers, f"{theirs}_linear1", outputs=3 * _WIDTH + 4 * _WIDTH)
        return made


def _renamed(
    adapter: Mapping[str, torch.Tensor], ours: str, theirs: str, names: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {}
    for name, original in names.items():
        key = f"{ours}.{name}"
        if f"{key}.lora_A.weight" in adapter:
            a, b = adapter[f"{key}.lora_A.weight"], adapter[f"{key}.lora_B.weight"]
            made |= kohya_entry(f"{theirs}_{original}", a, b)
    return made


def _joined(
    adapter: Mapping[str, torch.Tensor], ours: str, names: Sequence[str], theirs: str, outputs: int = 0
) -> dict[str, torch.Tensor]:
    """Return several of our layers as the one they are in the original; zeros for outputs without an adapter."""
    import torch

    pair = fused(adapter, [f"{ours}.{name}" for name in names])
    if pair is None:
        return {}
    a, b = pair
    if b.shape[0] < outputs:
        b = torch.cat([b, b.new_zeros(outputs - b.shape[0], b.shape[1])])
    return kohya_entry(theirs, a, b)


SPEC = FamilySpec(
    name="flux",
    title="FLUX.1",
    base_class=FluxBase,
    kinds=("lora", "pti", "checkpoint"),
    prediction="flow",
    guidance="distilled",
    weighted_text=False,
    controlnets=False,
    ip_adapter=False,
    dora=False,
    quantize=("int8", "nf4"),
    sizes_like="flux1-dev",
    default_guidance=3.5,
    programs=("ComfyUI", "SwarmUI", "Forge", "sd-scripts"),
    word_programs=("ComfyUI", "SwarmUI"),
)
