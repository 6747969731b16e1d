"""Retention: rules, warnings before, extension, deletion with a record; deleting all of a tune and of a person."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.support.registry import Clock, add_prompt, add_tune, around, make_ready, prompt_request
from tunes_dagster.campaigns.files import Source
from tunes_dagster.campaigns.keeping import Keeper
from tunes_dagster.campaigns.report import make_report
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.registry import Prompt, Registry, Tune, Use
from tunes_dagster.registry.campaign_tables import CampaignPrompt
from tunes_dagster.service.erase import erase_tunes, tunes_of_person
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.retain import retain
from tunes_dagster.training.cache import digest

HOUR = 3600.0
HOOK = "http://caller.test/p"


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store in a folder, and one in a bucket of a real S3 protocol server."""
    if request.param == "folder":
        yield Store(tmp_path / "store")
        return
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="tunes")
    yield Store("s3://tunes/house", {"endpoint_url": endpoint, "key": "test", "secret": "test"})
    server.stop()


def rendered(registry: Registry, store: Store, tune: Tune, *tags: Use) -> Prompt:
    """Return a prompt of a tune with a picture, and the sheet of its batch."""
    text = " ".join(["a photo of ohwx dog", *(f"<lora:{use.word}:{use.scale}>" for use in tags)])
    prompt = add_prompt(
        registry,
        prompt_request(text, callback_url=HOOK),
        base_id="tiny-sdxl",
        tune_id=tune.id,
        tags=tags,
        account_id=tune.account_id,
    )
    (batch,) = registry.groups.make_batches(wait_seconds=0)
    work = registry.work.claim("render", batch.id, "run")
    key = store.write_bytes(f"batches/{batch.id}/1/{prompt.id}-1.png", b"picture")
    for name in ("contact_sheet.png", "index.html"):
        store.write_bytes(f"batches/{batch.id}/1/{name}", b"sheet")
    registry.prompts.done(prompt.id, work.id, "run", [key])
    registry.work.finish(work.id, "run")
    return registry.prompts.get(prompt.id)


def everything(store: Store) -> set[str]:
    """Return every key of the store."""
    return {key for folder in ("blobs", "tunes", "batches", "cache") for key in store.list(folder)}


def made_of(registry: Registry, store: Store, tune: Tune, *pictures: bytes, caption: str) -> None:
    """Write the files that a tune made of some pictures has."""
    rows, items = [], []
    for data in pictures:
        key = store.naming(lambda key: registry.blobs.name(tune.id, [key])).write_blob(data, ".png")
        name = Path(key).stem
        rows.append({"hash": name, "key": key})
        item = {"hash": name, "picture": name, "key": key, "bucket": [64, 64], "crop": [0, 0, 64, 64]}
        items.append(item)
        latents = digest(key, (64, 64), (0, 0, 64, 64))
        store.write_bytes(f"cache/latents/vae-1/{latents}.safetensors", b"latents")
        store.write_text(f"cache/captions/captioner/{name}.txt", "a dog")
    store.write_json(f"tunes/{tune.id}/source/manifest.json", {"rows": rows})
    store.write_json(f"tunes/{tune.id}/training_set/training_set.json", {"items": items})
    store.write_text(f"tunes/{tune.id}/captions/captions.csv", f"name,caption\na.png,{caption}\n")
    store.write_bytes(f"cache/text/clip/{digest(caption)}.safetensors", b"text")
    store.write_bytes(f"tunes/{tune.id}/lora/1/lora.safetensors", b"weights")


@pytest.mark.parametrize("registry", ["sqlite"], indirect=True)
def test_a_tune_goes_with_everything_made_of_it_and_nothing_of_others(
    registry: Registry, store: Store
) -> None:
    mine = make_ready(registry, add_tune(registry, title="anna", labels={"person": "anna"}))
    other = make_ready(registry, add_tune(registry, title="rex"))
    made_of(registry, store, mine, b"shared", b"own", caption="anna at home")
    made_of(registry, store, other, b"shared", caption="a dog at home")
    shown, others = rendered(registry, store, mine), rendered(registry, store, other)
    mixed = rendered(registry, store, other, Use(mine.id, "lora", mine.title, 0.5))
    before = everything(store)

    erased = erase_tunes(
        around(registry, store),
        tunes_of_person(registry, "anna", "local"),
        rule="a person was forgotten",
    )
    gone = before - everything(store)
    assert erased.count == len(gone) and erased.bytes > 0
    assert dict(erased.files) == {
        "renders": 2,
        "sheets": 4,
        "pictures": 1,
        "caches": 5,
        "source files": 1,
        "training sets": 1,
        "captions": 1,
        "weights": 1,
    }
    assert erased.left == ["1 pictures that others need as well"]
    kept = everything(store)
    assert others.images[0] in kept and shown.images[0] in gone and mixed.images[0] in gone
    assert f"tunes/{other.id}/lora/1/lora.safetensors" in kept
    assert not any("latents" in key for key in kept), "of the shared picture they are made again"
    assert (
        registry.prompts.get(mixed.id).images == [] and registry.prompts.get(mixed.id).expired_at is not None
    )
    row = registry.tunes.get(mine.id)
    assert (row.status, row.title, row.labels) == ("deleted", "", {}) and registry.prompts.get(
        shown.id
    ).text == ""
    (record,) = registry.deletions.records()
    assert (record.subject_id, record.reason, record.rule) == (mine.id, "asked", "a person was forgotten")
    assert record.label == "" and record.files == erased.count and record.what["weights"] == 1
    assert [use.word for use in registry.uses.of([mixed.id])[mixed.id]] == ["", ""], (
        "titles are forgotten too"
    )
    with pytest.raises(Failure, match="has the label person=anna"):
        tunes_of_person(registry, "anna", "local")


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_outputs_expire_by_the_rule_after_a_warning_and_leave_a_record(
    registry: Registry, clock: Clock, store: Store
) -> None:
    tune = make_ready(registry, add_tune(registry))
    prompt = rendered(registry, store, tune)
    assert retain(around(registry, store), clock()).warned == 0, "without a rule nothing expires"
    registry.accounts.set_retention(
        "local", keep_outputs_hours=24.0, warn_hours=2.0, expiry_callback_url="http://owner.test/hook"
    )
    clock.forward(21 * HOUR)
    assert retain(around(registry, store), clock()).warned == 0
    clock.forward(1.5 * HOUR)
    assert retain(around(registry, store), clock()).warned == 1
    assert retain(around(registry, store), clock()).warned == 0, "once"
    told = {callback.event: callback for callback in registry.outbox.rows(state="pending")}
    assert told["prompt.expiring"].url == HOOK and told["prompt.expiring"].body["data"]["id"] == prompt.id
    assert told["retention.expiring"].body["data"]["expiring"][0]["expires_at"].startswith("2026-03-02T12:00")
    clock.forward(1.75 * HOUR)
    assert retain(around(registry, store), clock()).outputs == 0, (
        "expired, but the warning is younger than two hours"
    )
    clock.forward(1 * HOUR)
    done = retain(around(registry, store), clock())
    assert (done.outputs, done.tunes) == (1, 0) and not store.exists(prompt.images[0])
    row = registry.prompts.get(prompt.id)
    assert row.status == "done" and row.images == [] and row.expired_at == clock()
    (record,) = registry.deletions.records()
    assert (record.kind, record.subject_id, record.rule) == ("prompt", prompt.id, "outputs are kept 24 h")
    assert retain(around(registry, store), clock()).outputs == 0
    assert registry.tunes.get(tune.id).status == "ready"


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_tunes_expire_unless_they_are_kept_or_extended(
    registry: Registry, clock: Clock, store: Store
) -> None:
    goes, kept, extended = (make_ready(registry, add_tune(registry, title=name)) for name in "abc")
    made_of(registry, store, goes, b"one", caption="a")
    registry.accounts.set_retention("local", keep_tunes_hours=720.0)
    registry.retention.keep_tune(extended.id, auto_extend=True)
    clock.forward(700 * HOUR)
    registry.retention.keep_tune(kept.id, until=clock.moment.replace(year=2027))
    assert retain(around(registry, store), clock()).warned == 1
    assert [c.event for c in registry.outbox.rows(subject_id=goes.id)][0] == "tune.expiring"
    clock.forward(30 * HOUR)
    done = retain(around(registry, store), clock())
    assert done.tune_ids == [goes.id] and done.extended == 1
    assert registry.tunes.get(goes.id).status == "deleted" and not list(store.list(f"tunes/{goes.id}"))
    assert registry.tunes.get(kept.id).status == registry.tunes.get(extended.id).status == "ready"
    assert (registry.tunes.get(extended.id).kept_until - clock()).days == 30
    store.write_bytes(f"tunes/{goes.id}/lora/2/late.safetensors", b"written by a run that was stopping")
    clock.forward(HOUR)
    retain(around(registry, store), clock())
    assert not list(store.list(f"tunes/{goes.id}"))


@pytest.mark.parametrize("registry", ["sqlite"], indirect=True)
@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_a_forgotten_person_is_in_no_plan_or_report_of_a_campaign(
    registry: Registry, store: Store, tmp_path: Path
) -> None:
    tunes = {
        title: make_ready(registry, add_tune(registry, title=title, labels={"person": title, "team": "x"}))
        for title in ("annabel", "rex")
    }
    keeper = Keeper(
        Installation(Settings(home=tmp_path), registry=registry, store=store, catalog=load_catalog())
    )
    yaml = b"name: looks\ncron: '0 7 * * 1'\nstart: 2026-02-02\nlabels: {team: x}\nprompts: looks.csv\n"
    table = b"text,seeds\n{{title}} at sea,1\n"
    campaign, _ = keeper.add(Source("looks.yaml", yaml, {"looks.csv": table}), registry.now())
    date, _ = keeper.plan(campaign, "2026-02-23")
    (batch,) = registry.groups.make_batches(wait_seconds=0)
    work = registry.work.claim("render", batch.id, "run")
    for prompt in registry.prompts.rows(batch_id=batch.id):
        key = store.write_bytes(f"batches/{batch.id}/1/{prompt.id}.png", b"picture")
        registry.prompts.done(prompt.id, work.id, "run", [key])
    registry.work.finish(work.id, "run")
    make_report(around(registry, store), campaign, date.date)
    assert "annabel" in store.read_text(date.plan_key)

    erased = erase_tunes(
        around(registry, store),
        [tunes["annabel"]],
        rule="a person was forgotten",
    )
    assert erased.files["plans"] == 1 and erased.files["reports"] >= 5 and erased.files["renders"] == 1
    keys = [*everything(store), *store.list("campaigns")]
    texts = [store.read_bytes(key) for key in keys if not key.endswith("looks.yaml")]
    assert not any(b"annabel" in text for text in texts)
    date = registry.dates.get(campaign.id, date.date)
    assert (list(date.plan["tunes"].values()), date.plan_key, date.report_key) == (["rex"], None, None)
    with registry.reading() as session:
        rows = [*session.scalars(select(Prompt)), *session.scalars(select(CampaignPrompt))]
        assert not any("annabel" in repr(vars(row)) for row in rows)
    report = make_report(around(registry, store), campaign, date.date)
    assert report.numbers.pictures == 1, "what is left can be reported on again"
