"""What a run logs for a partition that it does not have itself looks like what an asset of the partition returns."""

import dagster as dg

from tunes_dagster.assets.attempt import Context
from tunes_dagster.pipeline.journal import check_evaluation, newest_materialization, version_tags


def log_materialized(
    context: Context, key: dg.AssetKey, partition: str, result: dg.MaterializeResult
) -> None:
    """Log a materialization of a partition and the answers of its checks.

    Args:
        context: Of the step that made it.
        key: The asset.
        partition: One of its partition keys.
        result: As the asset itself would return it.
    """
    versioned = version_tags(result.data_version.value) if result.data_version else None
    context.log_event(
        dg.AssetMaterialization(asset_key=key, partition=partition, metadata=result.metadata, tags=versioned)
    )
    target = newest_materialization(context.instance, key, partition)
    for answer in result.check_results or []:
        context.log_event(check_evaluation(key, partition, answer, target))  # type: ignore[arg-type]
