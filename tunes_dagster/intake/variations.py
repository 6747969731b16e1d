"""What one picture is made into when it has to be enough: crops, its mirror image, slightly different light.

Nothing is drawn or stored: a variation names the picture, a crop, whether it is mirrored and how its tone is changed.
All of them together are still one picture, and the tune says so: it knows one pose, one expression, one light.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunes_dagster.intake.buckets import Crop, choose_bucket, crop_for
from tunes_dagster.intake.faces import Box, is_person
from tunes_dagster.intake.subject import is_style

# Sides of the closer crops, as a share of what the full one shows. Closer ones lose hair and shoulders.
_CLOSER = (0.85, 0.7)
# Factors on brightness and contrast: about what two shots of one scene differ by.
_TONES = ((1.08, 0.95), (0.92, 1.05))
# Mirroring text, logos and machines teaches something false; faces, animals and styles hardly differ.
_ANIMALS = frozenset({"dog", "cat", "horse", "pet", "bird", "rabbit", "puppy", "kitten", "animal"})


@dataclass(frozen=True)
class Variation:
    """One way to show a picture.

    Attributes:
        name: For people, in brackets after the picture's name.
        bucket: (width, height) it is trained at.
        crop: left, top, right, bottom in the picture's pixels.
        mirrored: Left for right.
        tone: Factors on brightness and contrast.
    """

    name: str
    bucket: tuple[int, int]
    crop: Crop
    mirrored: bool = False
    tone: tuple[float, float] = (1.0, 1.0)


def may_mirror(class_name: str) -> bool:
    """Whether the mirror image of such a subject is as true as the picture."""
    words = class_name.lower().replace("-", " ").split()
    return is_person(class_name) or is_style(class_name) or any(word in _ANIMALS for word in words)


def variations(
    width: int, height: int, bucket: tuple[int, int], resolution: int, class_name: str, faces: Sequence[Box]
) -> Iterator[Variation]:
    """Yield what a picture of these pixels is shown as, beside its full self.

    Args:
        width: Of the picture.
        height: Of the picture.
        bucket: Of the full picture.
        resolution: Side of the square that buckets have the area of.
        class_name: Decides whether it is mirrored.
        faces: Closer crops are centred on the largest.
    """
    full = crop_for(width, height, bucket, faces)
    crops = [("", bucket, full)]
    for share in _CLOSER:
        crops.append((f"{share:.0%}", bucket, _closer(full, share, faces)))
    square = choose_bucket(1, 1, resolution)
    if square != bucket:
        crops.append(("square", square, crop_for(width, height, square, faces)))
    mirror = may_mirror(class_name)
    for index, (name, shape, crop) in enumerate(crops):
        if name:
            yield Variation(name, shape, crop)
        if mirror:
            yield Variation(f"{name} mirrored".strip(), shape, crop, mirrored=True)
        tone = _TONES[index % len(_TONES)]
        yield Variation(f"{name} {'brighter' if tone[0] > 1 else 'darker'}".strip(), shape, crop, tone=tone)


def _closer(full: Crop, share: float, faces: Sequence[Box]) -> Crop:
    """Return a crop of the same aspect ratio inside `full`, around the face if there is one."""
    left, top, right, bottom = full
    width, height = max(1, round((right - left) * share)), max(1, round((bottom - top) * share))
    centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
    if faces:
        x, y, w, h = faces[0]
        centre_x, centre_y = x + w / 2, y + h / 2
    new_left = round(min(max(left, centre_x - width / 2), right - width))
    new_top = round(min(max(top, centre_y - height / 2), bottom - height))
    return new_left, new_top, new_left + width, new_top + height
