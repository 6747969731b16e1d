"""Publishing a trained tune: its files are in place, and one small file says where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode

if TYPE_CHECKING:
    from tunes_dagster.core.progress import Reporter
    from tunes_dagster.core.results import TuneResult
    from tunes_dagster.core.store import Store
    from tunes_dagster.registry import Tune


def package(tune: Tune, result: TuneResult, store: Store, report: Reporter) -> TuneResult:
    """Check a trained tune's files, write `tunes/<id>/tune.json`, and return what scoring adds to its result.

    Args:
        tune: Its row.
        result: Of scoring; names the files that are published where training wrote others last.
        store: Where they lie.
        report: Told where.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when the weights are not in the store.
    """
    from tunes_dagster.training.checkpoints import forget_states

    key = tune.made.beside(result).weights_key
    if not key or not store.exists(key):
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The weights of {tune.title!r} are not in the store (looked for {key or 'nothing recorded'}).",
            "Materialize `lora` of this tune again.",
        )
    store.write_json(
        f"tunes/{tune.id}/tune.json",
        {
            "id": tune.id,
            "title": tune.title,
            "class_name": tune.class_name,
            "token": tune.token,
            "base": tune.base,
            "branch": tune.base_id,
            "recipe_hash": tune.recipe_hash,
            **result.written(tune.result),
        },
    )
    # A finished tune is not resumed.
    forget_states(store, f"tunes/{tune.id}/lora")
    report.note(f"Published {store.url(key)}")
    return result
