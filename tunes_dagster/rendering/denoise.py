"""The denoising loop over rows of different prompts and tunes, and how many rows fit at once.

It knows no family: latents are `[rows, c, h, w]`, and the base says how they are scheduled, predicted, guided and
decoded (`LoadedBase.scheduler`, `predict`, `is_guided`, `decode`).

The same arithmetic as the stock pipelines, with three differences that only a batch of strangers needs: guidance is per
row, each row has its own generator, and the two rows of one picture (without and with text) lie side by side,
so that rows of one tune form one block for the stacked adapters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunes_dagster.rendering.schedulers import model_input, starting_latents

if TYPE_CHECKING:
    import torch

    from tunes_dagster.training.adapters import AdapterBank
    from tunes_dagster.training.families.base import Conditioning, LoadedBase

# On CPU more rows save nothing, and a small batch lets saving and cancelling keep up.
_MOST_ON_CPU, _MOST_ON_GPU = 8, 32
# Copies of a VAE decoder's last, widest feature map, of 128 channels, that are alive at its peak.
_DECODER_MAPS_ALIVE, _DECODER_CHANNELS = 10, 128


@dataclass(frozen=True)
class Shape:
    """What pictures must share to be denoised together."""

    width: int
    height: int
    steps: int
    scheduler: str | None
    guided: bool


@dataclass(frozen=True)
class Picture:
    """One picture to be made.

    Attributes:
        job: Index of its prompt in the batch.
        number: Which of the prompt's pictures.
        seed: Its own seed.
        shape: See `Shape`.
        guidance_scale: Of this picture.
        text: The prompt.
        negative: The negative prompt; empty means none.
        slot: Of the stacked adapters; -1 is the plain base.
    """

    job: int
    number: int
    seed: int
    shape: Shape
    guidance_scale: float
    text: str
    negative: str
    slot: int


class TextCache:
    """Text embeddings of one batch, each text encoded once.

    Args:
        base: The model.
        rows: Texts per forward of the text encoders.
    """

    def __init__(self, base: LoadedBase, rows: int = 16) -> None:
        self._base, self._rows = base, rows
        self._known: dict[str, Conditioning] = {}
        self._nothing: Conditioning | None = None

    def encode(self, texts: Sequence[str]) -> None:
        """Encode those texts that are not known yet."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for start in range(0, len(new), self._rows):
            some = new[start : start + self._rows]
            encoded = self._base.encode_text(some)
            for i, text in enumerate(some):
                self._known[text] = {name: value[i : i + 1] for name, value in encoded.items()}

    def prompt(self, text: str) -> Conditioning:
        """Return the embedding of a prompt, one row."""
        self.encode([text])
        return self._known[text]

    def negative(self, text: str) -> Conditioning:
        """Return the embedding of a negative prompt; the empty one is what the stock pipeline uses for none."""
        if text:
            return self.prompt(text)
        if self._nothing is None:
            self._nothing = self._base.no_text(1)
        return self._nothing


def conditioning(base: LoadedBase, pictures: Sequence[Picture], texts: TextCache) -> Conditioning:
    """Return the conditioning of all rows: per picture one row, or two when guided, the one without text first."""
    import torch

    shape = pictures[0].shape
    rows: list[Conditioning] = []
    for picture in pictures:
        if shape.guided:
            rows.append(texts.negative(picture.negative))
        rows.append(texts.prompt(picture.text))
    stacked = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    repeat = 2 if shape.guided else 1
    scales = [picture.guidance_scale for picture in pictures for _ in range(repeat)]
    guidance = torch.tensor(scales, device=base.device)
    return base.with_size(stacked, shape.width, shape.height, guidance)


def generators(pictures: Sequence[Picture]) -> list[torch.Generator]:
    """Return one generator per picture, on the CPU so that every device starts from the same noise."""
    import torch

    return [torch.Generator("cpu").manual_seed(picture.seed) for picture in pictures]


def denoise(
    base: LoadedBase,
    pictures: Sequence[Picture],
    texts: TextCache,
    bank: AdapterBank | None,
    on_step: Callable[[int], None] = lambda rows: None,
) -> torch.Tensor:
    """Denoise pictures of one shape together.

    Args:
        base: The model.
        pictures: All of the same `Shape`.
        texts: Embeddings.
        bank: Attached adapters, or None.
        on_step: Called after every step with the number of pictures; may raise `Cancelled`.

    Returns:
        Latents [pictures, c, h, w] in float32. The loop keeps them in float32 whatever the model computes in:
        rounding them to half precision at every step costs detail and saves nothing.
    """
    import torch
    from diffusers.utils.torch_utils import randn_tensor

    shape = pictures[0].shape
    own = generators(pictures)
    scheduler = base.scheduler(shape.scheduler, shape.steps, shape.width, shape.height)
    rows = conditioning(base, pictures, texts)
    repeat = 2 if shape.guided else 1
    if bank is not None:
        bank.assign([picture.slot for picture in pictures for _ in range(repeat)])
    guidance = torch.tensor([p.guidance_scale for p in pictures], device=base.device).view(-1, 1, 1, 1)
    size = (len(pictures), *base.latent_shape(shape.width, shape.height))
    latents = randn_tensor(size, generator=own, device=base.device, dtype=torch.float32)
    latents = starting_latents(scheduler, latents)
    extra = _extra_arguments(scheduler, own)
    with torch.inference_mode():
        for t in scheduler.timesteps:
            noisy = model_input(scheduler, latents, t).to(base.dtype).repeat_interleave(repeat, dim=0)
            guess = base.predict(noisy, t.expand(len(noisy)), rows).float()
            if shape.guided:
                without, with_text = guess[0::2], guess[1::2]
                guess = without + guidance * (with_text - without)
            latents = scheduler.step(guess, t, latents, **extra, return_dict=False)[0]
            on_step(len(pictures))
    return latents


def _extra_arguments(scheduler: Any, own: list[torch.Generator]) -> dict[str, Any]:
    """Return what this scheduler's step takes beyond the stock three, as the stock pipelines decide it."""
    taken = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in {"generator": own, "eta": 0.0}.items() if name in taken}


def decode(base: LoadedBase, latents: torch.Tensor) -> Any:
    """Decode latents to uint8 pixels `[rows, height, width, 3]` (numpy); rows that are not finite stay so visible.

    Returns:
        (pixels, finite) where `finite[i]` says whether row i holds a picture.
    """
    import torch

    with torch.inference_mode():
        finite = torch.isfinite(latents).flatten(1).all(dim=1)
        decoded = base.decode(torch.where(finite.view(-1, 1, 1, 1), latents, torch.zeros_like(latents)))
        finite &= torch.isfinite(decoded).flatten(1).all(dim=1)
        pixels = decoded.nan_to_num(0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy(), finite.cpu().tolist()


def set_tiling(base: LoadedBase, on: bool) -> bool:
    """Switch decoding by overlapping tiles on or off; return whether the base's VAE can do that."""
    switch = getattr(base.parts()["vae"], "enable_tiling" if on else "disable_tiling", None)
    if switch is None:
        return False
    switch()
    return True


def rows_that_fit(base: LoadedBase, shape: Shape) -> int:
    """Return how many pictures of a shape are denoised at once; an estimate, out of memory halves it."""
    per_picture = (2 if shape.guided else 1) * base.forward_bytes(shape.width, shape.height)
    most = _MOST_ON_CPU if base.device.type == "cpu" else _MOST_ON_GPU
    return max(1, min(most, int(free_memory(base) * 0.6 / per_picture)))


def decodes_that_fit(base: LoadedBase, shape: Shape) -> int:
    """Return how many pictures of a shape are decoded at once; an estimate, out of memory halves it."""
    per_picture = shape.width * shape.height * _DECODER_CHANNELS * 4 * _DECODER_MAPS_ALIVE
    return max(1, min(_MOST_ON_CPU, int(free_memory(base) * 0.6 / per_picture)))


def free_memory(base: LoadedBase) -> int:
    """Return the bytes that are free where the base lies."""
    import torch

    if base.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(base.device)
        cached = torch.cuda.memory_reserved(base.device) - torch.cuda.memory_allocated(base.device)
        return int(free + cached)
    import psutil

    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on any device."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def release_memory(base: LoadedBase) -> None:
    """Give cached memory back after running out."""
    import gc

    import torch

    gc.collect()
    if base.device.type == "cuda":
        torch.cuda.empty_cache()
