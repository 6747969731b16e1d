"""Tunes of the kind `faceid`: nothing is trained; what an image encoder sees in the pictures is kept.

The file holds the embeddings of one, two or four pictures, each by itself, and the one that stands for no picture, so
that rendering needs no encoder. They are stacked, not averaged: the mean of two hidden states is no picture's, while
the base can attend to each (diffusers does the same with several pictures). Numbers that divide each other let tunes
of one picture and of four share a forward, see `rendering/faceid.py`; more than four add time and little else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode, as_failure
from tunes_dagster.core.progress import Phase
from tunes_dagster.core.recipe import recipe_hash
from tunes_dagster.core.store import Store
from tunes_dagster.families.ipadapter import Eyes, IpAdapter, read_adapter

if TYPE_CHECKING:
    from torch import Tensor

    from tunes_dagster.families.catalog import AuxiliaryEntry, BaseModelEntry
    from tunes_dagster.training.jobs import TrainExample, TrainingResult, TuneJob

MOST_PICTURES = 4
EMBEDS, NOTHING = "image_embeds", "negative_image_embeds"
ADAPTER_FIELD = "tunes_dagster.ip_adapter"


@dataclass(frozen=True)
class FaceFile:
    """The file of a `faceid` tune.

    Attributes:
        embeds: What is seen in its pictures, `[1, 2 or 4, d]` or `[1, 2 or 4, positions, d]`.
        nothing: What stands for no picture, `[1, …]`.
        adapter: Branch of the IP-Adapter whose encoder looked.
        sha256: Of the file.
        recipe_hash: Of the tune's recipe.
    """

    embeds: Tensor
    nothing: Tensor
    adapter: str
    sha256: str
    recipe_hash: str


def read_face(store: Store, key: str) -> FaceFile:
    """Read the file of a `faceid` tune.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when it is missing, broken, or of another kind of tune.
    """
    import hashlib

    from safetensors.torch import load

    from tunes_dagster.training.files import read_header

    try:
        data = store.read_bytes(key)
        tensors = load(data)
        embeds, nothing = tensors[EMBEDS], tensors[NOTHING]
    except Exception as error:
        # The store's trouble stands for itself, and a lack of memory is not the file's.
        said = "not there" if isinstance(error, FileNotFoundError) else "not the file of one"
        unusable = Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The face {key!r} cannot be used: it is {said}.",
            "Make the tune again, or check whether it was deleted.",
        )
        raise as_failure(error, unusable) from error
    header = read_header(store, key)
    digest = hashlib.sha256(data).hexdigest()
    return FaceFile(
        embeds, nothing, header.get(ADAPTER_FIELD, ""), digest, header.get("tunes_dagster.recipe_hash", "")
    )


def chosen_pictures(items: Sequence[TrainExample]) -> list[TrainExample]:
    """Return one, two or four pictures to look at: face crops where there are any, the largest first."""
    faces = [one for one in items if one.is_face]
    largest: dict[str, TrainExample] = {}
    for one in sorted(faces or items, key=_pixels, reverse=True):
        largest.setdefault(one.key, one)  # of one picture in many variations, it alone
    some = list(largest.values())
    count = max((n for n in (1, 2, MOST_PICTURES) if n <= len(some)), default=0)
    return some[:count]


def _pixels(one: TrainExample) -> int:
    if one.crop is None:
        return 0
    left, top, right, bottom = one.crop
    return (right - left) * (bottom - top)


def make(
    job: TuneJob, base: BaseModelEntry, entry: AuxiliaryEntry, bases_folder: Path, store: Store
) -> TrainingResult:
    """Look at the pictures of a tune and write its file and card; takes seconds on a CPU.

    Args:
        job: Its pictures, and where to.
        base: What it will be rendered on.
        entry: The base's IP-Adapter, installed.
        bases_folder: Where pulled weights lie.
        store: Where pictures come from and files go.

    Raises:
        Failure: `TOO_FEW_PICTURES`, `WEIGHTS_UNUSABLE`.
    """
    from tunes_dagster.training.cache import load_picture
    from tunes_dagster.training.jobs import TrainingResult

    began, report = time.monotonic(), job.report
    chosen = chosen_pictures(job.items)
    if not chosen:
        raise Failure(
            FailureCode.TOO_FEW_PICTURES, "There is no picture to look at.", "Hand in at least one picture."
        )
    faces = "faces" if chosen[0].is_face else "whole pictures: no closer crop of a face"
    report.phase(
        Phase.ENCODING, f"Looking at {len(chosen)} of {len(job.items)} pictures and crops ({faces})."
    )
    adapter = read_adapter(entry, bases_folder)
    eyes = Eyes(entry.encoder_path(bases_folder), adapter.looks_at_hidden_states)
    report.check_cancelled()
    embeds, nothing = eyes.look([load_picture(store, one) for one in chosen])
    recipe = _recipe(job, base, entry, adapter, chosen)
    name = recipe_hash(recipe)
    key = _write(store, job, base, entry, embeds, nothing, recipe)
    card_key = store.write_text(
        f"{job.out_prefix}/README.md", _card(job, base, entry, key, len(chosen), name)
    )
    return TrainingResult(
        tune_id=job.tune_id,
        weights_key=key,
        kohya_key="",
        card_key=card_key,
        loss_curve=[],
        steps=0,
        seconds=time.monotonic() - began,
        checkpoints=[],
        recipe=recipe,
        recipe_hash=name,
        figures={
            "pictures_looked_at": len(chosen),
            "faces": chosen[0].is_face,
            "bytes": store.size(key),
            "ip_adapter": entry.base_id,
        },
    )


def _recipe(
    job: TuneJob,
    base: BaseModelEntry,
    entry: AuxiliaryEntry,
    adapter: IpAdapter,
    chosen: Sequence[TrainExample],
) -> dict[str, Any]:
    """Return everything that decides the embeddings."""
    from importlib.metadata import version

    import tunes_dagster

    return {
        **job.recipe,
        "base": base.base_id,
        "class_name": job.class_name,
        "token": job.token,
        "training": {"kind": "faceid"},
        "pictures": [{"key": one.key, "crop": one.crop, "bucket": list(one.bucket)} for one in chosen],
        "ip_adapter": {
            "branch": entry.base_id,
            "repo_id": entry.public_name,
            "revision": entry.revision,
            "sha256": adapter.sha256,
        },
        "version": tunes_dagster.__version__,
        "libraries": {name: version(name) for name in ("torch", "transformers", "pillow")},
        "device": "cpu",
        "dtype": "float32",
    }


def _write(
    store: Store,
    job: TuneJob,
    base: BaseModelEntry,
    entry: AuxiliaryEntry,
    embeds: Tensor,
    nothing: Tensor,
    recipe: dict[str, Any],
) -> str:
    import torch

    from tunes_dagster.training.files import write_tensors

    header = {
        "format": "pt",
        "tunes_dagster.kind": "faceid",
        "tunes_dagster.recipe": json.dumps(recipe, sort_keys=True, ensure_ascii=False, default=str),
        "tunes_dagster.recipe_hash": recipe_hash(recipe),
        "tunes_dagster.class_name": job.class_name,
        "tunes_dagster.base": base.base_id,
        ADAPTER_FIELD: entry.base_id,
        "modelspec.title": job.title or f"a {job.class_name}",
    }
    tensors = {EMBEDS: embeds.clone(), NOTHING: nothing.clone()}
    # Half precision: what the encoders and the bases beside which they are used were published in.
    return write_tensors(store, f"{job.out_prefix}/{job.tune_id}.safetensors", tensors, header, torch.float16)


def _card(
    job: TuneJob, base: BaseModelEntry, entry: AuxiliaryEntry, key: str, pictures: int, name: str
) -> str:
    file = key.rpartition("/")[2]
    known = not entry.repo_id.startswith("embedded:") and entry.public_name == entry.repo_id
    where = entry.repo_id if known else "the folder of the adapter"
    folder, _, weights = entry.weights.rpartition("/")
    looked = "one picture" if pictures == 1 else f"{pictures} pictures"
    return f"""---
base_model: {base.public_name}
license: {entry.licence}
library_name: diffusers
tags: [text-to-image, ip-adapter, diffusers, {base.family}]
---

# {job.title or f"A {job.class_name}"}

What the image encoder of `{entry.base_id}` ({entry.public_name}, licence {entry.licence}) sees in {looked} of a
{job.class_name}. Nothing was trained: an IP-Adapter shows it to `{base.base_id}` beside the prompt. Prompts need no
token; write `a {job.class_name}`.

```python
import torch
from safetensors.torch import load_file

pipeline.load_ip_adapter("{where}", subfolder="{folder}", weight_name="{weights}", image_encoder_folder=None)
pipeline.set_ip_adapter_scale(0.7)
face = load_file("{file}")
shown, nothing = face["{EMBEDS}"], face["{NOTHING}"].expand_as(face["{EMBEDS}"])
pipeline("a photo of a {job.class_name} on the beach", ip_adapter_image_embeds=[torch.stack([nothing, shown])])
```

Recipe `{name}`; the whole of it stands in the header of the file.
"""


@dataclass(frozen=True)
class FaceVerification:
    """What was seen of a face's file.

    Attributes:
        finite: No NaN or infinity.
        loads: The adapter's projection, by diffusers' own code, makes finite tokens of the base's width from it.
        difference: Mean difference of the tokens to those of no picture.
    """

    finite: bool
    loads: bool
    difference: float

    @property
    def differs(self) -> bool:
        """Whether the face says anything."""
        return self.difference > 1e-5


def verify(key: str, adapter: IpAdapter, store: Store) -> FaceVerification:
    """Look at what the base will be told of a face; the base itself is not needed."""
    import torch

    face = read_face(store, key)
    finite = bool(torch.isfinite(face.embeds).all() and torch.isfinite(face.nothing).all())
    keys = (value for name, value in adapter.state["ip_adapter"].items() if name.endswith("to_k_ip.weight"))
    width = next(keys).shape[1]
    try:
        shown, nothing = adapter.tokens(face.embeds), adapter.tokens(face.nothing)
    except RuntimeError:
        return FaceVerification(finite, False, 0.0)
    loads = bool(torch.isfinite(shown).all()) and shown.shape[-1] == width
    return FaceVerification(finite, loads, float((shown - nothing).abs().mean()))
