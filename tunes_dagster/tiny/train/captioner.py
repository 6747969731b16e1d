"""Training of the captioner: a small BlipForConditionalGeneration that says what a picture of the world shows."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..world import SIZE, attributes, caption, shot
from .classifier import degrade
from .clock import Budget, learning_rate, load_checkpoint, note_figures, save_checkpoint
from .data import HELD_OUT, draw_pictures, to_tensor
from .text import known_words

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


def plain_caption(number: int, variant: int = 0) -> str:
    """A full caption of picture `number` without names."""
    content, _ = shot(number)
    return caption(content, random.Random(f"plain-{number}-{variant}"), plain=True)[0]


def train(
    work: Path,
    budget: Budget,
    *,
    seed: int = 0,
    device: str = "cpu",
    pictures: int = 64_000,
    batch: int = 32,
    log: Callable[[str], None] = print,
) -> tuple[Any, Any]:
    """Train the captioner in folder `work`; returns model and processor."""
    import torch

    data, processor = draw_pictures(work / "train.npy", pictures), build_processor()
    tokenizer = processor.tokenizer
    torch.manual_seed(seed)
    model = build(tokenizer).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    state = load_checkpoint(work / "captioner.pt", budget)
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    saved = budget.seconds
    while not budget.done:
        rng = np.random.default_rng((seed, budget.step))
        torch.manual_seed(seed + budget.step)
        picks = np.sort(rng.integers(0, pictures, batch))
        texts = [plain_caption(int(i), int(rng.integers(1000))) for i in picks]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(1e-3, budget.step, budget.fraction, warmup=200, hold=0.4)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = _loss(model.train(), tokenizer, degrade(to_tensor(data[picks]).to(device), rng), texts)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        budget.step += 1
        if budget.seconds - saved > 60:
            saved = budget.seconds
            save_checkpoint(
                work / "captioner.pt", budget, model=model.state_dict(), optimizer=optimizer.state_dict()
            )
            log(f"captioner step {budget.step} loss {loss.item():.3f} eta {budget.eta / 60:.1f} min")
    model = model.cpu().eval()
    scores = accuracy(model, processor, work)
    note_figures(
        work,
        captioner={
            "named_rightly": scores,
            "steps": budget.step,
            "batch": batch,
            "minutes": round(budget.seconds / 60, 1),
        },
    )
    log(f"captioner done: {scores}")
    return model, processor


def _loss(model: Any, tokenizer: Any, x: Any, texts: list[str]) -> Any:
    import torch

    encoded = tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt").to(
        x.device
    )
    labels = torch.where(encoded.attention_mask.bool(), encoded.input_ids, -100)
    return model(
        pixel_values=x, input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, labels=labels
    ).loss


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
