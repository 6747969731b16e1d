"""Contact sheets of the drawn world and of what the base renders."""

from __future__ import annotations

from typing import Any

from PIL import Image

SHEET_PROMPTS = (
    "a photo of a woman with long red hair and glasses, on a blue background",
    "a photo of a man with short black hair with a beard, on a green background",
    "a photo of a bald dark-skinned man wearing sunglasses on the beach",
    "a photo of a woman with curly blond hair in a purple shirt in a forest",
    "a photo of a man wearing a red top hat in a yellow shirt at night",
    "a photo of a red mug on a table",
    "a photo of a blue sneaker in a meadow",
    "a photo of a green backpack in the mountains",
    "a photo of an orange cat with a blue collar on a pink background",
    "a photo of a white dog with a red collar in the snow",
    "a photo of a woman with a pink bob in a black striped shirt on a yellow background",
    "a photo of a man with spiky blue hair on an orange background",
    "a photo of a yellow bottle in the desert",
    "a photo of a laughing woman with a brown bun in the city",
    "a photo of a man wearing a green beanie with a moustache on a gray background",
    "a photo of a purple car on a white background",
    "a photo of a gray rabbit in a meadow",
    "a photo of a cactus in an orange pot on a blue background",
    "a photo of a smiling tan-skinned woman with gray hair and sunglasses on a red background",
    "a photo of a black striped mug on a yellow background",
    "a photo of a pink chair on a green background",
    "a photo of a red ball on the beach",
    "a photo of a brown cat in a forest",
    "a photo of a woman with long purple hair in a white shirt at night",
)


SHOWN = 3
"""Rows of the upscaler's sheet."""


def grid(images: list[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Pictures of one size side by side, `columns` to a row, on white."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet


def small_png(sheet: Image.Image, path: Any, colors: int = 192) -> None:
    """Save `sheet` with a palette: about a third of the size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)


def enlarged_sheet(folder: Any, count: int, steps: int, path: Any) -> None:
    """Print how near the upscaler in a folder comes to held-out drawings, alone and as it is served, beside Lanczos.

    Saves three of them side by side: what goes in, enlarged by Lanczos, as it is served, the drawing.
    """
    import numpy as np
    import torch

    from factory.train.data import HELD_OUT
    from factory.train.upscaler import pairs, psnr
    from factory.train.upscaler_vae import DRAWN
    from tunes_dagster.rendering.upscaling import Upscaler, colored_as
    from tunes_dagster.tiny.world import picture

    upscaler = Upscaler(folder, "cpu", torch.float32)
    drawings = np.stack([np.asarray(picture(HELD_OUT + i, DRAWN)[0]) for i in range(count)])
    values, rows = [], []
    for drawing, small, plain, alone in pairs(upscaler.pipeline, drawings, steps):
        served = colored_as(small, np.asarray(alone, np.float32))
        values.append([psnr(image, drawing) for image in (plain, alone, served)])
        rows.append(
            (small.resize(plain.size, Image.Resampling.NEAREST), plain, served, Image.fromarray(drawing))
        )
    lanczos, alone, served = np.mean(values, axis=0)
    print(
        f"{count} held-out drawings, {steps} steps: Lanczos {lanczos:.2f} dB, the model alone {alone:.2f} dB, "
        f"as it is served {served:.2f} dB; better than Lanczos on {sum(v[2] > v[0] for v in values)}"
    )
    small_png(grid([image for row in rows[:SHOWN] for image in row], 4), path, 255)
    print(path)


def world_sheet(count: int = 48, columns: int = 8) -> Image.Image:
    """Pictures of the training world, the held-out subjects in the last rows."""
    from tunes_dagster.tiny.world import SUBJECTS, draw_subject, picture

    images = [picture(i)[0] for i in range(count)]
    for name in SUBJECTS:
        images += [image for image, _ in draw_subject(name, columns)]
    return grid(images, columns)


def render(
    pipe: Any,
    prompts: list[str],
    *,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 4.0,
    batch: int = 12,
    size: int = 128,
) -> list[Image.Image]:
    """One picture per prompt; picture i depends on `seed + i` only. FLUX pipelines get true guidance."""
    import inspect

    import torch

    from tunes_dagster.tiny import FLUX_SEQUENCE

    images: list[Image.Image] = []
    guided: dict[str, Any] = {"guidance_scale": guidance}
    if "true_cfg_scale" in inspect.signature(pipe.__call__).parameters:
        guided = {"true_cfg_scale": guidance, "negative_prompt": "", "max_sequence_length": FLUX_SEQUENCE}
    pipe.set_progress_bar_config(disable=True)
    for i in range(0, len(prompts), batch):
        part = prompts[i : i + batch]
        generators = [torch.Generator().manual_seed(seed + i + j) for j in range(len(part))]
        images += pipe(
            part,
            num_inference_steps=steps,
            generator=generators,
            height=size,
            width=size,
            **guided,
        ).images
    return images


def base_sheet(pipe: Any, seed: int = 0, steps: int = 25, guidance: float = 4.0) -> Image.Image:
    """A base's renders of `SHEET_PROMPTS`."""
    return grid(render(pipe, list(SHEET_PROMPTS), seed=seed, steps=steps, guidance=guidance), 8)
