"""Which wishes of a tune cannot be met or have no effect, and what is done without them; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tunes_dagster.core.effects import ALWAYS, Idle, Rule, Table, when, without_idle
from tunes_dagster.core.recipe import TrainingOptions, TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.wishes import Wishes
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.families.presets import MEANINGLESS, presets
from tunes_dagster.families.specs import spec_of
from tunes_dagster.intake.restore import restorer_missing
from tunes_dagster.intake.subject import is_style


def without_unmet(
    request: TuneRequest, asked: BaseModelEntry, used: BaseModelEntry, settings: Settings, wishes: Wishes
) -> TuneRequest:
    """Return a request without what cannot be met or has no effect, each told to `wishes`.

    Args:
        request: As handed in.
        asked: The base that was named.
        used: The base that is really trained on.
        settings: The operator's.
        wishes: Are told.
    """
    case = _Case(request, asked, used, settings)

    def with_training(training: TrainingOptions) -> _Case:
        return replace(case, request=request.model_copy(update={"training": training}))

    training = without_idle(request.training, TRAINING, with_training, wishes, "training.")
    case = with_training(training)
    dataset = without_idle(request.dataset, DATASET, lambda _part: case, wishes, "dataset.")
    kept = without_idle(request, TUNE, lambda _part: case, wishes)
    if training == request.training and dataset == request.dataset:
        return kept
    return kept.model_copy(update={"training": training, "dataset": dataset})


@dataclass(frozen=True)
class _Case:
    """What the rules look at: a request as far as it was looked through, and what it is for."""

    request: TuneRequest
    asked: BaseModelEntry
    used: BaseModelEntry
    settings: Settings

    @property
    def training(self) -> TrainingOptions:
        """The training options."""
        return self.request.training

    @property
    def completed(self) -> TrainingOptions:
        """The same with what preset, kind and base fill in."""
        return self.used.training_options(self.training)

    @property
    def style(self) -> bool:
        """Whether no subject is learnt."""
        return is_style(self.request.class_name)

    @property
    def untrained(self) -> bool:
        """Whether nothing is trained on the pictures."""
        return self.training.kind == "faceid"


def _of_another_kind(case: _Case, name: str) -> Idle | None:
    kind = case.training.kind
    return _said(case, name, f"means nothing to a tune of the kind {kind!r}", name in MEANINGLESS[kind])


def _said(case: _Case, name: str, why: str, idle: bool) -> Idle | None:
    return Idle(f"is {getattr(case.training, name)!r}, but {why}") if idle else None


def _unless(idle: Callable[[_Case], bool], why: str) -> Callable[[_Case, str], Idle | None]:
    """Return a rule for a training option, which says its value; what was filled in is no wish."""

    def rule(case: _Case, name: str) -> Idle | None:
        open_again = case.training.model_copy(update={name: TrainingOptions.model_fields[name].default})
        filled = getattr(case.used.training_options(open_again), name)
        return _said(case, name, why, getattr(case.training, name) != filled and idle(case))

    return rule


def _preset_of_others(case: _Case, name: str) -> Idle | None:
    preset = case.training.preset
    if preset is None or case.asked.family in (fitting := presets()[preset].families):
        return None
    families = " and ".join(fitting)
    return Idle(
        f"is {preset!r}, but is for the families {families}, and {case.asked.base_id} is of {case.asked.family}"
    )


def _flow(case: _Case, name: str) -> Idle | None:
    """A signal-to-noise weighting of this kind means nothing to flow matching; 0 turns it off."""
    flows = bool(case.training.min_snr_gamma) and spec_of(case.asked.family).prediction == "flow"
    return _said(case, name, f"means nothing on {case.asked.base_id}, which learns by flow matching", flows)


def _faceless(case: _Case, name: str) -> Idle | None:
    return (
        Idle(f"looks for a face, and a style ({case.request.class_name!r}) has none") if case.style else None
    )


def _without_restorer(case: _Case, name: str) -> Idle | None:
    missing = restorer_missing(case.settings.bases_folder)
    return Idle(missing.why, "faces are trained on as they are", missing.remedy) if missing else None


def _unmasked(case: _Case, name: str) -> Idle | None:
    why = f"is {case.request.dataset.mask!r}, but means nothing to a tune of the kind 'faceid'"
    return Idle(why) if case.untrained else None


_NO_CAPTIONS = "means nothing to a tune of the kind 'faceid', which is made of pictures alone"
_uncaptioned: Rule[_Case] = when(lambda case: case.untrained, _NO_CAPTIONS)
_KIND = (_of_another_kind,)
_COUNTED = _unless(lambda case: case.training.steps is not None, "steps is given, which counts")
_NOT_TRAINED = _unless(lambda case: case.untrained, "nothing is trained for a tune of the kind 'faceid'")

# Of a request; what is kept although it has no effect is a person's own words.
TUNE: Table[_Case] = {
    "name": ALWAYS,
    "title": ALWAYS,
    "token": ALWAYS,
    "base": ALWAYS,
    "sources": ALWAYS,
    "characteristics": ALWAYS,
    "captions": (when(lambda case: case.untrained, _NO_CAPTIONS, {}),),
    "default_caption": (when(lambda case: case.untrained, _NO_CAPTIONS, {}),),
    "dataset": ALWAYS,
    "training": ALWAYS,
    "prompts": ALWAYS,
    "callback_url": ALWAYS,
    "labels": ALWAYS,
}
DATASET: Table[_Case] = {
    "min_pictures": ALWAYS,
    "max_pictures": ALWAYS,
    "min_side": ALWAYS,
    "face_crop": (_faceless,),
    "require_face": ALWAYS,  # of a style it is refused
    "hold_out": ALWAYS,
    "near_duplicate_bits": ALWAYS,
    "captioner": (
        _uncaptioned,
        when(
            lambda case: bool(case.request.default_caption), "is asked after default_caption, which is given"
        ),
    ),
    "one_picture": ALWAYS,  # that several came in is told when they are there
    "face_correct": (_faceless, _without_restorer),
    "mask": (_unmasked,),
    "captions_in_files": (_uncaptioned,),
}
# In the order in which they are looked at.
TRAINING: Table[_Case] = {
    "kind": ALWAYS,
    "preset": (_of_another_kind, _preset_of_others),
    "base_tune_id": ALWAYS,  # for other kinds it is refused
    "steps": _KIND,
    "steps_per_picture": (_of_another_kind, _COUNTED),
    "min_steps": (_of_another_kind, _COUNTED),
    "rank": _KIND,
    "alpha": _KIND,
    "rslora": _KIND,
    "dora": _KIND,
    "optimizer": _KIND,
    "learning_rate": _KIND,
    "lr_schedule": _KIND,
    "warmup_steps": _KIND,
    "batch_size": _KIND,
    "resolution": ALWAYS,
    "targets": _KIND,
    "caption_dropout": _KIND,
    "min_snr_gamma": (_of_another_kind, _flow),
    "prior_weight": (
        _of_another_kind,
        _unless(
            lambda case: bool(case.training.prior_weight) and not case.completed.prior_prompts,
            "there are no class prompts to weigh: prior_prompts is 0",
        ),
    ),
    "prior_prompts": (
        _of_another_kind,
        _unless(
            lambda case: bool(case.training.prior_prompts) and not case.completed.prior_weight,
            "they weigh nothing: prior_weight is 0",
        ),
    ),
    "prior_batch_size": (
        _of_another_kind,
        _unless(
            lambda case: not (case.completed.prior_weight and case.completed.prior_prompts),
            "prior preservation is off: prior_weight and prior_prompts have to be above 0",
        ),
    ),
    "max_grad_norm": _KIND,
    "weight_decay": _KIND,
    "ema_decay": _KIND,
    "export_scale": (
        _of_another_kind,
        _unless(lambda case: case.training.dora, "a DoRA is exported as it was trained (dora)"),
    ),
    "seed": ALWAYS,
    "checkpoint_every": _KIND,
    "mask_floor": (
        _of_another_kind,
        _unless(lambda case: case.request.dataset.mask == "off", "nothing is masked: dataset.mask is 'off'"),
    ),
    "token_vectors": _KIND,
    "token_steps": _KIND,
    "token_learning_rate": _KIND,
    "gradient_checkpointing": _KIND,
    "quantize": (_of_another_kind, _NOT_TRAINED),
    "offload": (_NOT_TRAINED,),
}
