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
from typing import TYPE_CHECKING, Any

import numpy as np

from tunes_dagster.rendering.faceid import face_rows
from tunes_dagster.rendering.memory import most_at_once, pictures_that_fit
from tunes_dagster.rendering.pictures import Picture, Shape
from tunes_dagster.rendering.schedulers import model_input, starting_latents
from tunes_dagster.rendering.texts import Script, TextCache

if TYPE_CHECKING:
    import torch

    from tunes_dagster.families.base import LoadedBase
    from tunes_dagster.rendering.merged import MergedBank
    from tunes_dagster.training.adapters import AdapterBank

# Decoding more at once is no faster, and the first ones are written while the next ones are decoded.
_MOST_DECODED = 8
# Copies of a VAE decoder's last, widest feature map, of 128 channels, that are alive at its peak.
_DECODER_MAPS_ALIVE, _DECODER_CHANNELS = 10, 128


def generators(pictures: Sequence[Picture]) -> list[torch.Generator]:
    """Return one generator per picture, on the CPU so that every device starts from the same noise."""
    import torch

    return [torch.Generator("cpu").manual_seed(picture.seed) for picture in pictures]


def denoise(
    base: LoadedBase,
    pictures: Sequence[Picture],
    texts: TextCache,
    bank: AdapterBank | MergedBank | None,
    on_step: Callable[[int], None] = lambda rows: None,
    control: Any = None,
) -> torch.Tensor:
    """Denoise pictures of one shape together.

    Args:
        base: The model.
        pictures: All of the same `Shape`.
        texts: Embeddings.
        bank: Attached adapters, or None.
        on_step: Called after every step with the number of pictures; may raise `Cancelled`.
        control: The ControlNet of the shape, see `controls.Control`.

    Returns:
        Latents [pictures, c, h, w] in float32. The loop keeps them in float32 whatever the model computes in:
        rounding them to half precision at every step costs detail and saves nothing.
    """
    import torch

    shape = pictures[0].shape
    own = generators(pictures)
    scheduler = base.scheduler(shape.scheduler, shape.schedule, shape.width, shape.height)
    repeat = 2 if shape.guided else 1
    script, faces = Script(base, pictures, texts), face_rows(base, pictures, repeat)
    order = getattr(scheduler, "order", 1)
    if bank is not None:
        bank.assign([picture.slot for picture in pictures for _ in range(repeat)])
    guidance = torch.tensor([p.guidance_scale for p in pictures], device=base.device).view(-1, 1, 1, 1)
    extra = _extra_arguments(scheduler, own)
    with torch.inference_mode():
        start = Start(base, pictures, scheduler, own)
        latents, timesteps = start.latents, start.timesteps
        steer = None if control is None else control.steer(pictures, repeat)
        for i, t in enumerate(timesteps):
            rows = {**script.at(i // order), **faces}
            noisy = model_input(scheduler, latents, t).to(base.dtype)
            if repeat > 1:
                noisy = noisy.repeat_interleave(repeat, dim=0)
            row_timesteps = t.expand(len(noisy))
            given = rows if steer is None else {**rows, **steer(noisy, row_timesteps, rows)}
            noise_pred = base.predict(noisy, row_timesteps, given).float()
            if shape.guided:
                uncond, text_pred = noise_pred[0::2], noise_pred[1::2]
                noise_pred = torch.lerp(uncond, text_pred, guidance)
            latents = scheduler.step(noise_pred, t, latents, **extra, return_dict=False)[0]
            latents = start.outside_kept(latents, i)
            on_step(len(pictures))
    return latents


class Start:
    """Where denoising starts: from noise, or from pictures with as much noise as their strength says.

    The numbers are drawn in the order of the stock pipelines: for the posterior first, for the noise then.

    Attributes:
        latents: `[rows, c, h, w]`.
        timesteps: Those that are left.
    """

    def __init__(
        self, base: LoadedBase, pictures: Sequence[Picture], scheduler: Any, own: list[torch.Generator]
    ) -> None:
        import torch
        from diffusers.utils.torch_utils import randn_tensor

        shape = pictures[0].shape
        self._scheduler = scheduler
        self.clean = None if shape.strength is None else _encoded(base, pictures, own)
        self.mask = _latent_masks(base, pictures) if shape.masked else None
        size = (len(pictures), *base.latent_shape(shape.width, shape.height))
        self.noise = randn_tensor(size, generator=own, device=base.device, dtype=torch.float32)
        first = shape.skipped * getattr(scheduler, "order", 1)
        self.timesteps = scheduler.timesteps[first:]
        from_noise = self.clean is None or (shape.masked and shape.strength == 1)
        if from_noise:
            self.latents = starting_latents(scheduler, self.noise)
            return
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        self.latents = self._noisy(self.timesteps[:1])

    def _noisy(self, t: torch.Tensor) -> torch.Tensor:
        """Return the clean latents with the noise of a timestep."""
        add = getattr(self._scheduler, "scale_noise", None)
        timesteps = t.expand(len(self.noise))
        if add is not None:
            return add(self.clean, timesteps, self.noise)
        return self._scheduler.add_noise(self.clean, self.noise, timesteps)

    def outside_kept(self, latents: torch.Tensor, step: int) -> torch.Tensor:
        """Return latents whose part outside of the mask is the picture's own, as noisy as they are now."""
        if self.mask is None or self.clean is None:
            return latents
        last = step + 1 >= len(self.timesteps)
        outside = self.clean if last else self._noisy(self.timesteps[step + 1 : step + 2])
        return self.mask * latents + (1 - self.mask) * outside


def _encoded(base: LoadedBase, pictures: Sequence[Picture], own: list[torch.Generator]) -> torch.Tensor:
    """Return latents of the pictures to start from, sampled from the VAE's posterior."""
    import torch
    from diffusers.utils.torch_utils import randn_tensor

    arrays = np.stack([picture.start for picture in pictures if picture.start is not None])
    pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2).to(base.device).float() / 127.5 - 1
    found = [base.encode_images(row.unsqueeze(0)) for row in pixels]
    mean = torch.cat([one.mean for one in found]).float()
    std = torch.cat([one.std for one in found]).float()
    return mean + std * randn_tensor(mean.shape, generator=own, device=base.device, dtype=torch.float32)


def _latent_masks(base: LoadedBase, pictures: Sequence[Picture]) -> torch.Tensor:
    """Return masks `[rows, 1, h, w]` on the latent grid: 1 wherever any pixel of a latent is painted anew."""
    import torch

    shape = pictures[0].shape
    masks = torch.from_numpy(np.stack([picture.mask for picture in pictures if picture.mask is not None]))
    size = base.latent_shape(shape.width, shape.height)[1:]
    wide = torch.nn.functional.adaptive_max_pool2d((masks > 0).float().unsqueeze(1), size)
    return wide.to(base.device)


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


def rows_that_fit(base: LoadedBase, shape: Shape, waiting: int = 0) -> int:
    """Return how many pictures of a shape are denoised at once; an estimate, out of memory halves it.

    Args:
        base: The model.
        shape: Of the pictures.
        waiting: Bytes that each holds beside its rows, for words that come later.
    """
    per_picture = (2 if shape.guided else 1) * base.forward_bytes(shape.width, shape.height) + waiting
    return pictures_that_fit(free_memory(base), per_picture, most_at_once(base.device.type))


def decoding_bytes(shape: Shape) -> int:
    """Return an estimate of the memory that decoding one picture of a shape takes."""
    return shape.width * shape.height * _DECODER_CHANNELS * 4 * _DECODER_MAPS_ALIVE


def decodes_that_fit(base: LoadedBase, shape: Shape) -> int:
    """Return how many pictures of a shape are decoded at once; an estimate, out of memory halves it."""
    return pictures_that_fit(free_memory(base), decoding_bytes(shape), _MOST_DECODED)


def needs_tiles(base: LoadedBase, shape: Shape) -> bool:
    """Whether memory is too short to decode even one picture of a shape at once."""
    return decoding_bytes(shape) > free_memory(base)


def free_memory(base: LoadedBase) -> int:
    """Return the bytes that are free where the base lies."""
    import torch

    if base.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(base.device)
        cached = torch.cuda.memory_reserved(base.device) - torch.cuda.memory_allocated(base.device)
        return int(free + cached)
    import psutil

    return int(psutil.virtual_memory().available)


def release_memory() -> None:
    """Give cached memory back after running out."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
