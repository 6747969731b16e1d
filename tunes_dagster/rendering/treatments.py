"""What is done to a picture after it was denoised: framing, a second pass, enlarging, faces.

Every pass that paints uses the base with the picture's own tune, prompt and seed, so that the same recipe gives the
same picture, alone or in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.intake.faces import Box
from tunes_dagster.rendering import denoise as dn
from tunes_dagster.rendering.pictures import Picture
from tunes_dagster.rendering.schedule import by_step, settled
from tunes_dagster.rendering.sizes import enlarge, fit_area, rendered_size
from tunes_dagster.rendering.texts import TextCache
from tunes_dagster.rendering.wishes import enlarges_by_model

if TYPE_CHECKING:
    from tunes_dagster.families.base import LoadedBase
    from tunes_dagster.rendering.aids import Aids
    from tunes_dagster.rendering.merged import MergedBank
    from tunes_dagster.training.adapters import AdapterBank

# How far each pass may go from what it finds.
_HIRES_STRENGTH, _FACE_STRENGTH, _ZOOM_STRENGTH, _BORDER_STRENGTH = 0.4, 0.4, 0.3, 0.5
# Side of the square around a face that is painted again, in heights of the face. A base draws a head with its hair in
# about this much room: at 1.7 and strength 0.5 the shipped one made faces a sixth smaller than it found them.
_FACE_ROOM = 2.1
_MOST_FACES = 6
# A face is as high as asked when it is within this share; the promise is 10 %, the aim is tighter.
FACE_TOLERANCE, _FACE_AIM = 0.10, 0.04
_FRAMINGS = 4
# Enlarged less than this, a picture keeps the detail it has.
_REFINED_FROM = 1.15


@dataclass
class Treated:
    """A picture on its way.

    Attributes:
        image: As it is now.
        notes: What was done, for the recipe.
        warnings: Sentences for the caller.
    """

    image: Image.Image
    notes: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def is_wanted(settings: RenderSettings) -> bool:
    """Whether a picture needs the model again after it was decoded."""
    return bool(
        settings.hires_fix
        or settings.super_resolution
        or settings.inpaint_faces
        or settings.face_correct
        or settings.face_height
        or settings.mask_image
    )


@dataclass
class Treatments:
    """The passes of one batch.

    Attributes:
        base: The model.
        aids: Everything else.
        texts: Embeddings.
        bank: Attached adapters, or None.
        between: Called between steps; may raise `Cancelled`.
    """

    base: LoadedBase
    aids: Aids
    texts: TextCache
    bank: AdapterBank | MergedBank | None
    between: Callable[[], None]

    def apply(self, picture: Picture, pixels: np.ndarray, settings: RenderSettings) -> Treated:
        """Return a decoded picture with everything done to it that its settings ask for.

        Args:
            picture: As it was denoised.
            pixels: uint8 `[height, width, 3]`.
            settings: Filled.

        Raises:
            Failure: When a model is missing or a pass comes out as numbers that are not finite.
        """
        assert settings.width and settings.height
        done = Treated(Image.fromarray(pixels))
        if picture.mask is not None and picture.start is not None:
            done.image = _outside_kept(done.image, picture)
        if settings.hires_fix:
            self._again_larger(done, picture)
        done.image = enlarge(done.image, settings.width, settings.height)
        if settings.face_height:
            factor = 4 if settings.super_resolution else 1
            self._frame(done, picture, settings.face_height / factor)
        if settings.super_resolution:
            self._enlarge(done, picture, settings)
        if settings.inpaint_faces:
            self._faces_again(done, picture)
        if settings.face_correct:
            done.image = self.aids.restorer.restore(done.image)
            done.notes["face_correct"] = self.aids.restorer.name
        if settings.face_height:
            self._report_face(done, settings.face_height)
        return done

    def _enlarge(self, done: Treated, picture: Picture, settings: RenderSettings) -> None:
        """Make the picture four times as wide and high."""
        done.notes["super_resolution"] = 4
        if not enlarges_by_model(settings):
            width, height = done.image.size
            done.image = enlarge(done.image, 4 * width, 4 * height)
            done.notes["upscaler"] = settings.upscaler
            return
        entry = self.aids.catalog.first("upscale") if self.aids.catalog else None
        usual = entry.rendering if entry else {}
        done.image = self.aids.upscaler(self.base).enlarge(
            done.image,
            by_step(settled(picture.text), 1)[0],
            picture.seed,
            steps=int(usual.get("steps", 30)),
            guidance=float(usual.get("guidance_scale", 4.0)),
            on_step=self.between,
        )

    def _again_larger(self, done: Treated, picture: Picture) -> None:
        """Paint the picture again at twice its sides, as far as the base goes; a shipped one keeps its own area."""
        width, height = done.image.size
        entry, multiple = self.base.entry, self.base.size_multiple
        width, height = rendered_size(entry, 2 * width, 2 * height, multiple)
        done.image = self.paint(picture, done.image, width, height, _HIRES_STRENGTH)
        done.notes["hires_fix"] = [width, height]

    def _faces_again(self, done: Treated, picture: Picture) -> None:
        """Paint each face again in a square of the base's own size, and put it back with a soft edge."""
        boxes = self.aids.detector.detect(done.image)[:_MOST_FACES]
        for box in boxes:
            left, top, side = square_around(box, done.image.size)
            crop = done.image.crop((left, top, left + side, top + side))
            edge = fit_area(1, 1, self.base.native_side**2, self.base.size_multiple)
            painted = self.paint(picture, crop, *edge, _FACE_STRENGTH).resize(
                (side, side), Image.Resampling.LANCZOS
            )
            done.image.paste(painted, (left, top), _soft_ellipse(side))
        done.notes["faces_inpainted"] = len(boxes)
        if not boxes:
            done.warnings.append("No face was found, so inpaint_faces changed nothing.")

    def _frame(self, done: Treated, picture: Picture, target: float) -> None:
        """Bring the largest face to a height by choosing the framing: closer, or further away with more around it."""
        width, height = done.image.size
        enlarged = 1.0
        for _ in range(_FRAMINGS):
            boxes = self.aids.detector.detect(done.image)
            if not boxes or abs(boxes[0][3] / target - 1) <= _FACE_AIM:
                break
            zoom = float(np.clip(target / boxes[0][3], 0.25, 8))
            if zoom > 1:
                window = closer(boxes[0], zoom, width, height)
                done.image = done.image.resize((width, height), Image.Resampling.LANCZOS, box=window)
            else:
                done.image = self._further(picture, done.image, boxes[0], zoom)
            enlarged = max(1.0, enlarged * zoom)
            done.notes["framed"] = round(done.notes.get("framed", 1.0) * zoom, 3)
        if enlarged >= _REFINED_FROM:
            self._refine(done, picture, target)

    def _refine(self, done: Treated, picture: Picture, target: float) -> None:
        """Paint the detail of an enlarged picture again, unless the base then draws the face in another size."""
        painted = self.paint(picture, done.image, picture.shape.width, picture.shape.height, _ZOOM_STRENGTH)
        larger = enlarge(painted, *done.image.size)
        boxes = self.aids.detector.detect(larger)
        if boxes and abs(boxes[0][3] / target - 1) <= FACE_TOLERANCE:
            done.image = larger

    def _further(self, picture: Picture, image: Image.Image, box: Box, zoom: float) -> Image.Image:
        """Return the picture smaller, in a canvas of its own size whose rest is painted by the base."""
        import cv2

        width, height = image.size
        small = image.resize(
            (max(8, round(width * zoom)), max(8, round(height * zoom))), Image.Resampling.LANCZOS
        )
        room = width - small.width, height - small.height
        # The face stays where it is in the picture, as far as there is room on both sides.
        left = int(np.clip((box[0] + box[2] / 2) * (1 - zoom), 0, room[0]))
        top = int(np.clip((box[1] + box[3] / 2) * (1 - zoom), 0, room[1]))
        canvas = cv2.copyMakeBorder(
            np.asarray(small), top, room[1] - top, left, room[0] - left, cv2.BORDER_REPLICATE
        )
        soft = Image.fromarray(canvas).filter(ImageFilter.GaussianBlur(max(2, width // 24)))
        mask = np.full((height, width), 255, np.uint8)
        inner = max(1, round(min(small.size) * 0.04))
        mask[top + inner : top + small.height - inner, left + inner : left + small.width - inner] = 0
        border = Image.fromarray(mask).filter(ImageFilter.GaussianBlur(inner / 2))
        filled = Image.composite(soft, Image.fromarray(canvas), border)
        painted = self.paint(
            picture, filled, picture.shape.width, picture.shape.height, _BORDER_STRENGTH, mask
        )
        return Image.composite(enlarge(painted, width, height), Image.fromarray(canvas), border)

    def _report_face(self, done: Treated, asked: int) -> None:
        boxes = self.aids.detector.detect(done.image)
        if not boxes:
            done.warnings.append(f"No face was found, so that its height could not be made {asked} pixels.")
            return
        found = boxes[0][3]
        done.notes["face_height"] = found
        if abs(found / asked - 1) > FACE_TOLERANCE:
            done.warnings.append(
                f"The face is {found} pixels high instead of {asked}: the framing could not do more."
            )

    def paint(
        self,
        picture: Picture,
        image: Image.Image,
        width: int,
        height: int,
        strength: float,
        mask: np.ndarray | None = None,
    ) -> Image.Image:
        """Return an image painted again by the base, at a size, with the picture's tune, text and seed.

        Args:
            picture: Whose.
            image: To start from, of any size.
            width: Pixels.
            height: Pixels.
            strength: How far from it.
            mask: uint8 in the image's size; what is painted, or None for all.
        """
        start = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))
        area = (
            None
            if mask is None
            else np.asarray(Image.fromarray(mask).resize((width, height)), np.float32) / 255
        )
        shape = replace(
            picture.shape, width=width, height=height, strength=strength, masked=area is not None, control=""
        )
        # What was to follow has followed: a finished picture goes on with the words of its last step.
        text, negative = settled(picture.text), settled(picture.negative)
        again = replace(
            picture, shape=shape, start=start, mask=area, control=None, text=text, negative=negative
        )
        latents = dn.denoise(self.base, [again], self.texts, self.bank, lambda rows: self.between())
        pixels, finite = dn.decode(self.base, latents)
        if not finite[0]:
            raise Failure(
                FailureCode.NOT_FINITE,
                f"A second pass over the picture with seed {picture.seed} came out as numbers that are not finite.",
                "Lower the strength of the LoRA; in float16, use bfloat16 or float32.",
            )
        return Image.fromarray(pixels[0])


def closer(box: Box, zoom: float, width: int, height: int) -> tuple[float, float, float, float]:
    """Return the window of a picture that shows a face `zoom` times as large, inside the picture."""
    across, down = width / zoom, height / zoom
    left = float(np.clip(box[0] + box[2] / 2 - across / 2, 0, width - across))
    top = float(np.clip(box[1] + box[3] / 2 - down * 0.45, 0, height - down))
    return left, top, left + across, top + down


def square_around(box: Box, size: tuple[int, int]) -> tuple[int, int, int]:
    """Return left, top and side of the square around a face that is painted again, inside the picture."""
    side = min(round(max(box[2], box[3]) * _FACE_ROOM), *size)
    left = int(np.clip(box[0] + box[2] // 2 - side // 2, 0, size[0] - side))
    top = int(np.clip(box[1] + box[3] // 2 - side // 2, 0, size[1] - side))
    return left, top, side


def _soft_ellipse(side: int) -> Image.Image:
    """Return a mask of a face in its square: white inside, falling to black before the edge."""
    axis = np.linspace(-1, 1, side)
    distance = np.sqrt(axis[None, :] ** 2 / 0.80 + axis[:, None] ** 2 / 0.92)
    return Image.fromarray((np.clip((1.0 - distance) / 0.35, 0, 1) * 255).astype(np.uint8))


def _outside_kept(image: Image.Image, picture: Picture) -> Image.Image:
    """Return a masked picture whose outside is the input's own pixels, with a soft seam."""
    assert picture.mask is not None and picture.start is not None
    mask = Image.fromarray((picture.mask * 255).astype(np.uint8))
    soft = mask.filter(ImageFilter.GaussianBlur(max(1, min(image.size) // 64)))
    return Image.composite(image, Image.fromarray(picture.start), soft)
