"""Subjects that fidelity is measured on: drawn ones that the base never saw, or folders of pictures.

A subject is training pictures with captions, held-out pictures, and prompts: with its token, without, and
with details that are asked for beside it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from PIL import Image

TRAINING_PICTURES, HELD_OUT_PICTURES = 8, 24
_PICTURE_TYPES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}
_PEOPLE = {"woman", "man", "person", "girl", "boy"}
# Phrase → what the classifier calls it. All of it occurs in the base's world, none of it in a subject's pictures.
_PLACES = {
    "on the beach": "beach",
    "in a forest": "forest",
    "in the mountains": "mountains",
    "at night": "night",
    "in the snow": "snow",
    "in the desert": "desert",
    "in the city": "city",
    "in a meadow": "meadow",
    "on a pink background": "pink",
    "on a purple background": "purple",
    "on a yellow background": "yellow",
    "on a gray background": "gray",
}
_DETAILS: dict[str, dict[str, str]] = {
    "wearing glasses": {"eyewear": "glasses"},
    "wearing sunglasses": {"eyewear": "sunglasses"},
    "wearing a red cap": {"hat": "cap", "hat_color": "red"},
    "wearing a blue beanie": {"hat": "beanie", "hat_color": "blue"},
    "wearing a black top hat": {"hat": "top hat", "hat_color": "black"},
    "wearing a yellow cap": {"hat": "cap", "hat_color": "yellow"},
    "in a blue shirt": {"shirt": "blue"},
    "in a red shirt": {"shirt": "red"},
}
_COLLARS = {"with a blue collar": {"collar": "blue"}, "with a yellow collar": {"collar": "yellow"}}


@dataclass(frozen=True)
class Subject:
    """One subject.

    Attributes:
        name: Of the subject.
        token: The rare word it is bound to.
        class_name: The class word.
        training: (picture, caption).
        held_out: Pictures that are never trained on.
    """

    name: str
    token: str
    class_name: str
    training: Sequence[tuple[Image.Image, str]]
    held_out: Sequence[Image.Image]

    @property
    def called(self) -> str:
        """What prompts call it."""
        return f"{self.token} {self.class_name}"

    @property
    def plain_names(self) -> list[str]:
        """What the subject leaks into when it leaks: its class, and for people also a person."""
        article = "an" if self.class_name[0] in "aeiou" else "a"
        names = [f"{article} {self.class_name}"]
        return [*names, "a person"] if self.class_name in _PEOPLE else names


@dataclass(frozen=True)
class Asked:
    """An obedience prompt: `{}` stands for the subject; the rest asks for these attributes."""

    text: str
    attributes: dict[str, str]


def drawn_subjects(names: Sequence[str] | None = None) -> list[Subject]:
    """Return the six held-out subjects of the drawn world, or those of them that are named."""
    from tunes_dagster.tiny.world.subjects import FIDELITY, SUBJECTS, draw_subject

    found = []
    for name in names or FIDELITY:
        subject = SUBJECTS[name]
        training = draw_subject(name, TRAINING_PICTURES, seed=0, token=subject.token)
        held_out = [picture for picture, _ in draw_subject(name, HELD_OUT_PICTURES, seed=1)]
        found.append(Subject(name, subject.token, subject.kind, training, held_out))
    return found


def folder_subjects(folder: Path) -> list[Subject]:
    """Return one subject per sub-folder; the last quarter of its pictures (by name) is held out.

    Class and token come from a `tune.yaml` in it (`name`, `token`), else the class is the last word of the
    folder's name and the token `ohwx`; captions from `.txt` files beside the pictures, else a template.
    """
    subjects = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(path for path in place.iterdir() if path.suffix.lower() in _PICTURE_TYPES)
        if len(files) < 4:
            raise SystemExit(f"{place} holds {len(files)} pictures; a subject needs at least 4.")
        about = yaml.safe_load((place / "tune.yaml").read_text()) if (place / "tune.yaml").is_file() else {}
        class_name = about.get("name") or place.name.replace("_", " ").replace("-", " ").split()[-1]
        token = about.get("token", "ohwx")
        first_held_out = len(files) - max(1, len(files) // 4)
        pictures = [Image.open(path).convert("RGB") for path in files]
        captions = [_sidecar(path) or f"a photo of {token} {class_name}" for path in files]
        training = list(zip(pictures, captions, strict=True))[:first_held_out]
        subjects.append(Subject(place.name, token, class_name, training, pictures[first_held_out:]))
    if len(subjects) < 2:
        raise SystemExit(
            f"{folder} holds {len(subjects)} folders of pictures; at least 2 subjects are needed."
        )
    return subjects


def _sidecar(picture: Path) -> str | None:
    text = picture.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.is_file() else None


def scenes(count: int) -> list[str]:
    """Return phrases for where a subject is; the same for all subjects, so that they can be compared."""
    places = list(_PLACES)
    return [places[i % len(places)] for i in range(count)]


def obedience_prompts(subject: Subject, count: int, seed: int) -> list[Asked]:
    """Return prompts that ask for a place and mostly one more thing beside the subject."""
    source = random.Random(f"{subject.name}-{seed}")
    prompts = []
    for _ in range(count):
        place = source.choice(list(_PLACES))
        wanted = {"background": _PLACES[place]}
        detail = ""
        choices = _DETAILS if subject.class_name in _PEOPLE else {}
        if subject.class_name in ("dog", "cat", "rabbit"):
            choices = _COLLARS
        if choices and source.random() < 0.75:
            phrase = source.choice(list(choices))
            wanted |= choices[phrase]
            detail = f" {phrase}"
        prompts.append(Asked(f"a photo of {{}}{detail} {place}", wanted))
    return prompts
