"""The files in which trained weights leave: an adapter in two layouts, or a complete pipeline around a whole network.

A whole network is written as the diffusers pipeline that it belongs to, with the base's own text encoders, VAE,
tokenizers and scheduler copied beside it: `DiffusionPipeline.from_pretrained` loads it and asks for nothing else.
"""

from __future__ import annotations

import filecmp
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.store import Store
from tunes_dagster.training.dora import SCALE
from tunes_dagster.training.files import with_hashes, write_tensors
from tunes_dagster.training.names import LEVEL, is_whole, split_encoders, split_magnitudes, split_state

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tunes_dagster.families.base import LoadedBase

# How diffusers calls a network's weights in its folder.
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_WEIGHT_FILES = (".safetensors", ".bin", ".ckpt", ".safetensors.index.json", ".bin.index.json")


@dataclass(frozen=True)
class Files:
    """Where exported weights lie in the store.

    Attributes:
        weights_key: What is rendered with: the adapter in diffusers layout, or the pipeline's denoiser.
        kohya_key: The adapter in kohya layout; empty for a whole network.
        pipeline_key: Folder of the pipeline; empty for an adapter.
    """

    weights_key: str
    kohya_key: str = ""
    pipeline_key: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return the keys by name."""
        return asdict(self)


def write_layouts(
    store: Store,
    folder: str,
    name: str,
    base: LoadedBase,
    state: Mapping[str, Tensor],
    header: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> Files:
    """Write trained weights in every layout that their kind has.

    Args:
        store: Where to.
        folder: Below this key.
        name: Of the files of an adapter, without an ending.
        base: What the weights were trained on.
        state: An adapter in peft's format with alpha folded in, or a whole network by parameter name.
        header: Of each weights file.
        dtype: In which numbers are written; None keeps them as they are.
    """
    ours = {**header, "modelspec.implementation": "diffusers"}
    if is_whole(state):
        return _write_pipeline(store, f"{folder}/pipeline", base, state, ours, dtype)
    files = Files(f"{folder}/{name}.safetensors", f"{folder}/{name}.kohya.safetensors")
    write_tensors(store, files.weights_key, state, with_hashes(state, ours, dtype), dtype)
    stored = {key: value if dtype is None else value.to(dtype) for key, value in state.items()}
    stored, text = split_encoders(stored)
    renamed = base.kohya_layout(stored)
    if split_magnitudes(text) or (
        split_magnitudes(stored) and not any(key.endswith(SCALE) for key in renamed)
    ):
        return Files(files.weights_key)  # a family whose layout has no place for them: half a DoRA is none
    renamed |= _encoders_in_kohya(base, text)
    theirs = with_hashes(renamed, {**header, "modelspec.implementation": base.implementation})
    write_tensors(store, files.kohya_key, renamed, theirs)
    return files


def _encoders_in_kohya(base: LoadedBase, text: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return adapters of text encoders as kohya's scripts call them (`lora_te1_text_model_encoder…`)."""
    from tunes_dagster.families.flow import kohya_entry

    made: dict[str, Tensor] = {}
    for name, (a, b) in split_state(text).items():
        encoder, _, layer = name.partition(".")
        made |= kohya_entry(f"lora_{base.kohya_encoders[encoder]}_{layer.replace('.', '_')}", a, b)
    return made


def in_file(layer: str) -> str:
    """Return what a layer of a text encoder is called in files: CLIP's with a level that some encoders have not."""
    return f"{LEVEL}{layer}" if layer.startswith("encoder.layers.") else layer


def _write_pipeline(
    store: Store,
    folder: str,
    base: LoadedBase,
    state: Mapping[str, Tensor],
    header: Mapping[str, str],
    dtype: torch.dtype | None,
) -> Files:
    weights = f"{folder}/{base.denoiser_name}/{_WEIGHTS}"
    write_tensors(store, weights, state, with_hashes(state, header, dtype), dtype)
    with _on_disk(base) as place:
        for file in _rest_of(place, base.denoiser_name):
            store.write_file(f"{folder}/{file.relative_to(place).as_posix()}", file)
    return Files(weights, pipeline_key=folder)


@contextmanager
def _on_disk(base: LoadedBase) -> Iterator[Path]:
    """Give a base as a local folder in diffusers layout, of the denoiser the configuration at least.

    One that came otherwise is written out for the while, from the networks that are loaded.
    """
    from tunes_dagster.training.stock import stock_over

    place = Path(base.folder)
    if (place / "model_index.json").is_file():
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="tunes-base-") as made:
        stock = stock_over(base)
        stock.save_config(made)
        for name, part in stock.components.items():
            if part is not None:
                write = part.save_config if name == base.denoiser_name else part.save_pretrained
                write(str(Path(made) / name))
        yield Path(made)


def check_rest(folder: Path, base: LoadedBase) -> None:
    """Refuse an exported pipeline of which a file beside the trained weights is not the base's.

    Raises:
        Failure: `WEIGHTS_UNUSABLE`, naming the file.
    """
    with _on_disk(base) as place:
        for file in _rest_of(place, base.denoiser_name):
            copied = folder / file.relative_to(place)
            if not copied.is_file() or not filecmp.cmp(file, copied, shallow=False):
                raise Failure(
                    FailureCode.WEIGHTS_UNUSABLE,
                    f"{copied.relative_to(folder)} of the exported pipeline is not the file of {base.entry.base_id!r}.",
                    "Look whether the disk is full or broken, and train the tune again.",
                )


def _rest_of(place: Path, denoiser: str) -> Iterator[Path]:
    """Yield the files of a pipeline's folder that its class loads, without the denoiser's weights."""
    index = json.loads((place / "model_index.json").read_text(encoding="utf-8"))
    yield place / "model_index.json"
    yield from (
        file for file in sorted(place.iterdir()) if file.name.lower().startswith(("license", "licence"))
    )
    for part, kind in sorted(index.items()):
        if not isinstance(kind, list) or not kind[0] or not (place / part).is_dir():
            continue
        for file in sorted(one for one in (place / part).rglob("*") if one.is_file()):
            weights = file.name.endswith(_WEIGHT_FILES)
            if not weights or (part != denoiser and not _repeats_another(file)):
                yield file


def _repeats_another(file: Path) -> bool:
    """Whether a weights file holds what another one beside it holds: in fewer bits, or in an older format."""
    plain = file.name.replace(".fp16.", ".").replace(".bf16.", ".").replace(".non_ema.", ".")
    if plain != file.name and (file.parent / plain).is_file():
        return True
    newer = (
        file.name.replace("pytorch_model", "model") if file.name.startswith("pytorch_model") else file.name
    )
    newer = newer.replace(".bin", ".safetensors")
    return newer != file.name and (file.parent / newer).is_file()
