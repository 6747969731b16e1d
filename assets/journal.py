"""What a run logs for a partition that it does not have itself looks like what an asset of the partition returns."""

import dagster as dg
from dagster import AssetCheckEvaluation
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

from tunes_dagster.assets.attempt import Context

# What `MaterializeResult.data_version` becomes.
DATA_VERSION_TAG = "dagster/data_version"


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
    versioned = {DATA_VERSION_TAG: result.data_version.value} if result.data_version else None
    context.log_event(
        dg.AssetMaterialization(asset_key=key, partition=partition, metadata=result.metadata, tags=versioned)
    )
    target = _newest(context.instance, key, partition)
    for answer in result.check_results or []:
        assert answer.check_name is not None
        context.log_event(
            AssetCheckEvaluation(  # type: ignore[arg-type]
                asset_key=key,
                check_name=answer.check_name,
                passed=answer.passed,
                metadata=answer.metadata,
                severity=answer.severity,
                description=answer.description,
                partition=partition,
                target_materialization_data=target,
            )
        )


def _newest(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str
) -> AssetCheckEvaluationTargetMaterializationData:
    """Return the pointer without which Dagster shows a partition's checks as missing."""
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    (record,) = instance.fetch_materializations(wanted, limit=1).records
    return AssetCheckEvaluationTargetMaterializationData(
        run_id=record.run_id, storage_id=record.storage_id, timestamp=record.timestamp
    )
