"""What a tune trains with where its request is silent: preset, kind and optimizer before the base's own defaults,
and which options mean nothing to a kind.

The presets stand in `presets.yaml`, each number beside its reason. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from tunes_dagster.core.recipe import Strict, TrainingOptions

# A base's learning rate is that of adapters, whose B starts at zero; all weights of a trained model want about a
# twentieth (5e-6 where LoRA takes 1e-4, as in diffusers' DreamBooth examples for either).
FULL_LEARNING_RATE = 0.05
# Options that mean nothing to some kinds; whoever gives one there expects something that would not happen.
_ADAPTER = ("rank", "alpha", "rslora", "dora", "targets", "export_scale")
_TOKENS = ("token_vectors", "token_steps", "token_learning_rate")
_LOOP = (
    "preset",
    "steps",
    "steps_per_picture",
    "min_steps",
    "optimizer",
    "learning_rate",
    "lr_schedule",
    "warmup_steps",
    "batch_size",
    "caption_dropout",
    "min_snr_gamma",
    "prior_weight",
    "prior_prompts",
    "prior_batch_size",
    "max_grad_norm",
    "weight_decay",
    "ema_decay",
    "checkpoint_every",
    "mask_floor",
    "gradient_checkpointing",
    "base_tune_id",
)
MEANINGLESS: dict[str, tuple[str, ...]] = {
    "lora": _TOKENS,
    "pti": ("dora", "base_tune_id"),
    "checkpoint": (*_ADAPTER, *_TOKENS, "quantize"),
    "faceid": (*_ADAPTER, *_TOKENS, *_LOOP),
}
# Longest automatic training: a hundred pictures should not take all day.
MOST_STEPS = 4000


class PresetRule(Strict):
    """One entry of `presets.yaml`; see its head."""

    training: dict[str, Any] = Field(default_factory=dict)
    learning_rate_times: float = 1.0
    most_resolution: int | None = None
    families: list[str] = Field(default_factory=list)


@lru_cache(maxsize=1)
def presets() -> dict[str, PresetRule]:
    """Return the presets by name; `none` is what holds without one."""
    raw = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return {name: PresetRule.model_validate(fields) for name, fields in raw.items()}


def complete(
    asked: TrainingOptions, base: dict[str, Any], native_size: int, full_learning_rate: float | None = None
) -> TrainingOptions:
    """Return what was asked, completed by preset, kind and optimizer, then by the base.

    `steps` stays None where a rule counts them from the pictures. Completing twice changes nothing.

    Args:
        asked: The request's options.
        base: Defaults of the base in the catalog.
        native_size: Side in pixels that the base was trained at.
        full_learning_rate: Of the base, for whole networks; None is `FULL_LEARNING_RATE` of that for adapters.
    """
    rule = presets()[asked.preset or "none"]
    chosen = dict(base)
    counted = asked.preset or asked.steps_per_picture is not None or asked.min_steps is not None
    if counted:
        chosen.pop("steps", None)
    if asked.preset:
        chosen |= {
            name: value for name, value in rule.training.items() if name in TrainingOptions.model_fields
        }
        if rule.most_resolution:
            chosen["resolution"] = min(chosen.get("resolution") or native_size, rule.most_resolution)
    if "learning_rate" in chosen:
        if asked.is_whole:
            chosen["learning_rate"] = full_learning_rate or chosen["learning_rate"] * FULL_LEARNING_RATE
        chosen["learning_rate"] *= rule.learning_rate_times
    if asked.optimizer == "prodigy":
        chosen |= {"learning_rate": 1.0, "warmup_steps": 0}
    return asked.filled({name: v for name, v in chosen.items() if name not in MEANINGLESS[asked.kind]})


def changed(
    before: Mapping[str, Any],
    changes: Mapping[str, Any],
    completed: Callable[[TrainingOptions], TrainingOptions],
) -> dict[str, Any]:
    """Return completed options with changes; what the defaults of another kind had filled in is open again.

    A learning rate for adapters would ruin a whole network, and a rank means nothing to it.

    Args:
        before: All options of a tune, completed.
        changes: Those that are to differ.
        completed: Completes options with the defaults of its base.
    """
    kept = dict(before)
    if changes.get("kind", before["kind"]) != before["kind"]:
        same = {name: before[name] for name in ("kind", "preset", "optimizer")}
        filled = completed(TrainingOptions.model_validate(same)).model_dump()
        fields = TrainingOptions.model_fields
        kept = {
            name: None if fields[name].default is None and value == filled[name] else value
            for name, value in before.items()
        }
    return {**kept, **changes}


def automatic_steps(
    pictures: int, batch_size: int, per_picture: float | None = None, fewest: int | None = None
) -> int:
    """Return the steps of a tune that names none: so many visits of each picture, within bounds.

    Args:
        pictures: That are trained on.
        batch_size: Pictures per step.
        per_picture: Visits of each; None is 100.
        fewest: Fewest steps; None is 300.
    """
    plain = presets()["none"].training
    wanted = pictures * (per_picture or plain["steps_per_picture"]) / batch_size
    low = fewest or plain["min_steps"]
    return max(low, min(MOST_STEPS, round(wanted)))
