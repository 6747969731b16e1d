"""Tiny doubles of released bases: their configurations as released, with a short list of keys made small.

`released/` holds the configuration files, `released/SOURCES.json` where each comes from. What a key here makes small is
a width, a depth, a number of heads or the vocabulary; every flag, activation, schedule and class is the released one,
which `tests/training/test_doubles.py` compares. Weights are random.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.tokenizers import byte_tokenizer, chat_tokenizer, letter_tokenizer

RELEASED = Path(__file__).parent / "released"
_CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
_VAE = {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 64}
_SD = {
    "unet": {
        "block_out_channels": [32, 32, 64, 64],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 16,
        "sample_size": 8,
    },
    "vae": _VAE,
    "text_encoder": _CLIP,
    "safety_checker": {
        "projection_dim": 8,
        "text_config": _CLIP,
        "vision_config": _CLIP,
    },
}
_SDXL = {
    "unet": {
        "block_out_channels": [32, 64, 64],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": [1, 2, 4],
        "transformer_layers_per_block": [1, 1, 2],
        "cross_attention_dim": 48,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
        "sample_size": 8,
    },
    "vae": _VAE,
    "text_encoder": _CLIP,
    "text_encoder_2": _CLIP | {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 32},
}
_FLUX = {
    "transformer": {
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "axes_dims_rope": [4, 6, 6],  # the parts of a head
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
    },
    "vae": _VAE,
    "text_encoder": _CLIP,
    "text_encoder_2": _T5,
}
_FLUX2 = {
    "num_layers": 1,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "axes_dims_rope": [4, 4, 4, 4],
    "joint_attention_dim": 3 * 16,
    "timestep_guidance_channels": 32,
}
_LANGUAGE = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
# The pipeline reads hidden states 9, 18 and 27; the last one of a model is its output after the norm.
_KLEIN = {
    "transformer": _FLUX2,
    "vae": _VAE,
    "text_encoder": _LANGUAGE
    | {"num_hidden_layers": 28, "layer_types": ["full_attention"] * 28, "max_window_layers": 28},
}
SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": _SD,
    "realistic-vision": _SD,
    "sdxl": _SDXL,
    "sdxl-fine-tune": _SDXL,
    "flux1-dev": _FLUX,
    "flux1-schnell": _FLUX,
    "flux2-dev": {
        "transformer": _FLUX2,
        "vae": _VAE,
        # Hidden states 10, 20 and 30 are read.
        "text_encoder": {
            "text_config": _LANGUAGE | {"num_hidden_layers": 31},
            "vision_config": _LANGUAGE
            | {"num_hidden_layers": 1, "image_size": 28, "num_key_value_heads": None},
        },
    },
    "flux2-klein-4b": _KLEIN,
    "flux2-klein-base-4b": _KLEIN,
    "cogvideo-2b": {
        "transformer": {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 1,
            "text_embed_dim": 32,
            "time_embed_dim": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 9,
        },
        "vae": {
            "block_out_channels": [8, 8, 8, 8],
            "layers_per_block": 1,
            "norm_num_groups": 2,
            # Half of them are tiles, which lap over by a fifth and a sixth: whole latents, as the released ones.
            "sample_width": 80,
            "sample_height": 96,
        },
        "text_encoder": _T5,
    },
    "upscale-4x": {
        "unet": {
            "block_out_channels": [16, 16, 32, 32],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "cross_attention_dim": 16,
            "sample_size": 16,
        },
        "vae": {
            "block_out_channels": [8, 8, 16],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "sample_size": 64,
        },
        "text_encoder": _CLIP,
    },
}
# A double's tokenizers know single letters; their embeddings and the numbers of their special tokens follow.
VOCABULARY = {"vocab_size", "bos_token_id", "eos_token_id"}
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
# Settings of a released tokenizer that are about its text, not its files.
TOKENIZER_SETTINGS = ("model_max_length", "pad_token", "unk_token", "bos_token", "eos_token", "extra_ids")


def released(name: str, part: str) -> dict[str, Any]:
    """Return a released configuration: `unet`, `scheduler`, `tokenizer` …; `` is the pipeline's index."""
    folder = RELEASED / name / part
    for file in ("config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json"):
        if part and (folder / file).is_file():
            return json.loads((folder / file).read_text(encoding="utf-8"))
    return json.loads((RELEASED / name / "model_index.json").read_text(encoding="utf-8"))


def parts_of(name: str) -> dict[str, list[str]]:
    """Return {part: [library, class]} of a released pipeline's index."""
    return {part: kind for part, kind in released(name, "").items() if isinstance(kind, list) and kind[0]}


def small(name: str, part: str, **changed: Any) -> dict[str, Any]:
    """Return a released configuration with its keys made small, and what a test changes on purpose."""
    return _merged(released(name, part), SMALL[name].get(part, {})) | changed


def _merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(config)
    for key, value in changes.items():
        if isinstance(value, dict):
            made[key] = _merged(config[key], {k: v for k, v in value.items() if v is not None})
        else:
            made[key] = value
    return made


def write_double(name: str, folder: Path, seed: int = 0, **changed: Mapping[str, Any]) -> Path:
    """Write the double of a released base.

    Args:
        name: Of a folder in `released/`.
        folder: Where to; returned.
        seed: Decides the weights.
        changed: By part, what a test wants to differ: `scheduler={"prediction_type": "v_prediction"}`; of the
            index as `options`.
    """
    import diffusers
    import torch

    logging.getLogger("transformers").setLevel(logging.ERROR)
    index = released(name, "")
    options = {
        key: value for key, value in index.items() if not key.startswith("_") and not isinstance(value, list)
    }
    options.pop("add_watermarker", None)  # a part that is not there
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {
            part: _make(name, part, kind, changed.get(part, {})) for part, kind in parts_of(name).items()
        }
        pipeline = getattr(diffusers, index["_class_name"])(
            **parts, **_absent(index), **{**options, **changed.get("options", {})}
        )
    pipeline.save_pretrained(folder)
    return Path(folder)


def _absent(index: Mapping[str, Any]) -> dict[str, None]:
    """Return the parts that a pipeline's index says are not there, where its class must be told."""
    needed = {"StableDiffusionPipeline": (), "StableDiffusionXLPipeline": ()}
    return dict.fromkeys(needed.get(index["_class_name"], ()))


def _make(name: str, part: str, kind: list[str], changed: Mapping[str, Any]) -> Any:
    library, class_name = kind
    if part.startswith("tokenizer"):
        return _tokenizer(name, part, class_name, changed)
    config = _without_bits(small(name, part, **changed))
    if library == "diffusers":
        import diffusers

        made = getattr(diffusers, class_name).from_config(
            {key: value for key, value in config.items() if not key.startswith("_")}
        )
        return _prepared(made)
    return _BY_CLASS[class_name](name, part, config)


def _without_bits(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the precision of its released file: a double's is float32."""
    return {
        key: _without_bits(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in ("dtype", "torch_dtype")
    }


def _prepared(part: Any) -> Any:
    import torch

    if type(part).__name__ == "AutoencoderKLFlux2":
        part.bn.running_mean.copy_(torch.randn(part.bn.num_features) * 0.2)
        part.bn.running_var.copy_(torch.rand(part.bn.num_features) + 0.5)
    if type(part).__name__ == "Flux2Transformer2DModel":
        # Untrained, it would hardly look at the text: most of it is padding.
        part.context_embedder.weight.data.mul_(20)
    return part


def _tokenizer(name: str, part: str, class_name: str, changed: Mapping[str, Any]) -> Any:
    if class_name == "PixtralProcessor":
        return chat_tokenizer(_MISTRAL_TEMPLATE, bos="<s>")
    if class_name.startswith("Qwen2"):
        return chat_tokenizer(_QWEN_TEMPLATE)
    settings = {key: value for key, value in released(name, part).items() if key in TOKENIZER_SETTINGS}
    settings = {
        key: value["content"] if isinstance(value, dict) else value for key, value in settings.items()
    }
    make = letter_tokenizer if class_name.startswith("T5") else byte_tokenizer
    return make(**{**settings, **changed})


def _clip(name: str, part: str, config: dict[str, Any]) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    return loud(
        kind[config["architectures"][0]](CLIPTextConfig(**config | {"vocab_size": len(byte_tokenizer())}))
    )


def _t5(name: str, part: str, config: dict[str, Any]) -> Any:
    from transformers import T5Config, T5EncoderModel

    # Released T5 has more embeddings than its tokenizer has words.
    return loud(T5EncoderModel(T5Config(**config | {"vocab_size": len(letter_tokenizer()) + 28})), 3)


def _qwen(name: str, part: str, config: dict[str, Any]) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokens = {"vocab_size": len(chat_tokenizer(_QWEN_TEMPLATE)), "bos_token_id": None, "eos_token_id": None}
    return loud(Qwen3ForCausalLM(Qwen3Config(**config | tokens)))


def _mistral(name: str, part: str, config: dict[str, Any]) -> Any:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    vocabulary = {"vocab_size": len(chat_tokenizer(_MISTRAL_TEMPLATE, bos="<s>"))}
    config = config | {"text_config": config["text_config"] | vocabulary}
    return loud(Mistral3ForConditionalGeneration(Mistral3Config(**config)))


def _safety(name: str, part: str, config: dict[str, Any]) -> Any:
    """Return a safety checker that finds nothing."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    checker = StableDiffusionSafetyChecker(CLIPConfig(**config))
    checker.concept_embeds_weights.data.fill_(2)
    checker.special_care_embeds_weights.data.fill_(2)
    return checker


def _eyes(name: str, part: str, config: dict[str, Any]) -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(**{key: value for key, value in config.items() if not key.endswith("_type")})


def loud(encoder: Any, factor: float = 20) -> Any:
    """Return a text encoder with larger embeddings: 0.02 makes all texts alike to layers that never learned."""
    encoder.get_input_embeddings().weight.data.mul_(factor)
    return encoder


_BY_CLASS: dict[str, Callable[[str, str, dict[str, Any]], Any]] = {
    "CLIPTextModel": _clip,
    "CLIPTextModelWithProjection": _clip,
    "T5EncoderModel": _t5,
    "Qwen3ForCausalLM": _qwen,
    "Mistral3ForConditionalGeneration": _mistral,
    "StableDiffusionSafetyChecker": _safety,
    "CLIPImageProcessor": _eyes,
    "CLIPFeatureExtractor": _eyes,
}
