"""Deletion: from the moment it is asked for nothing is reachable, and it ends whatever dies in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import JSON, String, Text, select

from tests.registry.test_retention import made_of, rendered
from tests.support.deletion import dying_in
from tests.support.registry import Clock, add_prompt, add_tune, around, make_ready, prompt_request, run_stage
from tunes_dagster.core.failures import Cancelled
from tunes_dagster.core.store import Store
from tunes_dagster.registry import Registry, Tune
from tunes_dagster.registry.deletions import STEPS
from tunes_dagster.registry.personal import PLAIN, WORDS
from tunes_dagster.registry.tables import Table
from tunes_dagster.service.erase import drive
from tunes_dagster.service.orphans import remove_orphans
from tunes_dagster.service.retain import retain

HOUR = 3600.0
ON_SQLITE = pytest.mark.parametrize("registry", ["sqlite"], indirect=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def files(store: Store) -> set[str]:
    return {key for folder in ("blobs", "tunes", "batches", "cache", "uploads") for key in store.list(folder)}


def named(registry: Registry, store: Store, tune: Tune) -> Store:
    return store.naming(lambda key: registry.blobs.name(tune.id, [key]))


def test_every_column_of_text_says_what_deletion_makes_of_it() -> None:
    for mapper in Table.registry.mappers:
        table = mapper.class_
        said = set(WORDS.get(table, {})) | set(PLAIN.get(table, {}))
        text = {c.name for c in table.__table__.columns if isinstance(c.type, Text | String | JSON)}
        assert text <= said, f"{table.__name__}: say in registry/personal.py what becomes of {text - said}"
        assert not set(WORDS.get(table, {})) & set(PLAIN.get(table, {}))


def test_a_process_that_dies_after_the_answer_leaves_nothing_behind(
    registry: Registry, clock: Clock, store: Store
) -> None:
    tune = make_ready(registry, add_tune(registry, title="anna"))
    made_of(registry, store, tune, b"one", caption="anna at home")
    prompt = rendered(registry, store, tune)
    key = prompt.images[0]
    registry.work.delete_tune(tune.id)
    assert registry.prompts.get(prompt.id).images == []
    assert registry.deletions.hides(key) and registry.deletions.hides(
        f"tunes/{tune.id}/lora/1/lora.safetensors"
    )
    assert registry.deletions.hides(registry.blobs.of(tune.id)[0])
    # The process dies here. Another one, that knows nothing of it:
    drive(around(registry, store))
    assert not files(store)
    (record,) = registry.deletions.records()
    assert record.state == "watched" and record.files >= 8
    clock.forward(80 * HOUR)
    drive(around(registry, store))
    (record,) = registry.deletions.records()
    assert (record.state, record.traces, registry.blobs.of(tune.id)) == ("done", {}, [])


@ON_SQLITE
@pytest.mark.parametrize("dies_in", STEPS)
def test_it_goes_on_after_a_death_in_any_step(
    registry: Registry, clock: Clock, store: Store, dies_in: str
) -> None:
    tune = make_ready(registry, add_tune(registry, title="anna"))
    made_of(registry, store, tune, b"one", caption="anna at home")
    rendered(registry, store, tune)
    registry.work.delete_tune(tune.id)
    with dying_in(dies_in):
        drive(around(registry, store))
    assert drive(around(registry, store)).count == 0, "whoever died may still be at work"
    clock.forward(HOUR)
    drive(around(registry, store))
    assert not files(store)
    assert registry.tunes.get(tune.id).title == ""
    assert [record.state for record in registry.deletions.records()] == ["watched"]


@ON_SQLITE
def test_what_a_late_writer_leaves_goes_and_is_never_served(
    registry: Registry, clock: Clock, store: Store
) -> None:
    tune = make_ready(registry, add_tune(registry))
    made_of(registry, store, tune, b"one", caption="a")
    prompt = add_prompt(registry, prompt_request(), base_id="tiny-sdxl", tune_id=tune.id)
    (batch,) = registry.groups.make_batches(wait_seconds=0)
    work = registry.work.claim("render", batch.id, "run")
    late = add_tune(registry)
    registry.work.claim("prepare", late.id, "run")
    writer = named(registry, store, late)
    first = writer.write_blob(b"before", ".png")
    for one in (tune, late):
        registry.work.delete_tune(one.id)
    drive(around(registry, store))
    assert registry.prompts.get(prompt.id).status == "cancelled"
    key = store.write_bytes(f"batches/{batch.id}/1/{prompt.id}-1.png", b"picture")
    registry.prompts.done(prompt.id, work.id, "run", [key])
    assert registry.prompts.get(prompt.id).images == [] and registry.deletions.hides(key)
    with pytest.raises(Cancelled):
        writer.write_blob(b"after", ".png")
    store.write_bytes(first, b"before")  # it was named in time, and is written late
    store.write_text(f"tunes/{late.id}/captions/captions.csv", "late")
    clock.forward(HOUR)
    drive(around(registry, store))
    assert not files(store)


@ON_SQLITE
def test_what_another_tune_in_preparation_needs_stays_until_it_goes(registry: Registry, store: Store) -> None:
    made, preparing = make_ready(registry, add_tune(registry)), add_tune(registry)
    made_of(registry, store, made, b"shared", caption="a")
    registry.work.claim("prepare", preparing.id, "run")
    key = named(registry, store, preparing).write_blob(b"shared", ".png")  # no manifest says so yet
    registry.work.delete_tune(made.id)
    drive(around(registry, store))
    assert files(store) == {key}
    registry.work.delete_tune(preparing.id)
    drive(around(registry, store))
    assert not files(store)


@ON_SQLITE
def test_the_last_prompt_takes_its_input_picture_and_its_words(registry: Registry, store: Store) -> None:
    held = store.naming(registry.blobs.hold)
    key = held.write_blob(b"input", ".png")
    upload = store.write_bytes("uploads/up_1.picture", b"mask")
    asked = prompt_request(
        "anna at sea", input_image=key, mask_image=upload, negative_prompt="no hat of anna"
    )
    one, two = (add_prompt(registry, asked, base_id="tiny-sdxl") for _ in range(2))
    registry.work.delete_prompt(one.id)
    drive(around(registry, store))
    assert files(store) == {key, upload}
    registry.blobs.hold(key)
    registry.work.delete_prompt(two.id)
    drive(around(registry, store))
    assert files(store) == {key}, "a request that brings the same picture is being accepted"
    remove_orphans(around(registry, store), older_than=-1)
    assert files(store) == {key}
    registry.now.forward(2 * HOUR)  # type: ignore[attr-defined]
    remove_orphans(around(registry, store), older_than=-1)
    assert not files(store)
    with registry.reading() as session:
        rows = [*session.scalars(select(Table.registry._class_registry["Prompt"]))]
        assert not any("anna" in repr(vars(row)) for row in rows)
    assert registry.objects.find_prompt("local", one.id) is None


def test_a_tune_that_is_kept_while_others_expire_is_not_deleted(
    registry: Registry, clock: Clock, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = make_ready(registry, add_tune(registry))
    registry.accounts.set_retention("local", keep_tunes_hours=24.0, warn_hours=1.0)
    clock.forward(23.5 * HOUR)
    assert retain(around(registry, store), clock()).warned == 1
    clock.forward(2 * HOUR)
    expiring = registry.retention.expiring

    def then_kept(*args: object) -> object:
        found = expiring(*args)  # type: ignore[arg-type]
        registry.retention.keep_tune(tune.id, until=clock.moment.replace(year=2030))
        return found

    monkeypatch.setattr(registry.retention, "expiring", then_kept)
    assert retain(around(registry, store), clock()).tunes == 0
    assert registry.tunes.get(tune.id).status == "ready" and not registry.deletions.records()


@ON_SQLITE
def test_files_that_no_row_knows_go_after_a_day(registry: Registry, store: Store) -> None:
    tune = add_tune(registry)
    kept = {store.write_text(f"tunes/{tune.id}/source/manifest.json", "{}")}
    for key in ("uploads/up_9/anna.zip", "tunes/tune_unknown/uploads/0000-anna.png", "batches/b/1/x.png"):
        store.write_bytes(key, b"nobody's")
    store.write_blob(b"nobody's", ".png")
    part = Path(str(store.root)) / "tunes" / ".anna.png.1.part"
    part.write_bytes(b"half")
    remove_orphans(around(registry, store))
    assert len(files(store)) == 5 and part.exists()
    remove_orphans(around(registry, store), older_than=-1)
    assert files(store) == kept and not part.exists()


@ON_SQLITE
def test_files_of_earlier_versions_are_named_before_anything_goes(registry: Registry, store: Store) -> None:
    one, other = (make_ready(registry, add_tune(registry)) for _ in range(2))
    for tune in (one, other):
        key = store.write_blob(b"shared", ".png")
        store.write_json(f"tunes/{tune.id}/source/manifest.json", {"rows": [{"hash": "h", "key": key}]})
    with registry.writing() as session:
        from tunes_dagster.registry.locks import lock

        for row in lock(session, Tune):
            row.blobs_named = False
    registry.work.delete_tune(one.id)
    drive(around(registry, store))
    assert store.exists(key)
    registry.work.delete_tune(other.id)
    drive(around(registry, store))
    assert not files(store)


@ON_SQLITE
def test_a_store_that_is_away_holds_up_nobody(
    registry: Registry, clock: Clock, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = make_ready(registry, add_tune(registry))
    made_of(registry, store, tune, b"one", caption="a")
    run_stage(registry, "prepare", add_tune(registry).id)
    registry.work.delete_tune(tune.id)
    with monkeypatch.context() as away:
        away.setattr(store, "delete", lambda key: (_ for _ in ()).throw(OSError("away")))
        assert drive(around(registry, store)).unfinished == 1
    assert files(store) and not drive(around(registry, store)).count
    clock.forward(HOUR)
    assert drive(around(registry, store)).count and not files(store)


def test_any_command_goes_on_with_it(tmp_path: Path) -> None:
    from tunes_dagster.cli.installation import open_installation
    from tunes_dagster.core.settings import Settings

    settings = Settings(home=tmp_path)
    with open_installation(settings) as house:
        tune = make_ready(house.registry, add_tune(house.registry))
        made_of(house.registry, house.store, tune, b"one", caption="a")
        house.registry.work.delete_tune(tune.id)
    with open_installation(settings) as later:
        later.registry.tunes.rows()
        assert not files(later.store)
