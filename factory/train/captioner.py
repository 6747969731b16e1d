"""Training of the captioner: a small BlipForConditionalGeneration that says what a picture of the world shows."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from factory.train.classifier import HEADS, degrade, head_loss, label_array
from factory.train.clock import note_figures
from factory.train.course import Course, Training
from factory.train.data import HELD_OUT, draw_pictures, to_tensor
from factory.train.scorer import draw_pairs, pair_of_shots
from factory.train.text import known_words
from tunes_dagster.tiny.world import SIZE, attributes, caption, shot
from tunes_dagster.tiny.world.palette import COLORS
from tunes_dagster.tiny.world.sample import Shot

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MAX_LENGTH = 48


def build_tokenizer() -> Any:
    """A BertTokenizer of the world's words; others fall to letters."""
    from transformers import BertTokenizer

    words = [*SPECIAL, ",", ".", "-", *LETTERS, *("##" + c for c in LETTERS)]
    words += [w for w in known_words() if w not in words]
    return BertTokenizer(vocab={word: i for i, word in enumerate(dict.fromkeys(words))})


def build_processor() -> Any:
    """The BlipProcessor that is saved beside the weights (Pillow image processor, 128 x 128)."""
    from transformers import BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    images = BlipImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return BlipProcessor(images, build_tokenizer())


def build(tokenizer: Any) -> Any:
    """An untrained BLIP: vision 128 wide x 3 layers, patches of 16; text decoder 128 wide x 3 layers."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    start, end, pad = (tokenizer.convert_tokens_to_ids(t) for t in ("[CLS]", "[SEP]", "[PAD]"))
    return BlipForConditionalGeneration(
        BlipConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 128,
                "encoder_hidden_size": 128,
                "intermediate_size": 384,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "max_position_embeddings": 64,
                "bos_token_id": start,
                "eos_token_id": end,
                "sep_token_id": end,
                "pad_token_id": pad,
                "label_smoothing": 0.02,
            },
            vision_config={
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": SIZE,
                "patch_size": 16,
            },
            projection_dim=64,
        )
    )


def adopt_eyes(model: Any, scorer: Any, pictures: Any) -> None:
    """Start the captioner's vision tower from the scorer's, which has the same shape.

    BLIP has no layer norm after the patch embedding; its centring and gain are folded into the embedding, with
    the mean deviation of the tokens of `pictures` [n, 3, 128, 128] for its scale.
    """
    import torch

    eyes, source = model.vision_model, scorer.vision_model
    norm = source.pre_layrnorm if hasattr(source, "pre_layrnorm") else source.pre_layernorm
    with torch.no_grad():
        tokens = source.embeddings(pictures)
        patches = tokens[:, 1:].std(dim=-1, unbiased=False).mean()
        gain, shift = norm.weight / patches, norm.bias
        weight = source.embeddings.patch_embedding.weight
        eyes.embeddings.patch_embedding.weight.copy_((weight - weight.mean(0)) * gain[:, None, None, None])
        eyes.embeddings.patch_embedding.bias.zero_()
        position = source.embeddings.position_embedding.weight
        eyes.embeddings.position_embedding[0].copy_(
            (position - position.mean(1, keepdim=True)) * gain + shift
        )
        eyes.embeddings.class_embedding.copy_(
            norm(tokens[:1, :1]) - eyes.embeddings.position_embedding[:, :1]
        )
        for own, other in zip(eyes.encoder.layers, source.encoder.layers, strict=True):
            heads = [getattr(other.self_attn, f"{name}_proj") for name in ("q", "k", "v")]
            own.self_attn.qkv.weight.copy_(torch.cat([head.weight for head in heads]))
            own.self_attn.qkv.bias.copy_(torch.cat([head.bias for head in heads]))
            own.self_attn.projection.load_state_dict(other.self_attn.out_proj.state_dict())
            own.mlp.load_state_dict(other.mlp.state_dict())
            own.layer_norm1.load_state_dict(other.layer_norm1.state_dict())
            own.layer_norm2.load_state_dict(other.layer_norm2.state_dict())
        eyes.post_layernorm.load_state_dict(source.post_layernorm.state_dict())


def plain_caption(number: int, variant: int = 0) -> str:
    """A full caption of picture `number` without names."""
    content, _ = shot(number)
    return caption(content, random.Random(f"plain-{number}-{variant}"), plain=True)[0]


def odd_caption(number: int, side: int, variant: int = 0) -> str:
    """A full caption of one picture of pair `number`; colours the world does not have get the nearest name."""
    content = named_colors(pair_of_shots(number)[side])
    return caption(content, random.Random(f"odd-{number}-{side}-{variant}"), plain=True)[0]


def named_colors(content: Shot) -> Shot:
    """The shot with the names of its odd colours (hair, fur, a thing's colour) in the look's own fields."""
    look: Any = content.look
    names: dict[str, Any] = {
        key: min(COLORS, key=lambda name: math.dist(COLORS[name], look.extras[key]))
        for key in ("hair", "fur", "color")
        if key in look.extras
    }
    return replace(content, look=replace(look, **names)) if names else content


def train(training: Training, *, batch: int = 32, scorer: Any = None) -> tuple[Any, Any]:
    """Train the captioner in `training.work`, with the vision tower of `scorer` to start from if there is one.

    Returns model and processor.
    """
    import torch

    data = draw_pictures(training.work / "train.npy", training.pictures)
    odd = draw_pairs(training.work / "pairs.npy", training.pairs)
    labels, processor = label_array(training.work, training.pictures), build_processor()
    tokenizer = processor.tokenizer
    torch.manual_seed(training.seed)
    model = build(tokenizer).to(training.device)
    if scorer is not None:
        adopt_eyes(model, scorer.to(training.device), to_tensor(data[:64]).to(training.device))
    heads = torch.nn.Linear(model.config.vision_config.hidden_size, sum(len(v) for v in HEADS.values())).to(
        training.device
    )
    both = torch.nn.ModuleList([model, heads])
    optimizer = torch.optim.AdamW(
        both.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    course = Course(
        name="captioner",
        training=training,
        module=both,
        optimizer=optimizer,
        rate=1e-3,
        warmup=200,
        hold=0.4,
    )
    for step in course:
        rng = np.random.default_rng((training.seed, step))
        torch.manual_seed(training.seed + step)
        shown, texts, truth = draw_batch(data, labels, odd, rng, batch)
        with torch.autocast(torch.device(training.device).type, torch.bfloat16):
            x = degrade(to_tensor(shown).to(training.device), rng)
            loss, seen = _loss(model.train(), tokenizer, x, texts)
            total = loss + 0.05 * head_loss(heads(seen), truth.to(training.device))
        course.descend(total)
    model = model.cpu().eval()
    scores = accuracy(model, processor, training.work)
    note_figures(training.work, captioner={"named_rightly": scores, "batch": batch, **course.figures})
    training.log(f"captioner done: {scores}")
    return model, processor


def draw_batch(
    data: np.ndarray, labels: np.ndarray, odd: np.ndarray, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, list[str], Any]:
    """Pictures, their captions and attribute labels; a quarter are odd looks, which have no labels (-1)."""
    import torch

    few = size // 4
    picks, sides = rng.integers(0, len(data), size - few), rng.integers(0, 2, few)
    strange = rng.integers(0, len(odd), few)
    variants = rng.integers(0, 1000, size)
    texts = [plain_caption(int(i), int(v)) for i, v in zip(picks, variants, strict=False)]
    texts += [odd_caption(int(i), int(s), int(v)) for i, s, v in zip(strange, sides, variants, strict=False)]
    truth = np.full((size, labels.shape[1]), -1, dtype=np.int64)
    truth[: size - few] = labels[picks]
    return np.concatenate([data[picks], odd[strange, sides]]), texts, torch.from_numpy(truth)


def _loss(model: Any, tokenizer: Any, x: Any, texts: list[str]) -> tuple[Any, Any]:
    """Caption loss, and the picture's mean token [n, width] for the attribute heads."""
    import torch

    encoded = tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt").to(
        x.device
    )
    labels = torch.where(encoded.attention_mask.bool(), encoded.input_ids, -100)
    output = model(
        pixel_values=x, input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, labels=labels
    )
    return output.loss, output.image_embeds.mean(dim=1)


def accuracy(model: Any, processor: Any, work: Path, count: int = 200) -> dict[str, float]:
    """Share of held-out pictures whose caption names the true kind, the true place and the true main colour."""
    import torch

    pictures = np.load(work / "held-out.npy", mmap_mode="r")[:count]
    with torch.inference_mode():
        ids = torch.cat(
            [
                _padded(model.generate(pixel_values=to_tensor(pictures[i : i + 50]), max_length=MAX_LENGTH))
                for i in range(0, len(pictures), 50)
            ]
        )
    texts = processor.batch_decode(ids, skip_special_tokens=True)
    right: dict[str, list[bool]] = {"kind": [], "background": [], "hair": [], "fur": [], "color": []}
    for i, text in enumerate(texts):
        truth = attributes(shot(HELD_OUT + i)[0])
        for key, values in right.items():
            if key in truth:
                values.append(truth[key] in text or (key == "kind" and "person" in text))
    return {key: round(float(np.mean(values)), 3) for key, values in right.items() if values}


def _padded(ids: Any) -> Any:
    import torch

    return torch.nn.functional.pad(ids, (0, MAX_LENGTH + 2 - ids.shape[1]))
