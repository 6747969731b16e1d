"""Which tunes a prompt uses: settled at submission, within the account, and read by id from then on."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import MetaData, insert

from tests.support.registry import add_prompt, add_tune, around, make_ready, prompt_request, run_stage
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.store import Store
from tunes_dagster.registry import Prompt, Registry, Tune, Use
from tunes_dagster.registry.engine import make_engine
from tunes_dagster.registry.migrate import alembic_config
from tunes_dagster.registry.uses import find_doubtful
from tunes_dagster.rendering.using import used_by
from tunes_dagster.service.erase import erase_tunes


def ready(registry: Registry, title: str, account: str) -> Tune:
    tune = add_tune(registry, title=title, account_id=account)
    for kind in ("prepare", "train", "finish"):
        run_stage(registry, kind, tune.id, result={"weights_key": f"tunes/{tune.id}/w"})
    return registry.tunes.get(tune.id)


def tagged(registry: Registry, tune: Tune, word: str) -> Prompt:
    """Return a prompt on a plain base that names a tune by a tag."""
    return add_prompt(
        registry,
        prompt_request(f"a photo of ohwx dog <lora:{word}:0.5>"),
        base_id="tiny-sdxl",
        account_id=tune.account_id,
        tags=[Use(tune.id, "lora", word, 0.5)],
    )


def rendered(registry: Registry, store: Store) -> list[str]:
    """Render everything that is queued, and return the keys of the pictures."""
    keys = []
    for batch in registry.groups.make_batches(wait_seconds=0):
        work = registry.work.claim("render", batch.id, "run")
        for prompt in registry.prompts.rows(batch_id=batch.id):
            keys.append(store.write_bytes(f"batches/{batch.id}/1/{prompt.id}.png", b"picture"))
            registry.prompts.done(prompt.id, work.id, "run", keys[-1:])
        registry.work.finish(work.id, "run")
    return keys


@pytest.fixture
def tenants(registry: Registry) -> Registry:
    """A registry with two accounts beside the operator's."""
    registry.accounts.add("ann"), registry.accounts.add("ben")
    return registry


def used(registry: Registry, prompt: Prompt) -> list[str]:
    """Return the ids of the tunes that the renderer would take for a prompt."""
    uses = registry.uses.of([prompt.id])[prompt.id]
    own, tags = used_by(prompt, uses, registry.uses.tunes_by_id(use.tune_id or "" for use in uses))
    return [one.id for one in [own, *(tag.tune for tag in tags)] if one]


def test_deleting_a_tune_takes_the_pictures_that_show_it_and_no_others(
    tenants: Registry, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    hers = ready(tenants, "style", "ann")
    his = [ready(tenants, title, "ben") for title in (str(hers.number), "style", hers.title.upper())]
    by_number, by_title = tagged(tenants, hers, str(hers.number)), tagged(tenants, hers, "style")
    his_own = tagged(tenants, his[0], str(hers.number))
    rendered(tenants, store)
    erase_tunes(around(tenants, store), his)
    assert not tenants.prompts.get(his_own.id).images
    for prompt in (by_number, by_title):
        kept = tenants.prompts.get(prompt.id)
        assert kept.images and kept.expired_at is None and store.exists(kept.images[0])
    tenants.objects.rename_tune(hers.id, title="other")
    assert erase_tunes(around(tenants, store), [hers]).files["renders"] == 2, (
        "also those that say its old name"
    )
    assert not tenants.prompts.get(by_number.id).images and not tenants.prompts.get(by_title.id).images


def test_renaming_changes_nothing_for_prompts_that_were_accepted(tenants: Registry) -> None:
    anna, bens = ready(tenants, "anna", "ann"), ready(tenants, "anna", "ben")
    prompt = tagged(tenants, anna, "anna")
    tenants.objects.rename_tune(anna.id, title="bella")
    assert used(tenants, prompt) == [anna.id]
    newer = ready(tenants, "anna", "ann")
    assert used(tenants, prompt) == [anna.id] and tenants.objects.tune_named("ann", "anna").id == newer.id
    tenants.work.delete_tune(bens.id)
    assert used(tenants, prompt) == [anna.id] and tenants.prompts.get(prompt.id).status == "queued"


def test_what_uses_a_deleted_tune_is_cancelled_and_never_rendered(tenants: Registry) -> None:
    own, other = ready(tenants, "own", "ann"), ready(tenants, "other", "ann")
    both = add_prompt(
        tenants,
        prompt_request(),
        base_id="tiny-sdxl",
        account_id="ann",
        tune_id=own.id,
        tags=[Use(other.id, "lora", "other", 1.0)],
    )
    assert used(tenants, both) == [own.id, other.id]
    tenants.work.delete_tune(other.id)
    assert tenants.prompts.get(both.id).status == "cancelled"
    with pytest.raises(Failure) as error:
        used(tenants, both)
    assert error.value.code == FailureCode.UNKNOWN_TUNE


def test_prompts_inside_a_tune_keep_their_tags(tenants: Registry) -> None:
    other = ready(tenants, "other", "ann")
    tune = add_tune(
        tenants,
        account_id="ann",
        prompts=[prompt_request("a <lora:other:1>"), prompt_request()],
        tags=[(Use(other.id, "lora", "other", 1.0),), ()],
    )
    make_ready(tenants, tune)
    by_text = {prompt.text: prompt for prompt in tenants.prompts.rows(tune_id=tune.id)}
    uses = tenants.uses.of([prompt.id for prompt in by_text.values()])
    assert [[use.tune_id for use in uses[by_text[text].id]] for text in sorted(by_text)] == [
        [tune.id, other.id],
        [tune.id],
    ]
    assert [prompt.text for prompt in tenants.uses.prompts_of([other.id])] == ["a <lora:other:1>"]


def _row(table: Any, **given: Any) -> dict[str, Any]:
    """Return a row of a table as it is at some revision, with plain values where it must not be empty."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    plain = {
        "DATETIME": moment,
        "TIMESTAMP": moment,
        "JSON": {},
        "JSONB": {},
        "INTEGER": 0,
        "FLOAT": 0.0,
        "DOUBLE PRECISION": 0.0,
        "BOOLEAN": False,
    }
    values = {
        column.name: plain.get(str(column.type).split("(")[0], "")
        for column in table.columns
        if not column.nullable and column.server_default is None
    }
    return {**values, **given}


def test_rows_of_before_are_linked_where_that_is_clear_and_listed_where_not(url: str) -> None:
    engine = make_engine(url).execution_options(tunes_writes=True)
    with engine.connect() as connection, connection.begin():
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        tables = MetaData()
        tables.reflect(connection)
        accounts, tunes, prompts = (tables.tables[name] for name in ("accounts", "tunes", "prompts"))
        for name in ("ann", "ben"):
            connection.execute(insert(accounts), _row(accounts, id=name, name=name))
        for number, (account, title) in enumerate(
            [
                ("ann", "anna"),
                ("ben", "anna"),
                ("ann", "twice"),
                ("ann", "twice"),
                ("ben", "1"),
                ("ann", "renamed"),
            ],
            1,
        ):
            row = {"id": f"tune_{number}", "number": number, "account_id": account, "title": title}
            connection.execute(insert(tunes), _row(tunes, **row, status="ready"))
        asked: list[tuple[str, str | None, str, dict[str, str], str]] = [
            ("ann", "tune_1", "plain", {}, "done"),
            ("ann", None, "x <lora:anna:0.5> y < LORA : tune_3 :1> <lora:anna:0.25>", {}, "queued"),
            ("ben", None, "<lora:1:1>", {}, "queued"),
            ("ann", None, "<lora:twice:1> <faceid:1:0.4>", {}, "queued"),
            ("ann", None, "<lora:nobody:1>", {}, "queued"),
            ("ann", "tune_3", "<lora:anna:1>", {"tune_3": "k", "tune_2": "k"}, "done"),
            ("ann", "tune_3", "<lora:was:1>", {"tune_3": "k", "tune_6": "k"}, "done"),
            ("ann", None, "<lora:nobody:1>", {}, "failed"),
        ]
        for number, (account, own, text, weights, status) in enumerate(asked, 1):
            row = {
                "id": f"prompt_{number}",
                "number": number,
                "account_id": account,
                "tune_id": own,
                "text": text,
            }
            result = {"weights": weights} if weights else {}
            connection.execute(insert(prompts), _row(prompts, **row, status=status, result=result))
    engine.dispose()
    registry = Registry(url, migrate=False)
    registry.migrate(older=True)
    found = registry.uses.of([f"prompt_{number}" for number in range(1, 9)])
    uses = {
        key[7:]: [(use.kind, use.word, use.tune_id, use.scale) for use in some] for key, some in found.items()
    }
    assert uses == {
        "1": [("tune", "tune_1", "tune_1", None)],
        "2": [("lora", "anna", "tune_1", 0.75), ("lora", "tune_3", "tune_3", 1.0)],
        "3": [("lora", "1", "tune_5", 1.0)],
        "4": [("lora", "twice", None, 1.0), ("faceid", "1", "tune_1", 0.4)],
        "5": [("lora", "nobody", None, 1.0)],
        # What was rendered counts, also when it was somebody else's.
        "6": [("tune", "tune_3", "tune_3", None), ("lora", "anna", "tune_2", 1.0)],
        "7": [("tune", "tune_3", "tune_3", None), ("lora", "was", "tune_6", 1.0)],
        "8": [("lora", "nobody", None, 1.0)],
    }
    with registry.reading() as session:
        doubtful = find_doubtful(session, 10)
    assert [(one.prompt.number, one.word, one.tune and one.tune.id) for one in doubtful] == [
        (4, "twice", None),
        (5, "nobody", None),
        (6, "anna", "tune_2"),
    ]
    assert str(doubtful[2]) == "Prompt 6 of the account ann (done) uses tune 2 of the account ben."
    assert str(doubtful[1]).endswith("names 'nobody', which is no tune of its account, or several.")
    registry.close()
