"""Weights of another program as a tune: read against the loaded base, and written like those that were trained."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Phase
from tunes_dagster.core.recipe import TrainingOptions, recipe_hash
from tunes_dagster.core.store import Store
from tunes_dagster.families.base import LoadedBase, Targets
from tunes_dagster.training import checkpoints, words
from tunes_dagster.training.export import (
    RECIPE_FILE,
    computed_by,
    how_to_use,
    shareable,
    storage_dtype,
    written,
)
from tunes_dagster.training.files import read_entries, sha256_of
from tunes_dagster.training.foreign.converting import Converted, convert, networks_of
from tunes_dagster.training.foreign.fitting import Fitting, fitted
from tunes_dagster.training.foreign.names import DENOISER, Entry, read_names
from tunes_dagster.training.foreign.scales import check_strength, read_scales
from tunes_dagster.training.jobs import TrainingResult, TuneJob
from tunes_dagster.training.layouts import write_layouts
from tunes_dagster.training.names import split_encoders, split_state

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_TARGETS: tuple[Targets, ...] = ("attention", "attention+mlp", "all")
_OURS = "tunes_dagster.base"


def take_in(job: TuneJob, base: LoadedBase, store: Store) -> TrainingResult:
    """Make a tune's files of the weights that its recipe names.

    Args:
        job: Its recipe has `imported`, as `service/importing.py` writes it.
        base: That it is for.
        store: Where the file lies and those of the tune go.

    Raises:
        Failure: `WEIGHTS_UNUSABLE`, naming what of the file cannot be taken; nothing is written then.
    """
    began, source = time.monotonic(), job.recipe["imported"]
    job.report.phase(Phase.LOADING, f"Reading {source['name']}.")
    with store.local(source["key"]) as path:
        if sha256_of(path) != source["sha256"]:
            raise Failure(
                FailureCode.WEIGHTS_UNUSABLE,
                f"The file {source['name']} is not what was handed in: its hash is another one.",
                "Import it again.",
            )
        made = read_file(path, base, source.get("config") or {})
    for said in made.notes:
        job.report.finding(said)
    result = _written(job, base, store, made)
    result.seconds = time.monotonic() - began
    return result


def read_file(path: Path, base: LoadedBase, config: Mapping[str, Any] | None = None) -> Converted:
    """Return what a file holds for a base.

    Args:
        path: A safetensors file that was checked.
        base: Loaded.
        config: peft's `adapter_config.json` that lay beside it, or `{"lora_alpha": …}` of somebody who knows.

    Raises:
        Failure: `WEIGHTS_UNUSABLE`.
    """
    from safetensors import safe_open

    header, found = read_entries(path)
    entries = {name: Entry(name, kind, shape) for name, (kind, shape) in found.items()}
    reading, scales, networks = read_names(entries.values()), read_scales(header, config), networks_of(base)
    check_strength(reading.bare, scales)
    fitting = fitted(reading, entries, networks, base.entry.base_id)
    # Our second layout holds scales for who divides by the norm of the base's own weights.
    weights = {DENOISER: base.denoiser} if _OURS in header else None
    with safe_open(str(path), framework="pt") as file:
        made = convert(fitting, _Tensors(file), networks, scales, weights)
    if config and reading.says_alpha:
        made.notes.append("An alpha was given, but each layer of the file says its own, which counts.")
    if not made.state:
        made.state = _nothing(base, fitting)
        made.notes.append("The file teaches a word alone; the LoRA beside it changes nothing.")
    return made


class _Tensors(Mapping[str, "Tensor"]):
    """The tensors of an open file, each read when it is looked at."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(key)
        return tensor

    def __iter__(self) -> Any:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())


def _nothing(base: LoadedBase, fitting: Fitting) -> dict[str, Tensor]:
    """Return an adapter of one layer that adds nothing: files of words alone have none, and programs want one."""
    import torch

    assert fitting.vectors
    name = base.adapter_targets("attention")[0]
    weight = base.denoiser.get_submodule(name).weight
    key = f"{base.denoiser_name}.{name}"
    return {
        f"{key}.lora_A.weight": torch.zeros(1, *weight.shape[1:]),
        f"{key}.lora_B.weight": torch.zeros(weight.shape[0], 1, *(1,) * (weight.ndim - 2)),
    }


def _written(job: TuneJob, base: LoadedBase, store: Store, made: Converted) -> TrainingResult:
    """Write the files of a tune, as those of one that was trained."""
    recipe = {**job.recipe, "base": base.entry.base_id, "base_fingerprint": base.fingerprint()}
    recipe |= {"class_name": job.class_name, "token": job.token, **computed_by(base)}
    name = recipe_hash(recipe)
    store.write_json(f"{job.out_prefix}/{RECIPE_FILE}", recipe)
    header, figures = _header(job, base, made, recipe, name), _figures(base, made)
    if made.words:
        key = f"{job.out_prefix}/{job.token}.safetensors"
        words.save(store, key, made.words, {"format": "pt", words.TOKEN_FIELD: job.token})
        header[words.KEY_FIELD] = figures["embeddings"] = key
        job.words = made.words
    files = write_layouts(store, job.out_prefix, job.tune_id, base, made.state, header, storage_dtype(base))
    card = _card(job, base, made, name) + how_to_use(job, base, files) + "\n"
    denoiser, _ = split_encoders(made.state)
    return TrainingResult(
        tune_id=job.tune_id,
        weights_key=files.weights_key,
        kohya_key=files.kohya_key,
        pipeline_key=files.pipeline_key,
        card_key=store.write_text(f"{job.out_prefix}/README.md", card),
        loss_curve=[],
        steps=0,
        seconds=0.0,
        checkpoints=[_checkpoint(job, store, made, denoiser)],
        recipe=recipe,
        recipe_hash=name,
        figures=figures,
    )


def _checkpoint(job: TuneJob, store: Store, made: Converted, denoiser: Mapping[str, Tensor]) -> str:
    """Write the one checkpoint that a report card can look at."""
    # Not 0, which is the untuned base to a report card.
    key = checkpoints.checkpoint_key(job.out_prefix, 1)
    info = checkpoints.CheckpointInfo(1, "", 1.0, made.rank, sorted(split_state(denoiser)))
    checkpoints.save(store, key, info, denoiser, {})
    return key


def _figures(base: LoadedBase, made: Converted) -> dict[str, Any]:
    """Return small facts, and what a tune that goes on from this one must be like."""
    denoiser, _ = split_encoders(made.state)
    layers = set(split_state(denoiser))
    fitting = [one for one in _TARGETS if layers <= set(base.adapter_targets(one))]
    most = max((len(a) for a, _ in split_state(denoiser).values()), default=1)
    why = ""
    if not fitting:
        why = "it adapts layers that are not trained here"
    elif most > _most_rank():
        why = f"its rank is {most}, and {_most_rank()} is the most that is trained here"
    shape = {"rank": max(most, _least_rank()), "targets": fitting[0] if fitting else None}
    return {
        "layers": len(layers),
        "rank": most,
        "dora": made.dora,
        **({"text_encoders": ", ".join(made.encoders)} if made.encoders else {}),
        "continued_as": {"why_not": why} if why else shape,
    }


def _limits() -> tuple[int, int]:
    schema = TrainingOptions.model_json_schema()["properties"]["rank"]["anyOf"][0]
    return int(schema["minimum"]), int(schema["maximum"])


def _least_rank() -> int:
    return _limits()[0]


def _most_rank() -> int:
    return _limits()[1]


def _header(
    job: TuneJob, base: LoadedBase, made: Converted, recipe: dict[str, Any], name: str
) -> dict[str, str]:
    entry, said = base.entry, f"{job.token} {job.class_name}"
    return {
        "format": "pt",
        "tunes_dagster.recipe": written(shareable(recipe)),
        "tunes_dagster.recipe_hash": name,
        words.TOKEN_FIELD: job.token,
        "tunes_dagster.class_name": job.class_name,
        _OURS: entry.base_id,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": base.architecture,
        "modelspec.title": job.title or said,
        "modelspec.trigger_phrase": said,
        "modelspec.prediction_type": base.prediction,
        "modelspec.description": f"Imported from {recipe['imported']['name']}, for {entry.base_id}.",
        **({"modelspec.date": job.date} if job.date else {}),
        "ss_network_module": base.network_module,
        "ss_network_dim": str(made.rank),
        "ss_network_alpha": str(float(made.rank)),
        "ss_base_model_version": base.kohya_name,
        "ss_sd_model_name": entry.public_name,
        "ss_output_name": job.tune_id,
        "ss_v2": "False",
    }


def _card(job: TuneJob, base: LoadedBase, made: Converted, name: str) -> str:
    entry, said = base.entry, f"{job.token} {job.class_name}"
    source = job.recipe["imported"]
    what = "A DoRA" if made.dora else "A LoRA"
    notes = "".join(f"\n\n{one}" for one in made.notes)
    return f"""---
base_model: {entry.public_name}
library_name: diffusers
tags: [text-to-image, lora, diffusers, {entry.family}]
instance_prompt: {said}
---

# {job.title or said}

{what} for `{entry.base_id}` ({entry.public_name}), imported from `{PurePosixPath(source["name"]).name}`
(SHA-256 `{source["sha256"]}`). Whose it is and under which licence, that file's owner says.{notes}

Recipe `{name}`.

"""
