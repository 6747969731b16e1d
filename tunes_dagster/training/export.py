"""A finished tune's files: its weights in every layout that they have, the recipe in their header, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import tunes_dagster
from tunes_dagster.core.failures import Failure, FailureCode, detail_of
from tunes_dagster.core.recipe import recipe_hash
from tunes_dagster.core.store import Store
from tunes_dagster.families.base import LoadedBase
from tunes_dagster.families.specs import spec_of
from tunes_dagster.intake.subject import example_prompt, is_style
from tunes_dagster.training.files import read_header
from tunes_dagster.training.jobs import History, TrainingResult, TuneJob
from tunes_dagster.training.layouts import Files, write_layouts
from tunes_dagster.training.names import is_whole, split_state
from tunes_dagster.training.programs import deaf_programs, lora_line, ways_to_say

if TYPE_CHECKING:
    from torch import Tensor

# The whole recipe, beside the weights.
RECIPE_FILE = "recipe.json"
# As kohya's scripts write them.
_OPTIMIZERS = {
    "adamw": "torch.optim.AdamW",
    "adamw8bit": "bitsandbytes.optim.AdamW8bit",
    "prodigy": "prodigyopt.Prodigy",
}


def write(
    job: TuneJob,
    base: LoadedBase,
    store: Store,
    adapter: Mapping[str, Tensor],
    history: History,
) -> TrainingResult:
    """Write a finished tune and return its result.

    Args:
        job: What was asked.
        base: What it was trained on.
        store: Where to.
        adapter: From `TrainedWeights.adapter`: an adapter in peft's format with alpha folded in, or a whole network.
        history: How its training went.
    """
    recipe = job.full_recipe(base.entry.base_id, base.fingerprint()) | {
        "steps_done": history.steps,
        **computed_by(base),
    }
    name = recipe_hash(recipe)
    store.write_json(f"{job.out_prefix}/{RECIPE_FILE}", recipe)
    spoken = _write_words(job, store) if job.words else {}
    fields = {**_header(job, base, recipe, name, history.steps, whole=is_whole(adapter)), **spoken}
    whole = {**adapter, **(job.encoders or {})}
    files = write_layouts(store, job.out_prefix, job.tune_id, base, whole, fields, storage_dtype(base))
    # Beside what a user takes away.
    card = _card(job, base, name, history, files)
    card_key = store.write_text(f"{files.pipeline_key or job.out_prefix}/README.md", card)
    figures: dict[str, Any] = {
        "parameters": sum(value.numel() for value in adapter.values()),
        "bytes": store.size(files.weights_key),
    }
    if not is_whole(adapter):
        figures["layers"] = len(split_state(adapter))
    if spoken:
        (figures["embeddings"],) = spoken.values()
    if files.kohya_key:
        figures["kohya_bytes"] = store.size(files.kohya_key)
    return TrainingResult(
        tune_id=job.tune_id,
        **files.as_dict(),
        card_key=card_key,
        loss_curve=list(history.curve),
        steps=history.steps,
        seconds=0.0,
        checkpoints=list(history.checkpoints),
        recipe=recipe,
        recipe_hash=name,
        stopped=history.stopped,
        figures=figures,
    )


def _write_words(job: TuneJob, store: Store) -> dict[str, str]:
    """Write a tune's words and return the field of the weights' header that leads to them."""
    from tunes_dagster.training import words

    # ComfyUI, Forge and A1111 find words by the name of their file.
    key = f"{job.out_prefix}/{job.token}.safetensors"
    assert job.words is not None
    words.save(store, key, job.words, {"format": "pt", words.TOKEN_FIELD: job.token})
    return {words.KEY_FIELD: key}


def computed_by(base: LoadedBase) -> dict[str, Any]:
    """Return what computed a tune: the versions of code and libraries, device and precision."""
    from importlib.metadata import version

    names = ("torch", "diffusers", "transformers", "peft", "pillow")
    return {
        "version": tunes_dagster.__version__,
        "libraries": {name: version(name) for name in names},
        "device": base.device.type,
        "dtype": str(base.dtype).removeprefix("torch."),
    }


def storage_dtype(base: LoadedBase) -> Any:
    """Return half precision where the base computes in it, so that a file renders what the training saw."""
    import torch

    return base.dtype if base.dtype in (torch.float16, torch.bfloat16) else torch.float32


def _header(
    job: TuneJob, base: LoadedBase, recipe: dict[str, Any], name: str, steps: int, whole: bool
) -> dict[str, str]:
    """Return the safetensors header: ours in full, and what other tools show of it."""
    options = job.options
    rank = options.rank or 16
    resolution = options.resolution or base.entry.native_size
    header = {
        "format": "pt",
        "tunes_dagster.recipe": written(shareable(recipe)),
        "tunes_dagster.recipe_hash": name,
        "tunes_dagster.token": job.token,
        "tunes_dagster.class_name": job.class_name,
        "tunes_dagster.base": base.entry.base_id,
        **({"tunes_dagster.one_picture": "true"} if recipe.get("one_picture") else {}),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": base.architecture.removesuffix("/lora") if whole else base.architecture,
        "modelspec.title": job.title or f"{job.token} {job.class_name}",
        "modelspec.trigger_phrase": f"{job.token} {job.class_name}",
        "modelspec.prediction_type": base.prediction,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.license": base.entry.licence,
        "modelspec.description": _described(job, base, whole),
        "modelspec.usage_hint": _hint(job, base),
        **({"modelspec.date": job.date} if job.date else {}),
        # alpha / rank is folded into the weights
        **(
            {}
            if whole
            else {
                "ss_network_module": base.network_module,
                "ss_network_dim": rank,
                "ss_network_alpha": float(rank),
            }
        ),
        "ss_base_model_version": base.kohya_name,
        "ss_sd_model_name": base.entry.public_name,
        # A1111 calls a LoRA by it in prompts, so it is unique and holds nothing that ends a tag.
        "ss_output_name": job.tune_id,
        "ss_v2": False,
        "ss_steps": steps,
        "ss_seed": options.seed,
        "ss_learning_rate": options.learning_rate,
        "ss_lr_scheduler": options.lr_schedule,
        "ss_optimizer": _OPTIMIZERS[options.optimizer],
        "ss_num_train_images": len(job.items),
        "ss_batch_size_per_device": options.batch_size,
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_min_snr_gamma": options.min_snr_gamma,
        "ss_caption_dropout_rate": options.caption_dropout,
        "ss_tag_frequency": json.dumps({"images": {f"{job.token} {job.class_name}": len(job.items)}}),
    }
    return {key: value if isinstance(value, str) else str(value) for key, value in header.items()}


def written(recipe: Mapping[str, Any]) -> str:
    """Return a recipe as a header holds it."""
    return json.dumps(recipe, sort_keys=True, ensure_ascii=False, default=str)


def shareable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe as it may lie in files that people share: without the captions of their pictures, unless asked.

    The whole of it lies beside the files, as `recipe.json`.
    """
    shared = dict(recipe)
    if not (recipe.get("dataset") or {}).get("captions_in_files"):
        pictures = recipe.get("pictures", ())
        shared["pictures"] = [{k: v for k, v in one.items() if k != "caption"} for one in pictures]
        # What a person wrote or edited is a caption as well.
        shared.pop("captions", None)
    if "imported" in recipe:
        # An address may hold what only its owner may know.
        shared["imported"] = {name: recipe["imported"].get(name) for name in ("name", "sha256")}
    return shared


def recipe_beside(store: Store, weights_key: str) -> dict[str, Any]:
    """Return the whole recipe of a tune: beside its weights, or in their header, where earlier versions wrote it.

    Args:
        store: Where they lie.
        weights_key: The last file that training wrote, or the one that was published.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when it is damaged.
    """
    for folder in PurePosixPath(weights_key).parents[:3]:
        if store.exists(key := f"{folder}/{RECIPE_FILE}"):
            return parse_recipe(store.read_bytes(key), key)
    return parse_recipe(read_header(store, weights_key).get("tunes_dagster.recipe", "{}"), weights_key)


def parse_recipe(text: str | bytes, key: str) -> dict[str, Any]:
    """Return a recipe as it was written into a file.

    Args:
        text: JSON.
        key: Of the file, for whoever is told that it is damaged.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when it is none.
    """
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The recipe in {key} is damaged.",
            "Put the file back from a backup, or train the tune again.",
            detail_of(error),
        ) from error


def _hint(job: TuneJob, base: LoadedBase) -> str:
    said = f"{job.token} {job.class_name}"
    if not job.words:
        return f"Write {said} in a prompt{', with the LoRA at strength 1' if job.options.dora else ''}."
    ways = ways_to_say(spec_of(base.entry.family).word_programs, job.token, job.class_name)
    return f"The words behind {job.token} lie in {job.token}.safetensors: {ways}."


def _described(job: TuneJob, base: LoadedBase, whole: bool) -> str:
    what = "A full fine-tune" if whole else "A DoRA" if job.options.dora else "A LoRA"
    return f"{what} of a {job.class_name} for {base.entry.base_id}, trained on {_pictures(job)}."


def _pictures(job: TuneJob) -> str:
    pictures, items = len({item.key for item in job.items}), len(job.items)
    plural = "one picture" if pictures == 1 else f"{pictures} pictures"
    return plural if items == pictures else f"{plural} in {items} crops and variations"


def _one_picture(job: TuneJob) -> str:
    """Return what a reader must know of a tune that was made of one picture; empty for others."""
    if not job.recipe.get("one_picture"):
        return ""
    return (
        "\n\nMade from one picture, in crops and variations of it: it knows one pose, one expression and one light, "
        "and repeats them more than a tune of several pictures does."
    )


def _card(
    job: TuneJob,
    base: LoadedBase,
    name: str,
    history: History,
    files: Files,
) -> str:
    """Return the model card, in the form the Hugging Face hub reads."""
    options, entry = job.options, base.entry
    shown = {
        "kind": options.kind,
        "steps": history.steps,
        "rank": options.rank,
        "alpha": options.alpha or options.rank,
        "learning rate": options.learning_rate,
        "schedule": options.lr_schedule,
        "optimizer": options.optimizer,
        "batch size": options.batch_size,
        "targets": options.targets,
        "prior weight": options.prior_weight,
        "caption dropout": options.caption_dropout,
        "seed": options.seed,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in shown.items() if value is not None)
    seen = "style" if is_style(job.class_name) else "subject"
    what, tags = ("A full fine-tune", "") if files.pipeline_key else ("A LoRA", "lora, ")
    what = "A DoRA" if options.dora and not files.pipeline_key else what
    last = f"{history.curve[-1][1]:.4f}" if history.curve else "not recorded"
    return f"""---
base_model: {entry.public_name}
license: {entry.licence}
library_name: diffusers
tags: [text-to-image, {tags}diffusers, {entry.family}]
instance_prompt: {job.token} {job.class_name}
---

# {job.title or f"{job.token} {job.class_name}"}

{what} for `{entry.base_id}` ({entry.public_name}, licence {entry.licence}), trained on {_pictures(job)}.
Write `{job.token} {job.class_name}` in a prompt to see the {seen}.{_one_picture(job)}

{how_to_use(job, base, files)}

| | |
| --- | --- |
{table}

Last mean loss {last}. Recipe `{name}`; the header of the weights holds it, {_with_captions(job)} captions.
"""


def _with_captions(job: TuneJob) -> str:
    return "with" if (job.recipe.get("dataset") or {}).get("captions_in_files") else "without"


def how_to_use(job: TuneJob, base: LoadedBase, files: Files) -> str:
    """Return how the files are used, in diffusers as code that runs in their folder, and in other programs."""
    prompt = f'pipeline("{example_prompt(job.token, job.class_name, "on the beach")}")'
    if files.pipeline_key:
        return (
            "```python\nfrom diffusers import DiffusionPipeline\n\n"
            f'pipeline = DiffusionPipeline.from_pretrained(".")\n{prompt}\n```\n\n'
            "This folder is complete: text encoders, VAE and scheduler are the base's own."
        )
    ours, theirs = (key.rpartition("/")[2] for key in (files.weights_key, files.kohya_key))
    loading = f'pipeline.load_lora_weights(".", weight_name="{ours}")'
    imports, words = "from diffusers import DiffusionPipeline", ""
    if job.words:
        imports += "\nfrom safetensors.torch import load_file"
        words = _LOAD_WORDS.format(token=job.token)
    code = (
        f'{imports}\n\npipeline = DiffusionPipeline.from_pretrained("{base.entry.public_name}")\n'
        f"{words}{loading}\n{prompt}"
    )
    return f"```python\n{code}\n```\n\n{_elsewhere(job, base, theirs)}"


# The line about `eos_token_id`: the CLIP configurations of SDXL and FLUX.1 have a wrong one, which new words bring to
# light (`words.pool_at_the_end`).
_LOAD_WORDS = """places = {{"clip_l": "", "clip_g": "_2", "t5": "_2"}}
words = load_file("{token}.safetensors")
for name, place in places.items():
    if name not in words:
        continue
    tokenizer, encoder = (getattr(pipeline, part + place) for part in ("tokenizer", "text_encoder"))
    pipeline.load_textual_inversion({{"{token}": words[name]}}, tokenizer=tokenizer, text_encoder=encoder)
    if name != "t5":
        getattr(encoder, "text_model", encoder).eos_token_id = tokenizer.eos_token_id
"""


def _elsewhere(job: TuneJob, base: LoadedBase, theirs: str) -> str:
    """Return which other programs take the files, and what to write there."""
    spec, said = spec_of(base.entry.family), f"{job.token} {job.class_name}"
    if not theirs:
        return "There is no file of it for other programs: a DoRA has no place in this family's other layout."
    if not spec.programs:
        return f"`{theirs}` holds the same numbers in kohya's names."
    if job.options.dora:
        return f"`{theirs}` is for {lora_line(spec, dora=True)}. Write `{said}`."
    lines = [f"In {', '.join(spec.programs)}: `{theirs}` as a LoRA, at strength 1; write `{said}`."]
    if job.words:
        ways = ways_to_say(spec.word_programs, job.token, job.class_name)
        lines.append(
            f"`{job.token}` stands for words of its own, which lie in `{job.token}.safetensors` and belong into the "
            f"folder for embeddings, under this name: {_quoted(ways)}."
        )
        if deaf := deaf_programs(spec):
            lines[-1] += (
                f" No other program reads words of {spec.title}: in {', '.join(deaf)} the LoRA alone knows its subject "
                "less well."
            )
    return "\n\n".join(lines)


def _quoted(ways: str) -> str:
    """Return ways to say a word as Markdown, in which a tag in angle brackets would vanish."""
    return "; ".join(
        f"{who} write `{way}`" for who, way in (one.split(" write ", 1) for one in ways.split("; "))
    )
