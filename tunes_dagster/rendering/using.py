"""The tunes that a prompt is rendered with, by the ids that were settled when it was accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.registry import Prompt, PromptTune, Tune
from tunes_dagster.rendering.jobs import Tagged, TuneWeights

# What to do about a tune that waiting does not make ready.
_REMEDIES = {
    "deleted": "Use another tune, or make it again.",
    "failed": "Materialize what failed of it again, or use another tune.",
    "cancelled": "Materialize what was cancelled of it again, or use another tune.",
}


def weights_of(tune: Tune) -> TuneWeights:
    """Return what the renderer needs to know of a tune.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when it is not ready, whatever weights it has: nobody paid for them.
    """
    key = tune.made.weights_key
    if not key or tune.status != "ready":
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The tune {tune.title!r} cannot be rendered with: it is {tune.status}.",
            _REMEDIES.get(tune.status, "Wait until it is ready."),
        )
    known = (tune.request or {}).get("characteristics") or {}
    return TuneWeights(
        id=tune.id,
        key=key,
        token=tune.token,
        class_name=tune.class_name,
        characteristics=known,
        kind=tune.kind,
    )


def used_by(
    prompt: Prompt, uses: Sequence[PromptTune], tunes: Mapping[str, Tune]
) -> tuple[TuneWeights | None, list[Tagged]]:
    """Return a prompt's own tune, and those that tags in its text name.

    Args:
        prompt: The row.
        uses: What it uses, in order.
        tunes: Those by id.

    Raises:
        Failure: `UNKNOWN_TUNE` for a tune that is gone, another account's, or was never settled; `WEIGHTS_UNUSABLE`.
    """
    own: TuneWeights | None = None
    tagged = []
    for use in uses:
        weights = _usable(prompt, use, tunes.get(use.tune_id or ""))
        if use.kind == "tune":
            own = weights
        else:
            tagged.append(Tagged(use.word, weights, use.scale or 0.0))
    if prompt.tune_id != (own.id if own else None):
        raise Failure(
            FailureCode.UNKNOWN_TUNE,
            "It was accepted by an older version, which did not write down what it uses.",
            "Submit it again.",
        )
    return own, tagged


def _usable(prompt: Prompt, use: PromptTune, tune: Tune | None) -> TuneWeights:
    if tune is None or tune.account_id != prompt.account_id:
        raise Failure(
            FailureCode.UNKNOWN_TUNE,
            f"It names {use.word!r}, which is not one tune of its account.",
            "Submit it again with the tune's id.",
        )
    if tune.status == "deleted":
        raise Failure(FailureCode.UNKNOWN_TUNE, f"The tune {use.word!r} was deleted.", "Make a new one.")
    return weights_of(tune)
