"""Pictures over the checkpoints of a tune: how it learned, at fixed seeds, beside the untuned base.

All checkpoints lie in slots of one bank, so that a prompt is rendered on all of them in one forward; whole networks
take turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunes_dagster.core.progress import Reporter
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.core.store import Store
from tunes_dagster.families.base import LoadedBase
from tunes_dagster.intake.subject import example_prompt, is_style
from tunes_dagster.rendering import denoise
from tunes_dagster.rendering.pictures import Shape
from tunes_dagster.rendering.sheets import checkpoint_sheet, png_bytes
from tunes_dagster.training import checkpoints as kept

if TYPE_CHECKING:
    from PIL.Image import Image

# Columns of the sheet beside the base; more cannot be told apart in a thumbnail.
MAX_CHECKPOINTS = 4
# Samples show what was learned, not the finest detail.
MAX_STEPS = 20


def sample_prompts(token: str, class_name: str) -> list[str]:
    """Return the rows of the sheet: subject or style, the same elsewhere, and a picture without the token.

    The last one shows whether the tune leaks into its class.
    """
    plain = "a dog on the beach" if is_style(class_name) else f"a photo of a {class_name}"
    return [
        example_prompt(token, class_name),
        example_prompt(token, class_name, "on the beach"),
        plain,
    ]


def chosen_checkpoints(keys: Sequence[str], most: int = MAX_CHECKPOINTS) -> list[str]:
    """Return at most `most` keys, evenly spread, the last one among them."""
    if len(keys) <= most:
        return list(keys)
    return [keys[round((i + 1) * len(keys) / most) - 1] for i in range(most)]


def step_of(key: str) -> int:
    """Return the step in a checkpoint's name."""
    found = re.search(r"step-(\d+)", key)
    return int(found.group(1)) if found else 0


def write_samples(
    key: str,
    checkpoints: Sequence[str],
    prompts: Sequence[str],
    base: LoadedBase,
    store: Store,
    report: Reporter,
    *,
    title: str = "Samples over training",
) -> Image:
    """Render prompts on the base and on checkpoints, and write the sheet.

    Args:
        key: Where the sheet (PNG) goes.
        checkpoints: Keys, oldest first.
        prompts: One row each.
        base: Loaded, without adapters of its own.
        store: Where checkpoints lie.
        report: Told of progress and asked about cancelling.
        title: Of the sheet.

    Returns:
        The sheet.
    """
    chosen = chosen_checkpoints(checkpoints)
    states = [kept.load_weights(store, one) for one in chosen]
    rows = []
    for seed, prompt in enumerate(prompts):
        report.check_cancelled()
        rows.append(_row(prompt, seed, states, base))
        report.step(seed + 1, len(prompts))
    settings = base.entry.render_settings(RenderSettings())
    sheet = checkpoint_sheet(
        prompts,
        [0, *(step_of(one) for one in chosen)],
        rows,
        title=title,
        subtitle=f"{base.entry.base_id}, guidance {settings.guidance_scale or 1:g}, one seed per row",
    )
    store.write_bytes(key, png_bytes(sheet))
    return sheet


def _row(prompt: str, seed: int, states: Sequence[dict], base: LoadedBase) -> list[Image | None]:
    """Render one prompt on the base (slot -1) and on each state, from the same noise."""
    import torch

    from tunes_dagster.training.wholes import worn

    settings = base.entry.render_settings(RenderSettings())
    side = base.entry.native_size
    guidance = settings.guidance_scale if settings.guidance_scale is not None else 1.0
    steps = min(settings.steps or MAX_STEPS, MAX_STEPS)
    noise = torch.randn(1, *base.latent_shape(side, side), generator=torch.Generator().manual_seed(seed))
    text = base.encode_text([prompt])
    slots = [-1, *range(len(states))]
    room = denoise.rows_that_fit(
        base, Shape(width=side, height=side, steps=steps, scheduler=None, guided=base.is_guided(guidance))
    )
    images: list[Image | None] = []
    with torch.no_grad(), worn(base, states) as bank:
        room = room if bank.mixes else 1
        for start in range(0, len(slots), room):
            some = slots[start : start + room]
            bank.assign(some * 2 if base.is_guided(guidance) else some)
            latents = base.sample(
                {name: value.expand(len(some), *value.shape[1:]) for name, value in text.items()},
                noise.expand(len(some), -1, -1, -1),
                side,
                side,
                steps,
                guidance,
            )
            images += [_picture(pixels) for pixels in base.decode(latents.to(base.dtype))]
    return images


def _picture(pixels: object) -> Image:
    from PIL import Image as images

    array = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()  # type: ignore[attr-defined]
    return images.fromarray(array)
