"""What Dagster shows and checks of a tune that was scored."""

from typing import Any

import dagster as dg

from tunes_dagster.assets.display import called, files, picture, table
from tunes_dagster.assets.names import REPORT_CARD, check_spec
from tunes_dagster.assets.versions import version_of_card
from tunes_dagster.core.results import CardSummary
from tunes_dagster.core.store import Store
from tunes_dagster.evaluation.card import Card
from tunes_dagster.pipeline.partitions import tunes
from tunes_dagster.registry import Tune
from tunes_dagster.sessions.results import Evaluated

ABOVE_BASE = check_spec(
    "likeness_above_base",
    asset=REPORT_CARD,
    partitions_def=tunes,
    description="With its token, the tune's renders are more like the subject than the untuned base's.",
)

SCORE_COLUMNS = {
    "step": "string",
    "published": "string",
    "likeness": "string",
    "learned": "string",
    "obedience": "string",
    "right scene": "string",
    "variety": "string",
    "copies": "string",
    "nearest picture": "string",
    "score": "string",
}


def described(done: Evaluated, tune: Tune, store: Store) -> dg.MaterializeResult:
    """Return the materialization: verdicts, before and after, scores over the checkpoints, files, and the check."""
    from tunes_dagster.evaluation.showing import score_rows

    card, shown = done.card, done.shown
    metadata: dict[str, Any] = {
        **called(tune),
        "verdict": card.tone,
        "verdicts": ", ".join(str(one.code) for one in card.verdicts) or "not scored",
        "scores": table(score_rows(card), SCORE_COLUMNS),
    }
    if shown.sheet is not None:
        metadata["before_and_after"] = picture(store, shown.sheet_key, "before and after")
    if shown.curve is not None:
        metadata["over_the_checkpoints"] = picture(store, shown.curve_key, "scores")
    if card.unmeasured:
        metadata["not_measured"] = len(card.unmeasured)
    if card.chosen is not None:
        metadata |= {"likeness": card.chosen.likeness, "published_step": card.chosen_step}
    metadata |= {
        "scorers": dg.MetadataValue.json(card.scorers),
        "seconds": card.seconds,
        **files(
            store,
            {
                "page": shown.page_key,
                "card": shown.card_key,
                "before and after": shown.sheet_key,
                "scores": shown.curve_key,
            },
        ),
    }
    summary = done.result.report_card or CardSummary()
    return dg.MaterializeResult(
        metadata=metadata,
        check_results=[above_base(card)],
        data_version=dg.DataVersion(version_of_card(summary)),
    )


def above_base(card: Card) -> dg.AssetCheckResult:
    """Return the answer of `likeness_above_base`; what could not be measured is a warning, not an error."""
    chosen, base = card.chosen, card.base
    measured = chosen is not None and base is not None
    above = measured and chosen.likeness > base.likeness  # type: ignore[union-attr]
    said = f"{chosen.likeness:.3f}, the base {base.likeness:.3f}." if measured else "Not measured."  # type: ignore[union-attr]
    return dg.AssetCheckResult(
        passed=bool(above),
        check_name=ABOVE_BASE.name,
        asset_key=REPORT_CARD,
        severity=dg.AssetCheckSeverity.ERROR if measured else dg.AssetCheckSeverity.WARN,
        description=said,
        metadata={"likeness": chosen.likeness, "base": base.likeness} if measured else {},  # type: ignore[union-attr]
    )
