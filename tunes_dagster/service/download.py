"""What people take away of a finished tune: one file, whatever its kind.

An adapter is a safetensors file in the store. A whole network is the folder of a diffusers pipeline there, and is
handed over as one zip of it: every family has that form, stock diffusers loads it once it is unpacked, and its text
encoders and VAE come along; a single-file checkpoint exists for some families only and loses the tokenizers. The zip is
made while it is read and lies nowhere: the folder's key with `.zip` at its end stands for it. Nothing is compressed,
since weights do not shrink.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from zipstream import ZipStream

from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.families.specs import families
from tunes_dagster.training.programs import lora_line, ways_to_say

if TYPE_CHECKING:
    from tunes_dagster.core.results import TuneResult
    from tunes_dagster.families.specs import FamilySpec
    from tunes_dagster.registry import Tune

_PIECE = 1 << 20
# What is shown of a tune while it is made: samples, curves, cards and tables.
_LOOKED_AT = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".json", ".csv", ".html", ".md", ".txt")


def download_key(made: TuneResult) -> str | None:
    """Return the key of what people take away of a tune, or None while there is nothing.

    Args:
        made: Of the tune's row.
    """
    return f"{made.pipeline_key}.zip" if made.pipeline_key else made.weights_key or None


@dataclass(frozen=True, kw_only=True)
class Download:
    """One file of a tune that people take away.

    Attributes:
        form: `diffusers`, `kohya` or `embeddings`.
        key: In the store.
        name: Of the file, where programs find it by that.
        programs: Which programs take it, and how its subject is called there.
    """

    form: str
    key: str
    name: str
    programs: str


def downloads(tune: Tune) -> list[Download]:
    """Return the files of a tune that people take away; empty while there are none."""
    made = tune.made
    main = download_key(made)
    if not main:
        return []
    name = PurePosixPath(main).name
    if made.pipeline_key:
        return [
            Download(
                form="diffusers",
                key=main,
                name=name,
                programs="diffusers (DiffusionPipeline.from_pretrained), unpacked",
            )
        ]
    if tune.kind == "faceid":
        return [
            Download(
                form="diffusers",
                key=main,
                name=name,
                programs="diffusers, with the IP-Adapter that the model card names",
            )
        ]
    found = [Download(form="diffusers", key=main, name=name, programs="diffusers (load_lora_weights)")]
    spec = _family(tune)
    if kohya := made.kohya_key:
        dora = bool(tune.recipe.get("training", {}).get("dora"))
        programs = lora_line(spec, dora) if spec else "programs that read kohya's names"
        found.append(Download(form="kohya", key=kohya, name=PurePosixPath(kohya).name, programs=programs))
    if words := _words_key(tune):
        ways = ways_to_say(spec.word_programs if spec else ("ComfyUI",), tune.token, tune.class_name)
        found.append(
            Download(
                form="embeddings",
                key=words,
                name=f"{tune.token}.safetensors",
                programs=f"the words behind {tune.token}, beside the LoRA, in the folder for embeddings: {ways}; "
                "the model card has the code for diffusers",
            )
        )
    return found


def _family(tune: Tune) -> FamilySpec | None:
    """Return the family of a tune's base; None where the catalog or the installation does not know it any more."""
    entry = load_catalog().entries.get(tune.base_id)
    return families().get(entry.family) if entry else None


def _words_key(tune: Tune) -> str | None:
    """Return the key of a pti tune's words; earlier versions did not keep it and named the file after the tune."""
    made = tune.made
    if tune.kind != "pti" or made.words_key:
        return made.words_key or None
    folder = PurePosixPath(made.trained_key).parent
    # An earlier checkpoint that was published lies one folder deeper.
    folder = folder.parent if folder.name.startswith("step-") else folder
    return f"{folder}/{tune.id}.embeddings.safetensors"


def served_key(tune: Tune, form: str = "diffusers") -> str | None:
    """Return the key of what the owner of a tune may take away over the network, or None: only ready tunes are served.

    One that was cancelled or failed while it was finished has weights too; nobody paid for them.

    Args:
        tune: Whose weights.
        form: `diffusers`, `kohya` or `embeddings`.
    """
    return next((one.key for one in served(tune) if one.form == form), None)


def served(tune: Tune) -> list[Download]:
    """Return what the owner of a tune may take away over the network, as `served_key` decides."""
    return downloads(tune) if tune.status == "ready" else []


def holds_weights(key: str) -> str | None:
    """Return the id of the tune whose weights a key may hold; None for pictures, tables and what was handed in."""
    parts = PurePosixPath(key).parts
    if len(parts) < 3 or parts[0] != "tunes" or parts[2] == "uploads":
        return None
    return None if PurePosixPath(key).suffix.lower() in _LOOKED_AT else parts[1]


def zipped_folder(store: Store, key: str) -> str | None:
    """Return the folder that a key stands for the zip of, or None when it is a file or nothing at all."""
    folder = key.removesuffix(".zip")
    if folder == key or store.exists(key) or next(iter(store.list(folder)), None) is None:
        return None
    return folder


def pieces(store: Store, key: str) -> Iterator[bytes]:
    """Yield the content of a download, piece by piece.

    Raises:
        FileNotFoundError: When there is nothing under the key.
    """
    folder = zipped_folder(store, key)
    yield from _content(store, key) if folder is None else zipped(store, folder)


def zipped(store: Store, folder: str) -> ZipStream:
    """Return a zip of a folder, with one folder of its name inside; its length is known before it is made."""
    archive = ZipStream(sized=True)
    for key in store.list(folder):
        name = f"{PurePosixPath(folder).name}/{PurePosixPath(key).relative_to(folder)}"
        archive.add(_content(store, key), name, size=store.size(key))
    return archive


def _content(store: Store, key: str) -> Iterator[bytes]:
    with store.open_read(key) as file:
        while piece := file.read(_PIECE):
            yield piece
