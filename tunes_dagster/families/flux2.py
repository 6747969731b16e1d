"""The FLUX.2 family: everything that `Flux2Pipeline` (dev) and `Flux2KleinPipeline` (klein) load.

The VAE's latents are packed two by two into channels and normalised by the running statistics of its batch norm, so
here a latent position is a token of 16 x 16 pixels and has 128 channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.families.base import Conditioning, Latents, Targets
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.families.diffusers_private import (
    flux2_patched,
    flux2_picture_positions,
    flux2_text_positions,
    flux2_unpatched,
)
from tunes_dagster.families.flow import FlowBase, fused, kohya_entry, load_transformer_pipeline
from tunes_dagster.families.loading import is_single_file, named
from tunes_dagster.families.originals import Original, Shape, numbered, originals_of
from tunes_dagster.families.specs import FamilySpec, Guidance

if TYPE_CHECKING:
    import torch

# A single block computes attention and MLP in one layer each way, so there both count as attention.
_ATTENTION = (
    r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)",
    r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)",
)
_MLP = (r"transformer_blocks\.\d+\.(ff|ff_context)\.(linear_in|linear_out)",)
# What kohya's layout has names for beside the blocks; it has none for the modulation.
_EMBEDDERS = ("x_embedder", "context_embedder", "proj_out")
# Our name inside a double block, and that of the original checkpoint, which kohya's layout uses.
_DOUBLE = {
    "attn.to_out.0": "img_attn_proj",
    "ff.linear_in": "img_mlp_0",
    "ff.linear_out": "img_mlp_2",
    "attn.to_add_out": "txt_attn_proj",
    "ff_context.linear_in": "txt_mlp_0",
    "ff_context.linear_out": "txt_mlp_2",
}
_SINGLE = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
_OUTER = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer_linear"}
# What the adapters of others have beside these.
_MODULATION = {
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
# Steps at which the sampler's shift has come down to a plain line in the number of tokens, the one of FLUX.1.
_MANY_STEPS = 200


# The width from which a klein is the one of nine billion numbers: 32 heads of 128, where the smaller one has 24.
_WIDTH_OF_9B = 4096


def _model_of(is_klein: bool, config: Any) -> str:
    """Return which FLUX.2 a transformer is, in the words that musubi-tuner writes and SwarmUI knows."""
    if not is_klein:
        return "dev"
    width = config.num_attention_heads * config.attention_head_dim
    return "klein-9b" if width >= _WIDTH_OF_9B else "klein-4b"


class Flux2Base(FlowBase):
    """A loaded model of the FLUX.2 class."""

    network_module = "networks.lora_flux_2"
    implementation = "https://github.com/black-forest-labs/flux2"
    target_patterns: dict[Targets, tuple[str, ...]] = {
        "attention": _ATTENTION,
        "attention+mlp": (*_ATTENTION, *_MLP),
        "all": (*_ATTENTION, *_MLP, *_EMBEDDERS),
    }

    encoder_names: Mapping[str, str] = {}  # a language model, which nobody's files adapt

    @classmethod
    def original_names(cls, layers: Mapping[str, Shape]) -> dict[str, Original]:
        """See `LoadedBase.original_names`."""
        made: dict[str, tuple[str, ...]] = {theirs: (ours,) for theirs, ours in _MODULATION.items()}
        made |= {theirs: (ours,) for ours, theirs in _OUTER.items()}
        for i in range(numbered(layers, "transformer_blocks")):
            theirs, ours = f"double_blocks.{i}", f"transformer_blocks.{i}"
            made |= {f"{theirs}.{name}": (f"{ours}.{own}",) for own, name in _DOUBLE.items()}
            made[f"{theirs}.img_attn.qkv"] = tuple(f"{ours}.attn.to_{x}" for x in "qkv")
            made[f"{theirs}.txt_attn.qkv"] = tuple(f"{ours}.attn.add_{x}_proj" for x in "qkv")
        for i in range(numbered(layers, "single_transformer_blocks")):
            theirs, ours = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
            made |= {f"{theirs}.{name}": (f"{ours}.{own}",) for own, name in _SINGLE.items()}
        return originals_of(layers, made, ["final_layer.adaLN_modulation.1"])

    def __init__(self, entry: BaseModelEntry, folder: str | Path, pipeline: Any) -> None:
        super().__init__(entry, folder, pipeline)
        self.pixels_per_latent = 2 * int(pipeline.vae_scale_factor)
        self.is_klein = hasattr(type(pipeline), "do_classifier_free_guidance")
        model = _model_of(self.is_klein, self.denoiser.config)
        self.architecture = f"Flux.2-{model}/lora"
        self.kohya_name = f"flux_2_{model.replace('-', '_')}"
        self.guidance = entry.guidance or self._own_guidance()
        self.max_sequence_length = entry.max_sequence_length or 512

    def _own_guidance(self) -> Guidance:
        if self.is_klein:
            return "none" if self._pipeline.config.is_distilled else "classifier-free"
        return "distilled" if self.denoiser.config.guidance_embeds else "none"

    @staticmethod
    def load_stock_pipeline(entry: BaseModelEntry, folder: str | Path, dtype: torch.dtype) -> Any:
        """See `FlowBase.load_stock_pipeline`; the repository's own index says whether it is dev or klein."""
        from diffusers import DiffusionPipeline, Flux2KleinPipeline, Flux2Pipeline, Flux2Transformer2DModel
        from transformers.utils import is_torchvision_available

        source, revision = _source(entry, folder)
        with named("Flux2Pipeline", folder):
            index = DiffusionPipeline.load_config(source, revision=revision)
        kind = Flux2KleinPipeline if index["_class_name"] == "Flux2KleinPipeline" else Flux2Pipeline
        if kind is Flux2KleinPipeline or is_torchvision_available():
            return load_transformer_pipeline(kind, Flux2Transformer2DModel, entry, folder, dtype)
        # The processor of dev needs torchvision for reference pictures; prompts need its tokenizer alone.
        from transformers import AutoTokenizer

        pipeline = load_transformer_pipeline(
            kind, Flux2Transformer2DModel, entry, folder, dtype, tokenizer=None
        )
        with named("Flux2Pipeline", folder):
            tokenizer = AutoTokenizer.from_pretrained(source, subfolder="tokenizer", revision=revision)
        pipeline.register_modules(tokenizer=tokenizer)
        return pipeline

    def parts(self) -> dict[str, torch.nn.Module]:
        """See `LoadedBase.parts`."""
        return {"vae": self._pipeline.vae, "text": self._pipeline.text_encoder, "denoiser": self.denoiser}

    def stock_arguments(self, text: str, negative: str, guidance: float) -> dict[str, Any]:
        """See `LoadedBase.stock_arguments`; klein takes a negative prompt as embeddings only."""
        arguments = {
            "prompt": text,
            "guidance_scale": guidance,
            "max_sequence_length": self.max_sequence_length,
        }
        if negative and self.is_klein and self.is_guided(guidance):
            arguments["negative_prompt_embeds"] = self.encode_text([negative])["hidden"]
        return arguments

    def encode_images(self, pixels: torch.Tensor) -> Latents:
        """See `LoadedBase.encode_images`."""
        import torch

        vae = self._pipeline.vae
        with torch.no_grad():
            posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        centre, spread = self._latent_statistics(posterior.mean)
        mean, std = (flux2_patched(self._pipeline, one) for one in (posterior.mean, posterior.std))
        return Latents((mean - centre) / spread, std / spread)

    def _latent_statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vae = self._pipeline.vae
        centre = vae.bn.running_mean.view(1, -1, 1, 1).to(like)
        spread = (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt().to(like)
        return centre, spread

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `LoadedBase.decode`."""
        import torch

        vae = self._pipeline.vae
        latents = latents.to(vae.device, vae.dtype)
        centre, spread = self._latent_statistics(latents)
        with torch.no_grad():
            pixels = vae.decode(flux2_unpatched(self._pipeline, latents * spread + centre)).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def encode_text_with_gradients(self, texts: Sequence[str]) -> Conditioning:
        """See `LoadedBase.encode_text_with_gradients`; three layers of a language model, [rows, tokens, 3 * d]."""
        hidden, _ = self._pipeline.encode_prompt(
            list(texts), device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"hidden": hidden.to(self.dtype)}

    def text_left_out(self, text: str) -> str:
        """See `LoadedBase.text_left_out`; the chat template around the text takes its share of the tokens."""
        tokenizer = self._pipeline.tokenizer
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        return str(tokenizer.decode(tokens[self._room_for_text(tokenizer) :])).strip()

    def _room_for_text(self, tokenizer: Any) -> int:
        if self.is_klein:
            messages = [[{"role": "user", "content": "x"}]]
            options = {"add_generation_prompt": True, "enable_thinking": False}
        else:
            from diffusers.pipelines.flux2.pipeline_flux2 import format_input

            messages = format_input(["x"], self._pipeline.system_message)
            options = {}
        around = tokenizer.apply_chat_template(messages, tokenize=False, **options)[0]
        before = around.rpartition("x")[0] if self.is_klein else around
        taken = len(tokenizer(before, add_special_tokens=False).input_ids)
        return max(0, self.max_sequence_length - taken)

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """See `LoadedBase.predict`."""
        said = self.denoiser(
            noisy.flatten(2).transpose(1, 2),
            timestep=timesteps / self.train_timesteps,
            guidance=conditioning.get("guidance"),
            encoder_hidden_states=conditioning["hidden"],
            txt_ids=self.positions("text", conditioning["hidden"].shape[1]),
            img_ids=self.positions("picture", *noisy.shape[2:]),
            return_dict=False,
        )[0]
        return said.transpose(1, 2).reshape(noisy.shape)

    def _picture_positions(self, rows: int, columns: int) -> torch.Tensor:
        return flux2_picture_positions(self._pipeline, rows, columns)

    def _text_positions(self, length: int) -> torch.Tensor:
        return flux2_text_positions(self._pipeline, length)

    def training_mu(self, tokens: int) -> float:
        """See `FlowBase.training_mu`: the sampler's shift with many steps; with few it makes up for their number."""
        return self.sampling_mu(tokens, _MANY_STEPS)

    def sampling_mu(self, tokens: int, steps: int) -> float:
        """See `FlowBase.sampling_mu`."""
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return float(compute_empirical_mu(tokens, steps))

    def kohya_layout(self, adapter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `LoadedBase.kohya_layout`; q, k and v of double blocks are fused, at the sum of their ranks."""
        config = self.denoiser.config
        names: dict[str, str] = {f"transformer.{ours}": theirs for ours, theirs in _OUTER.items()}
        triples: dict[str, list[str]] = {}
        for i in range(config.num_layers):
            block = f"transformer.transformer_blocks.{i}"
            names |= {f"{block}.{ours}": f"double_blocks_{i}_{theirs}" for ours, theirs in _DOUBLE.items()}
            triples[f"double_blocks_{i}_img_attn_qkv"] = [f"{block}.attn.to_{x}" for x in "qkv"]
            triples[f"double_blocks_{i}_txt_attn_qkv"] = [f"{block}.attn.add_{x}_proj" for x in "qkv"]
        for i in range(config.num_single_layers):
            block = f"transformer.single_transformer_blocks.{i}"
            names |= {f"{block}.{ours}": f"single_blocks_{i}_{theirs}" for ours, theirs in _SINGLE.items()}
        made: dict[str, torch.Tensor] = {}
        for ours, theirs in names.items():
            if f"{ours}.lora_A.weight" in adapter:
                a, b = adapter[f"{ours}.lora_A.weight"], adapter[f"{ours}.lora_B.weight"]
                made |= kohya_entry(f"lora_unet_{theirs}", a, b)
        for theirs, layers in triples.items():
            if (pair := fused(adapter, layers)) is not None:
                made |= kohya_entry(f"lora_unet_{theirs}", *pair)
        return made


def _source(entry: BaseModelEntry, folder: str | Path) -> tuple[str, str | None]:
    """Return where the pipeline's index lies, and its revision for a hub id."""
    if is_single_file(folder):
        return entry.components or str(folder), None
    return str(folder), None if Path(folder).exists() else entry.revision


SPEC = FamilySpec(
    name="flux2",
    title="FLUX.2",
    base_class=Flux2Base,
    kinds=("lora", "checkpoint"),
    prediction="flow",
    guidance="distilled",
    weighted_text=False,
    controlnets=False,
    ip_adapter=False,
    dora=False,
    quantize=("int8", "nf4"),
    sizes_like="flux2-klein-4b",
    default_guidance=4.0,
    programs=("ComfyUI", "SwarmUI", "musubi-tuner"),
)
