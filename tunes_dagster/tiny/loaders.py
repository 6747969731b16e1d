"""Small objects around the shipped captioner and scorer. The classes inside are stock transformers classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .images import square

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class Captioner:
    """`BlipForConditionalGeneration` with its processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @classmethod
    def load(cls, folder: Path) -> Captioner:
        """From a weights folder, in float32 on the CPU."""
        import torch
        from transformers import BlipForConditionalGeneration, BlipProcessor

        model = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        return cls(model, BlipProcessor.from_pretrained(folder))

    def caption(self, images: list[Image.Image], batch: int = 32) -> list[str]:
        """One caption for each picture (any size; the centred square is looked at). Greedy, so repeatable."""
        import torch

        texts: list[str] = []
        for i in range(0, len(images), batch):
            inputs = self.processor(images=[square(im) for im in images[i : i + batch]], return_tensors="pt")
            with torch.inference_mode():
                ids = self.model.generate(
                    pixel_values=inputs.pixel_values, max_length=48, num_beams=1, do_sample=False
                )
            texts += self.processor.batch_decode(ids, skip_special_tokens=True)
        return [text.replace(" ,", ",").replace(" - ", "-").strip() for text in texts]


class Scorer:
    """`CLIPModel` with its processor: pictures and texts to unit vectors of one space."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @classmethod
    def load(cls, folder: Path) -> Scorer:
        """From a weights folder, in float32 on the CPU."""
        import torch
        from transformers import AutoTokenizer, CLIPModel, CLIPProcessor
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        # The form of the processor that needs no torchvision, which a build of torch may have or not.
        pictures = CLIPImageProcessorPil.from_pretrained(folder)
        processor = CLIPProcessor(pictures, AutoTokenizer.from_pretrained(folder))
        return cls(CLIPModel.from_pretrained(folder, dtype=torch.float32), processor)

    def embed_images(self, images: list[Image.Image], batch: int = 64) -> np.ndarray:
        """float32 [n, d], rows of length 1. The cosine of two rows is the likeness of two pictures."""
        import numpy as np
        import torch

        rows = []
        with torch.inference_mode():
            for i in range(0, len(images), batch):
                pixels = self.processor.image_processor(
                    images[i : i + batch], return_tensors="pt"
                ).pixel_values
                pooled = self.model.vision_model(pixel_values=pixels).pooler_output
                rows.append(_unit(self.model.visual_projection(pooled)).numpy())
        return np.concatenate(rows) if rows else np.zeros((0, self.model.config.projection_dim), np.float32)

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """float32 [n, d], rows of length 1. The cosine with a picture's row says how well the text fits it."""
        import torch

        ids = self.processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids
        with torch.inference_mode():
            pooled = self.model.text_model(input_ids=ids).pooler_output
            return _unit(self.model.text_projection(pooled)).numpy()


def _unit(x: Any) -> Any:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-9)
