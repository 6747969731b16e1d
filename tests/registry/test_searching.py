"""Marked words and pictures in every kind of place; after deletion all tables and files are searched for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.registry.test_retention import made_of
from tests.support.deletion import dying_in
from tests.support.registry import Clock, add_tune, around, prompt_request, run_stage
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.store import Store
from tunes_dagster.registry import Registry
from tunes_dagster.registry.accepting import Acceptance, Claim, Seen
from tunes_dagster.registry.deletions import STEPS
from tunes_dagster.registry.prompts import NewPrompt
from tunes_dagster.registry.tables import Table
from tunes_dagster.service.erase import drive

WORD = "zarathea"
PICTURE = b"\x89PNG marked picture"
HOOK = f"http://caller.test/hook?name={WORD}"


def said_anywhere(registry: Registry, store: Store) -> list[str]:
    """Return where a marked word or picture is: tables with columns, and keys of files."""
    found = []
    with registry.engine.connect() as connection:
        for name, table in Table.metadata.tables.items():
            for row in connection.execute(text(f'SELECT * FROM "{name}"')).mappings():
                for column in [one.name for one in table.columns]:
                    value = row[column]
                    shown = value if isinstance(value, str) else json.dumps(value, default=str)
                    if WORD in shown.lower():
                        found.append(f"{name}.{column}: {shown[:120]}")
    for path in Path(str(store.root)).rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if WORD.encode() in data.lower() or PICTURE in data or WORD in path.name.lower():
                found.append(str(path))
    return found


def a_home_full_of_words(registry: Registry, store: Store) -> str:
    """Make one tune of which everything there can be is marked; returns its id."""
    prompts = [{"text": f"{WORD} at sea", "settings": {"negative_prompt": f"no hat of {WORD}", "seed": 1}}]
    words = {"title": WORD, "name": WORD, "token": WORD, "labels": {"person": WORD}, "captions": {"a": WORD}}
    tune = add_tune(registry, **words, prompts=prompts, callback_url=HOOK)
    made_of(registry, store, tune, PICTURE, caption=f"{WORD} at home")
    work = registry.work.claim("prepare", tune.id, "run")
    registry.work.progress(work.id, "run", phase="checking", message=f"{WORD}.png")
    registry.tunes.add_findings(work.id, "run", [f"{WORD}.png: Too small."])
    registry.work.finish(work.id, "run")
    for kind in ("train", "finish"):
        run_stage(registry, kind, tune.id)
    picture = store.naming(registry.blobs.hold).write_blob(PICTURE + b" input", ".png")
    asked = prompt_request(f"{WORD} in town", input_image=picture, callback_url=HOOK)
    claim, _none = registry.idempotency.begin("local", "k1", "hash", {"request": "POST /x", "text": WORD})
    seen = Seen(dialect="astria", asked={"text": WORD}, events=["prompt.failed"], sameness="hash")
    new = NewPrompt(request=asked, base_id="tiny-sdxl", tune_id=tune.id)
    (prompt,) = registry.prompts.accept([new], Acceptance(seen=[seen], claim=Claim("k1", claim))).prompts
    registry.idempotency.end("local", "k1", claim, 201, json.dumps({"text": WORD}))
    other, _none = registry.idempotency.begin(
        "local", "k2", "hash", {"request": f"PUT /native/v1/tunes/{tune.number}/captions", "captions.a": WORD}
    )
    registry.idempotency.end("local", "k2", other, 200, WORD)
    for batch in registry.groups.make_batches(wait_seconds=0):
        rendering = registry.work.claim("render", batch.id, "run")
        registry.work.progress(rendering.id, "run", phase="rendering", message=f"{WORD} in town")
        for one in registry.prompts.rows(batch_id=batch.id):
            if one.id == prompt.id:
                failure = Failure(FailureCode.RENDER_FAILED, f"{WORD} cannot be rendered.", WORD, WORD)
                registry.prompts.failed(one.id, rendering.id, "run", failure)
                continue
            key = store.write_bytes(f"batches/{batch.id}/1/{one.id}-1.png", PICTURE + b" render")
            registry.prompts.done(one.id, rendering.id, "run", [key], {"warnings": [WORD]})
        store.write_text(f"batches/{batch.id}/1/index.html", WORD)
        registry.work.progress(rendering.id, "run", phase="rendering", message=f"{WORD} in town")
    registry.drops.record(f"/inbox/{tune.id}", fingerprint="f", state="taken", tune_id=tune.id, message=WORD)
    return tune.id


@pytest.mark.parametrize("dies_in", ["", *STEPS])
def test_nothing_is_found_anywhere_after_deletion(
    registry: Registry, clock: Clock, tmp_path: Path, dies_in: str
) -> None:
    if dies_in and registry.engine.dialect.name != "sqlite":
        pytest.skip("what dies is not the database")
    store = Store(tmp_path / "store")
    tune_id = a_home_full_of_words(registry, store)
    marked = {one.partition(":")[0] for one in said_anywhere(registry, store)}
    tables = {
        "tunes.title",
        "tunes.request",
        "prompts.text",
        "prompts.settings",
        "callbacks.body",
        "callbacks.url",
    }
    tables |= {"api_objects.asked", "idempotency_keys.body", "idempotency_keys.answer", "events.message"}
    assert tables | {"tunes.result", "prompts.failure_message", "drops.message", "batches.message"} <= marked
    registry.work.delete_tune(tune_id)
    if dies_in:
        with dying_in(dies_in):
            drive(around(registry, store))
    clock.forward(2 * 3600.0)
    drive(around(registry, store))
    # What is still to be told keeps its address until it was told.
    left = [one for one in said_anywhere(registry, store) if not one.startswith("callbacks.url")]
    assert not left, left
    for callback in registry.outbox.rows(state="pending", limit=100):
        lease, owed = registry.outbox.lease(60.0)
        for callback_id in owed:
            registry.outbox.bury(callback_id, lease, "It was given up.")
        assert callback
    clock.forward(80 * 3600.0)
    drive(around(registry, store))
    assert not said_anywhere(registry, store)
