"""What the machine found, and what was mended beside it: the shortest histories, each with the rule that it broke."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.machine.seam import Died, Seam, Trouble
from tests.support.registry import Clock, add_prompt, add_tune, make_ready, prompt_request
from tunes_dagster.campaigns.files import Source
from tunes_dagster.campaigns.keeping import Keeper
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.intake.captions import CaptionTable
from tunes_dagster.intake.training_set import TrainingSet
from tunes_dagster.registry import Callback, Registry
from tunes_dagster.registry.outbox import Sample
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.rerun import rerun
from tunes_dagster.service.submit import submit_tune

HOOK = "http://caller.test/hook"


def owed(registry: Registry) -> Callback:
    """Return a callback that is due."""
    return registry.outbox.add("local", Sample(url=HOOK, body={}, event="tune.ready", subject_id="tune_x"))


def leased(registry: Registry, callback: Callback) -> str:
    """Let a sender take what is due, and return its lease."""
    lease, taken = registry.outbox.lease(60.0)
    assert callback.id in taken
    return lease


def test_a_replay_leaves_the_attempt_in_the_air_alone(registry: Registry, clock: Clock) -> None:
    callback = owed(registry)
    sending = registry.outbox.begin_delivery(callback.id, leased(registry, callback))
    assert sending is not None
    registry.outbox.replay(callback.id)
    assert registry.outbox.lease(60.0)[1] == {}  # nobody sends it beside the one who does
    registry.outbox.end_delivery(sending.delivery_id, status_code=500, error="Answered with 500.")
    after = registry.outbox.get(callback.id)
    assert after.next_attempt_at is not None
    assert (after.next_attempt_at - clock()).total_seconds() == 5.0  # of the new row of tries the first


def test_a_replay_takes_the_lease_of_a_sender_that_died(registry: Registry, clock: Clock) -> None:
    callback = owed(registry)
    registry.outbox.begin_delivery(callback.id, leased(registry, callback))
    clock.forward(61.0)
    registry.outbox.replay(callback.id)
    assert callback.id in registry.outbox.lease(60.0)[1]


def test_what_came_of_an_attempt_that_nobody_knows_any_more_changes_nothing(registry: Registry) -> None:
    callback = owed(registry)
    assert registry.outbox.end_delivery("dlv_of_before_the_backup", status_code=200) is None
    assert registry.outbox.get(callback.id).state == "pending"
    assert leased(registry, callback)


def test_what_is_held_is_not_due(registry: Registry, clock: Clock) -> None:
    registry.accounts.set_callback_options("local", unknown="hold")
    callback = owed(registry)
    registry.outbox.begin_delivery(callback.id, leased(registry, callback))
    clock.forward(61.0)  # its sender died
    assert registry.outbox.begin_delivery(callback.id, leased(registry, callback)) is None
    held = registry.outbox.get(callback.id)
    assert (held.state, held.next_attempt_at) == ("held", None)


def test_training_again_is_accepted_as_a_whole_or_not_at_all(
    registry: Registry, tmp_path: Path, clock: Clock
) -> None:
    store, catalog, settings = Store(tmp_path / "store"), load_catalog(), Settings(home=tmp_path)
    request = TuneRequest.model_validate(
        {"name": "dog", "base": "sdxl", "sources": {"image_urls": ["https://pictures.example.com/1.png"]}}
    )
    first = make_ready(
        registry,
        submit_tune(Installation(settings, registry=registry, store=store, catalog=catalog), request),
    )
    TrainingSet(tune_id=first.id, class_name="dog", resolution=64, seed=1).save(store)
    CaptionTable(tune_id=first.id, token="ohwx", class_name="dog").save(store, "Made.")
    seam = Seam(registry.engine)
    commits = 0
    while True:  # the process dies after its first commit, after its second one …
        with seam.armed(Trouble("dies", "answer", commits)):
            try:
                rerun(Installation(settings, registry=registry, store=store, catalog=catalog), first)
                break
            except Died:
                commits += 1
    assert commits
    for tune in registry.tunes.rows():
        assert tune.status in ("ready", "prepared"), (
            f"Nobody will ever move {tune.id}, which is {tune.status}."
        )
    again = registry.tunes.rows()[0]
    assert again.made.again == first.id and [work.kind for work in registry.work.of(again.id)] == ["train"]


def paying(registry: Registry, credits: int = 0) -> None:
    """Give Ann a wallet."""
    registry.accounts.add("ann")
    registry.ledger.open_wallet("ann", plan="house", requests_per_minute=60)
    if credits:
        registry.ledger.adjust("ann", credits)


def test_no_name_of_a_plan_brings_its_grant_twice(registry: Registry) -> None:
    paying(registry)
    for monthly in (300, 0, 300, 0, 300):
        registry.ledger.open_wallet("ann", plan="sign-up", requests_per_minute=60, monthly_grant=monthly)
    assert registry.ledger.wallet("ann").available == 300


def test_a_plan_that_grants_more_is_no_grant_that_was_given_twice(registry: Registry) -> None:
    paying(registry)
    for monthly in (100, 300):
        registry.ledger.open_wallet("ann", plan="pro", requests_per_minute=60, monthly_grant=monthly)
    assert registry.ledger.wallet("ann").available == 300 and registry.audit.faults() == []


def test_a_prompt_whose_rendering_was_lost_is_cancelled_for_nothing(registry: Registry, clock: Clock) -> None:
    paying(registry, 1000)
    prompt = add_prompt(registry, prompt_request(), base_id="tiny-sdxl", account_id="ann", price=1000)
    (batch,) = registry.groups.make_batches(wait_seconds=0)
    work = registry.work.claim("render", batch.id, "run")
    registry.work.progress(work.id, "run", phase="rendering", step=9, total=10)
    registry.work.requeue_lost(work.id, "The host is gone.")
    registry.work.cancel_prompt(prompt.id, by_caller=True)
    assert registry.ledger.wallet("ann").available == 1000


def test_a_second_rendering_is_reckoned_from_its_own_start(registry: Registry, clock: Clock) -> None:
    paying(registry, 1000)
    prompt = add_prompt(registry, prompt_request(), base_id="tiny-sdxl", account_id="ann", price=1000)
    (batch,) = registry.groups.make_batches(wait_seconds=0)
    for run, step in (("first", 9), ("second", 1)):
        work = registry.work.claim("render", batch.id, run)
        registry.work.progress(work.id, run, phase="rendering", step=step, total=10)
        if run == "first":
            registry.work.requeue_lost(work.id, "The host is gone.")
    registry.work.cancel_prompt(prompt.id, by_caller=True)
    assert registry.ledger.wallet("ann").available == 900


def test_a_tune_that_was_deleted_is_not_trained_again(registry: Registry, tmp_path: Path) -> None:
    """What it was asked for is gone with it, and was read all the same."""
    tune = make_ready(registry, add_tune(registry))
    registry.work.delete_tune(tune.id)
    installation = Installation(
        Settings(home=tmp_path / "home"),
        registry=registry,
        store=Store(tmp_path / "store"),
        catalog=load_catalog("embedded"),
    )
    with pytest.raises(Failure, match="was deleted meanwhile"):
        rerun(installation, registry.tunes.get(tune.id))


def test_a_prompt_that_was_deleted_is_not_rendered_with_its_batch_again(registry: Registry) -> None:
    prompts = [add_prompt(registry, prompt_request(), base_id="tiny-sdxl") for _ in range(2)]
    (batch,) = registry.groups.make_batches(wait_seconds=0)
    work = registry.work.claim("render", batch.id, "run")
    registry.work.fail(work.id, "run", Failure(FailureCode.INVALID_REQUEST, "Not like this."))
    deleted, wanted = prompts
    registry.work.delete_prompt(deleted.id)
    registry.work.claim("render", batch.id, "by hand")  # a person has the failed batch rendered again
    assert registry.prompts.get(wanted.id).status == "rendering"
    assert registry.prompts.get(deleted.id).status == "failed"


CAMPAIGN = (
    b"name: looks\ncron: '0 * * * *'\nstart: 2026-03-01\nbase: sdxl\nprompts: [{text: a photo, seeds: 1}]\n"
)


@pytest.fixture
def keeper(registry: Registry, tmp_path: Path) -> Keeper:
    store = Store(tmp_path / "store")
    parts = {"registry": registry, "store": store, "catalog": load_catalog()}
    return Keeper(Installation(Settings(home=tmp_path), **parts))


def test_a_campaign_that_is_removed_while_it_is_planned_queues_nothing(
    registry: Registry, keeper: Keeper, clock: Clock
) -> None:
    campaign, _drawn = keeper.add(Source("looks.yaml", CAMPAIGN), clock())
    registry.campaigns.remove(campaign.id)
    with pytest.raises(Failure) as refused:
        keeper.plan(campaign, keeper.dates(campaign)[-1])
    assert refused.value.code == FailureCode.CONFLICT and "was removed" in refused.value.message
    assert registry.prompts.rows() == []


@pytest.mark.parametrize("changed", [CAMPAIGN + b"cost_cap: 5\n", b"name: [\n"])
def test_a_removed_campaign_does_not_come_back_because_its_files_changed(
    registry: Registry, keeper: Keeper, clock: Clock, changed: bytes
) -> None:
    campaign, _drawn = keeper.add(Source("looks.yaml", CAMPAIGN), clock())
    keeper.store.write_bytes(campaign.file, changed)
    registry.campaigns.remove(campaign.id)
    keeper.look(campaign)
    assert registry.campaigns.rows() == []
    again, _drawn = keeper.add(Source("looks.yaml", CAMPAIGN), clock())  # unless somebody adds it
    assert [row.id for row in registry.campaigns.rows()] == [campaign.id] == [again.id]


def test_a_connection_whose_commit_failed_is_not_handed_out_in_its_transaction(
    migrated_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(migrated_file.read_bytes())
    registry = Registry(f"sqlite:///{path}", patience=0.0)
    with Seam(registry.engine).armed(Trouble("away", "commit", 0)), pytest.raises(Failure):
        registry.accounts.add("ann")
    with sqlite3.connect(path, timeout=0.1) as other:  # whom an open transaction would keep waiting
        other.execute("BEGIN IMMEDIATE")
    registry.accounts.add("bob")
    registry.close()
