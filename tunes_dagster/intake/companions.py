"""Captions and masks that belong to pictures, matched by name; whatever is left over is named."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from tunes_dagster.core.failures import FailureCode
from tunes_dagster.intake.manifest import Examined, Manifest
from tunes_dagster.intake.names import PICTURE_STAGES, Stage, loose, match, plain, stem
from tunes_dagster.intake.pictures import same_shape
from tunes_dagster.intake.sidecars import masked_picture
from tunes_dagster.intake.sources import SourceList
from tunes_dagster.intake.training_set import TrainingItem

# So many pictures, or masks, are told by name.
_NAMED = 20
# So much of a picture's hash names it.
_HASH_START = 8
_OF_THE_CLASS = "its picture is one of the class, without the subject"
_MASK_STAGES = (Stage(plain, stem, stem), Stage(loose, lambda name: loose(stem(name)), stem))


def captioned(listed: SourceList, rows: Sequence[Sequence[Examined]]) -> tuple[list[Examined], list[str]]:
    """Return the pictures with the captions that lay beside them, and notes about captions that were not used.

    Args:
        listed: Has the captions by group.
        rows: The pictures of each origin of the list.
    """
    pictures = [row for some in rows for row in some]
    groups = [origin.group for origin, some in zip(listed.origins, rows, strict=True) for _ in some]
    notes: list[str] = []
    for group, sidecars in listed.sidecars.items():
        mine = [i for i, of in enumerate(groups) if of == group]
        for at, caption in sidecars.captions_for([pictures[i].name for i in mine]).items():
            if pictures[mine[at]].caption is None:
                pictures[mine[at]] = pictures[mine[at]].model_copy(update={"caption": caption})
        notes += sidecars.notes + sidecars.unmatched()
    return pictures, notes


def asked_for(
    captions: Mapping[str, str], items: Sequence[TrainingItem], manifest: Manifest
) -> tuple[dict[str, str], list[str]]:
    """Return item hash → caption of a request, and in sentences which of its captions are of no picture that is used.

    Args:
        captions: By name, or by the hash of a picture or its start.
        items: What is trained on.
        manifest: Knows the other pictures.
    """
    found: dict[str, str] = {}
    named: list[str] = []
    for key, text in captions.items():
        start = key.lower()
        by_hash = [one.hash for one in items if len(key) >= _HASH_START and one.hash.startswith(start)]
        found |= dict.fromkeys(by_hash, text)
        if not by_hash:
            named.append(key)
    matches = match(named, [item.name for item in items], PICTURE_STAGES)
    for index, which in matches.found.items():
        found.setdefault(items[index].hash, captions[named[which]])
    left = [i for i in range(len(named)) if i not in matches.found.values()]
    others = [row for row in manifest.rows if row.verdict == "rejected"] + manifest.prior
    unused = match([named[i] for i in left], [row.name for row in others], PICTURE_STAGES).found
    why = {left[which]: others[index] for index, which in unused.items()}
    hashes = {row.hash: row for row in others if row.hash}
    sentences = []
    for i in left:
        could_be = matches.ambiguous.get(i, [])
        row = why.get(i) or hashes.get(named[i].lower())
        if len(could_be) > 1:
            because = f"it could be of {' or of '.join(could_be[:4])}"
        elif could_be:
            because = f"another one may be meant for {could_be[0]}, too"
        elif row is not None:
            because = "its picture was not accepted" if row.verdict == "rejected" else _OF_THE_CLASS
        else:
            because = "there is no such picture"
        sentences.append(f"The caption for {named[i]!r} is not used: {because}.")
    return found, sentences


def without_caption(pictures: Sequence[Examined]) -> list[str]:
    """Return a note that names the pictures without a caption, when others came with one."""
    bare = [picture.name for picture in pictures if picture.caption is None and picture.key]
    if not bare or len(bare) == sum(picture.key is not None for picture in pictures):
        return []
    return [f"Without a caption among those that came along: {_listed(bare)}."]


def with_masks(pictures: Sequence[Examined], used: bool) -> tuple[list[Examined], list[str]]:
    """Return the pictures, each with its mask, and notes about the masks, which are no pictures themselves.

    Args:
        pictures: All of them; a mask is known by its name.
        used: Whether masks count in training.
    """
    maybe = [i for i, one in enumerate(pictures) if one.key is not None and masked_picture(one.name)]
    wanted = [masked_picture(pictures[i].name) or "" for i in maybe]
    found = match(list(dict.fromkeys(wanted)), [one.name for one in pictures], _MASK_STAGES).found
    by_stem = {name: maybe[wanted.index(name)] for name in wanted}
    names = list(dict.fromkeys(wanted))
    owners = {owner: by_stem[names[which]] for owner, which in found.items()}
    masks = set(owners.values())
    second = {i for i, name in zip(maybe, wanted, strict=True) if name in by_stem and i not in masks}
    second &= {i for i, name in zip(maybe, wanted, strict=True) if by_stem[name] in masks}
    rows, notes, told = [], [], []
    if second:
        extra = _listed([pictures[i].name for i in sorted(second)])
        notes.append(f"Not used, their pictures have another mask already: {extra}.")
    if alone := [pictures[i].name for i in maybe if i not in masks | second]:
        notes.append(
            f"Named like masks of pictures that are not there, and trained on like pictures: {_listed(alone)}."
        )
    for i, picture in enumerate(pictures):
        if i in masks | second:
            continue
        mask = pictures[owners[i]] if i in owners else None
        here = picture.key is not None
        if mask and here and not same_shape((mask.width, mask.height), (picture.width, picture.height)):
            rows.append(_other_shape(mask, picture))
            mask = None
        elif mask is not None:
            told.append(f"{mask.name} (of {picture.name})")
            if used and mask.blank:
                notes.append(f"The mask {mask.name} shows one flat colour, so it changes nothing.")
        rows.append(picture.model_copy(update={"mask_key": mask.key}) if mask else picture)
    if told:
        why = "" if used else "; they count with dataset.mask=file only"
        notes.append(f"Taken as masks by their names, not as pictures: {_listed(told)}{why}.")
    return rows, notes


def _other_shape(mask: Examined, picture: Examined) -> Examined:
    """Return the row of a mask that fits no way onto its picture."""
    sizes = f"{mask.width} x {mask.height}, the picture is {picture.width} x {picture.height}"
    return mask.model_copy(
        update={
            "failure": str(FailureCode.INVALID_REQUEST),
            "failure_reason": f"By its name it is the mask of {picture.name}, whose shape is another: it is {sizes}.",
            "failure_remedy": "Draw it on the picture itself, at any size; or rename it if it is no mask.",
        }
    )


def tell_apart(pictures: list[Examined]) -> None:
    """Number names that several pictures share (`a.jpg`, `a.jpg (2)`), so that a person can tell them apart."""
    seen: deque[str] = deque()
    for index, picture in enumerate(pictures):
        name, number = picture.name, 1
        while name in seen:
            number += 1
            name = f"{picture.name} ({number})"
        seen.append(name)
        if number > 1:
            pictures[index] = picture.model_copy(update={"name": name})


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
