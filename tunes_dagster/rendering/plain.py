"""Batches on models that no tune is made on: enlarging given pictures, and clips from text.

One prompt after another, in the stock pipelines; jobs, results, recipes and failures are those of the renderer.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tunes_dagster.core.failures import Failure, FailureCode, as_failure
from tunes_dagster.core.progress import Phase
from tunes_dagster.core.recipe import RenderSettings, recipe_hash
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.rendering import png, policy
from tunes_dagster.rendering.aids import Aids
from tunes_dagster.rendering.brackets import plain_sentence
from tunes_dagster.rendering.inputs import Inputs
from tunes_dagster.rendering.jobs import Delivery, RenderedImage, RenderJob, RenderResult
from tunes_dagster.rendering.records import library_versions, optional_settings, picture_failure
from tunes_dagster.rendering.styles import dressed
from tunes_dagster.rendering.upscaling import Upscaler

Step = Callable[[], None]


@dataclass(frozen=True)
class Order:
    """One picture or clip to be made."""

    job: RenderJob
    seed: int
    text: str
    negative: str

    @property
    def settings(self) -> RenderSettings:
        """Of its prompt."""
        return self.job.settings


class PictureMaker:
    """Enlarges given pictures; see `upscaling`."""

    def __init__(self, folder: Path, device: Any, dtype: Any, inputs: Inputs) -> None:
        self._upscaler, self._inputs = Upscaler(folder, device, dtype), inputs

    def make(self, order: Order, on_step: Step) -> Sequence[Image.Image]:
        """Return the picture, four times as wide and high."""
        settings = order.settings
        assert settings.input_image and settings.steps and settings.guidance_scale is not None
        image = self._inputs.picture(settings.input_image)
        if image.width * image.height > 2048**2:
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"The picture has {image.width}x{image.height} pixels, and at most 2048x2048 are enlarged.",
                "Send a smaller one.",
            )
        return [
            self._upscaler.enlarge(
                image,
                order.text,
                order.seed,
                steps=settings.steps,
                guidance=settings.guidance_scale,
                negative=order.negative,
                on_step=on_step,
            )
        ]


class ClipMaker:
    """Makes clips from text with a `CogVideoXPipeline`."""

    def __init__(self, folder: Path, device: Any, dtype: Any) -> None:
        from diffusers import CogVideoXPipeline

        try:
            pipeline: Any = CogVideoXPipeline.from_pretrained(str(folder), torch_dtype=dtype)
        except Exception as error:
            unusable = Failure(
                FailureCode.WEIGHTS_UNUSABLE,
                f"The video model {folder.name!r} cannot be loaded.",
                "Pull it again with `tunes bases pull`.",
                str(folder),
            )
            raise as_failure(error, unusable) from error
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.enable_tiling()
        self._pipeline = pipeline.to(device)

    def make(self, order: Order, on_step: Step) -> Sequence[Image.Image]:
        """Return the frames."""
        import torch

        def stepped(pipeline: Any, step: int, moment: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step()
            return tensors

        settings = order.settings
        with torch.inference_mode():
            made = self._pipeline(
                prompt=order.text,
                negative_prompt=order.negative or None,
                height=settings.height,
                width=settings.width,
                num_frames=settings.num_frames,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                callback_on_step_end=stepped,
                max_sequence_length=self._pipeline.transformer.config.max_text_seq_length,
                generator=torch.Generator("cpu").manual_seed(order.seed),
                output_type="np",
            ).frames[0]
        frames = np.asarray(made)
        if not np.isfinite(frames).all():
            raise Failure(
                FailureCode.NOT_FINITE,
                f"The clip with seed {order.seed} came out as numbers that are not finite.",
                "Lower the guidance; in float16, use bfloat16 or float32.",
            )
        return [Image.fromarray((frame * 255).round().clip(0, 255).astype(np.uint8)) for frame in frames]


def mp4_bytes(frames: Sequence[Image.Image], fps: int) -> bytes:
    """Return a clip as MP4 with VP9, which OpenCV's wheel writes and every browser plays.

    Raises:
        Failure: `RENDER_FAILED` when this build of OpenCV cannot write it.
    """
    import cv2

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        code = cv2.VideoWriter.fourcc(*"vp09")
        writer = cv2.VideoWriter(str(path), code, fps, frames[0].size)
        try:
            for frame in frames:
                writer.write(cv2.cvtColor(np.asarray(frame.convert("RGB")), cv2.COLOR_RGB2BGR))
        finally:
            writer.release()
        if not path.is_file() or not path.stat().st_size:
            raise Failure(
                FailureCode.RENDER_FAILED,
                "The clip could not be written: this build of OpenCV has no VP9 encoder.",
                "Install opencv-python-headless from its wheel.",
            )
        return path.read_bytes()


def render_plain(
    batch: Sequence[RenderJob],
    entry: BaseModelEntry,
    folder: Path,
    device: Any,
    dtype: Any,
    delivery: Delivery,
    aids: Aids | None = None,
) -> list[RenderResult]:
    """Render a batch on an upscaling or video model.

    Args:
        batch: The prompts.
        entry: Of the catalog.
        folder: Of the weights.
        device: torch device.
        dtype: torch dtype.
        delivery: Where files go, and who is told; a prompt is a part of the batch.
        aids: Rules and addresses.

    Returns:
        One result per prompt, in order; what goes wrong with one ends that prompt only.

    Raises:
        Cancelled: When asked for.
        Failure: `WEIGHTS_UNUSABLE` when the model cannot be loaded.
    """
    aids = aids or Aids()
    maker: PictureMaker | ClipMaker
    if entry.family == "video":
        maker = ClipMaker(folder, device, dtype)
    else:
        maker = PictureMaker(folder, device, dtype, Inputs(delivery.store, aids))
    things = sum(job.settings.num_images for job in batch)
    delivery.report.phase(
        Phase.RENDERING, f"{things} {'clips' if entry.family == 'video' else 'pictures'} on {entry.base_id}"
    )
    facts = {
        "kind": "clip" if entry.family == "video" else "upscale",
        "base": {"branch": entry.base_id, "repo_id": entry.repo_id, "revision": entry.revision},
        "libraries": library_versions(),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
    }
    results: list[RenderResult] = []
    for job in batch:
        if results:
            delivery.between(0.0)
        results.append(_one(job, maker, facts, delivery, aids, device))
        delivery.on_done(results[-1])
    return results


def _one(
    job: RenderJob,
    maker: PictureMaker | ClipMaker,
    facts: dict[str, Any],
    delivery: Delivery,
    aids: Aids,
    device: Any,
) -> RenderResult:
    images: list[RenderedImage] = []
    try:
        text, negative = (plain_sentence(words) for words in dressed(job.text, job.settings))
        policy.check_text(text, aids.rules)
        for number in range(job.settings.num_images):
            order = Order(job, (job.settings.seed or 0) + number, text, negative)
            frames = maker.make(order, delivery.report.check_cancelled)
            checker = aids.checker(device)
            if checker is not None and any(checker.unsafe(_looked_at(frames))):
                raise policy.blocked(policy.SAFETY_RULE, f"The picture with seed {order.seed}")
            images.append(_kept(order, frames, facts, delivery))
    except Exception as error:
        failure = picture_failure(error)
        if failure.code in (FailureCode.CANCELLED, FailureCode.STORE_UNAVAILABLE):
            raise
        return RenderResult(job.prompt_id, images, failure)
    return RenderResult(job.prompt_id, images, None, list(job.warnings))


def _looked_at(frames: Sequence[Image.Image]) -> Sequence[Image.Image]:
    """Return what the checker sees of a clip: about two frames of a second, the first and the last."""
    return [*frames[:-1][::4], frames[-1]]


def _kept(
    order: Order, frames: Sequence[Image.Image], facts: dict[str, Any], delivery: Delivery
) -> RenderedImage:
    settings, first, store = order.settings, frames[0], delivery.store
    deciding = {
        **facts,
        "prompt": order.text,
        "negative_prompt": order.negative,
        "seed": order.seed,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "width": first.width,
        "height": first.height,
        **optional_settings(settings),
    }
    recipe = {**order.job.recipe, **deciding, "recipe_hash": recipe_hash(deciding)}
    stem = f"{delivery.prefix.rstrip('/')}/{order.job.prompt_id}-{order.seed}"
    poster = key = png.save_png(store, f"{stem}.png", first, recipe)
    data = store.read_bytes(key)
    if facts["kind"] == "clip":
        data = mp4_bytes(frames, settings.fps or 8)
        key = store.write_bytes(f"{stem}.mp4", data)
    return RenderedImage(
        key=key,
        seed=order.seed,
        width=first.width,
        height=first.height,
        rendered_at=first.size,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        recipe_hash=recipe["recipe_hash"],
        deviation=round(float(np.asarray(first).reshape(-1, 3).std(axis=0).max()), 3),
        poster=poster,
    )
