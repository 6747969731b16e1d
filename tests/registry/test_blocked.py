"""A blocked prompt ends as `blocked`, says which rule fired, and costs nothing."""

from __future__ import annotations

from datetime import timedelta

from tests.support.registry import add_prompt, prompt_request
from tunes_dagster.core.failures import Failure
from tunes_dagster.registry import Registry
from tunes_dagster.rendering.policy import blocked


def test_a_blocked_prompt_gets_its_credits_back(tmp_path, migrated_file):
    import shutil

    shutil.copyfile(migrated_file, tmp_path / "registry.db")
    registry = Registry(f"sqlite:///{tmp_path}/registry.db")
    registry.accounts.add("ann")
    registry.ledger.open_wallet(
        "ann", plan="free", requests_per_minute=20, monthly_grant=0, sign_up_grant=10_000
    )
    prompt = add_prompt(
        registry,
        prompt_request(),
        base_id="tiny-sdxl",
        account_id="ann",
        origin="api",
        price=4_000,
    )
    assert registry.ledger.wallet("ann").available == 6_000
    [batch] = registry.groups.make_batches(registry.now() + timedelta(seconds=10))
    work = registry.work.claim("render", batch.id, "run")
    failure = blocked("weapons")
    assert isinstance(failure, Failure)
    registry.prompts.failed(prompt.id, work.id, "run", failure)
    ended = registry.prompts.get(prompt.id)
    assert ended.status == "blocked" and "'weapons'" in ended.failure_message
    wallet = registry.ledger.wallet("ann")
    assert (wallet.available, wallet.reserved) == (10_000, 0)
