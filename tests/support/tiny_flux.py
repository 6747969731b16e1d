"""Random-weight FLUX bases of the real pipeline classes; see `tiny_bases` for the Stable Diffusion ones."""

from __future__ import annotations

import logging
import string
from pathlib import Path

from tests.support.tiny_bases import byte_tokenizer, loud, tiny_vae

_LETTERS = string.ascii_letters + string.digits + string.punctuation
# What the real tokenizers' templates do with a text prompt, without their tools, images and thinking, and without the
# system message, which is 200 of these tokens long.
_MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role != 'system' %}[INST]{{ m.content[0].text }}[/INST]"
    "{% endif %}{% endfor %}"
)
_QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def letter_tokenizer(model_max_length: int = 512):
    """Return a T5 tokenizer of single letters."""
    from transformers import T5Tokenizer

    start = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(
        vocab=start + [(letter, -3.0) for letter in _LETTERS], extra_ids=0, model_max_length=model_max_length
    )


def chat_tokenizer(template: str, bos: str | None = None):
    """Return a byte-level tokenizer of the Qwen class with a chat template."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = [*bytes_to_unicode().values(), "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
    return Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate(symbols)},
        merges=[],
        bos_token=bos,
        chat_template=template,
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        padding_side="right",
    )


def _text_encoders():
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    tokenizer, letters = byte_tokenizer(), letter_tokenizer()
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(letters),
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
        )
    )
    return tokenizer, loud(clip), letters, loud(t5, 3)


def make_random_flux(
    folder: Path,
    *,
    guidance_embeds: bool = False,
    dynamic_shift: bool = False,
    shift: float = 1.0,
    latent_channels: int = 4,
    seed: int = 0,
) -> Path:
    """Write a `FluxPipeline` with random weights (about 0.2M parameters, 64x64 pixels).

    Args:
        folder: Where to; returned.
        guidance_embeds: Whether the guidance scale is an input, as in FLUX.1 dev.
        dynamic_shift: Whether the schedule depends on the size, as in FLUX.1 dev.
        shift: Of the schedule when it does not.
        latent_channels: Channels of the VAE's latents.
        seed: Decides the weights.
    """
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    logging.getLogger("transformers").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer, clip, letters, t5 = _text_encoders()
        transformer = FluxTransformer2DModel(
            in_channels=4 * latent_channels,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        )
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=dynamic_shift),
            vae=tiny_vae(latent_channels, shift_factor=0.1),
            text_encoder=clip,
            tokenizer=tokenizer,
            text_encoder_2=t5,
            tokenizer_2=letters,
            transformer=transformer,
        )
    pipeline.save_pretrained(folder)
    return Path(folder)


def _flux2_parts(guidance_embeds: bool, text_width: int):
    import torch
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * text_width,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    # Untrained, it would hardly look at the text: most of it is padding.
    transformer.context_embedder.weight.data.mul_(20)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
    )
    vae.bn.running_mean.copy_(torch.randn(16) * 0.2)
    vae.bn.running_var.copy_(torch.rand(16) + 0.5)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return {"transformer": transformer, "vae": vae, "scheduler": scheduler}


def make_random_klein(folder: Path, *, distilled: bool = False, seed: int = 0) -> Path:
    """Write a `Flux2KleinPipeline` with random weights (about 0.1M parameters, 64x64 pixels).

    Args:
        folder: Where to; returned.
        distilled: Whether it does without classifier-free guidance, as the released klein models do.
        seed: Decides the weights.
    """
    import torch
    from diffusers import Flux2KleinPipeline
    from transformers import Qwen3Config, Qwen3ForCausalLM

    logging.getLogger("transformers").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = chat_tokenizer(_QWEN_TEMPLATE)
        # The pipeline reads hidden states 9, 18 and 27.
        encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=27,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                max_position_embeddings=512,
            )
        )
        pipeline = Flux2KleinPipeline(
            text_encoder=loud(encoder), tokenizer=tokenizer, is_distilled=distilled, **_flux2_parts(False, 16)
        )
    pipeline.save_pretrained(folder)
    return Path(folder)


def make_random_flux2(folder: Path, *, seed: int = 0) -> Path:
    """Write a `Flux2Pipeline` with random weights (about 0.1M parameters, 64x64 pixels).

    Args:
        folder: Where to; returned.
        seed: Decides the weights.
    """
    import torch
    from diffusers import Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    logging.getLogger("transformers").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = chat_tokenizer(_MISTRAL_TEMPLATE, bos="<s>")
        # The pipeline reads hidden states 10, 20 and 30.
        text = {
            "model_type": "mistral",
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 30,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "max_position_embeddings": 512,
        }
        vision = {
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
            "head_dim": 8,
        }
        config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=1)
        pipeline = Flux2Pipeline(
            text_encoder=loud(Mistral3ForConditionalGeneration(config)),
            tokenizer=tokenizer,
            **_flux2_parts(True, 16),
        )
    pipeline.save_pretrained(folder)
    return Path(folder)
