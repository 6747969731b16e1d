"""Opening: migration, several processes at once, the price of opening a current registry."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from tests.support.registry import add_tune
from tunes_dagster.core.failures import UNEXPECTED, Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.registry import Registry
from tunes_dagster.registry.engine import HEAD, make_engine
from tunes_dagster.registry.migrate import alembic_config
from tunes_dagster.registry.tables import Table


def test_head_is_the_newest_revision() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == HEAD


def test_the_revisions_make_the_tables(registry: Registry) -> None:
    with registry.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []
    assert registry.accounts.get("local").callback_unknown == "resend"


def test_no_revision_forgets_that_numbers_are_given_out_once(tmp_path: Path) -> None:
    """A table that SQLite is told to make anew counts from its rows again, unless it is told so, too."""
    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    with registry.engine.connect() as connection:
        made = dict(
            connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'table'")).all()
        )
    registry.close()
    counted = [n for n, t in Table.metadata.tables.items() if t.dialect_options["sqlite"]["autoincrement"]]
    assert "tunes" in counted and [name for name in counted if "AUTOINCREMENT" not in made[name]] == []


@pytest.mark.parametrize("revision", ["0001", "0002", "0003"])
def test_a_registry_with_rows_is_upgraded_and_keeps_them(tmp_path: Path, revision: str) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    engine = make_engine(url).execution_options(tunes_writes=True)
    with engine.connect() as connection, connection.begin():
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        _add_old_row(connection, "tunes", id="tune_old", account_id="local", status="ready", number=7)
        _add_old_row(connection, "prompts", id="prompt_old", account_id="local", tune_id="tune_old", number=9)
    engine.dispose()
    registry = Registry(url)
    assert registry.revision() == HEAD
    assert (
        registry.tunes.get("tune_old").number == 7
        and registry.prompts.get("prompt_old").tune_id == "tune_old"
    )
    with registry.reading() as session:
        assert session.execute(text("PRAGMA foreign_key_check")).fetchall() == []
        assert session.execute(text("PRAGMA foreign_keys")).scalar() == 1
    registry.close()


def _add_old_row(connection: Connection, name: str, **given: Any) -> None:
    """Insert a row into a table as it is at some revision, with plain values where it must not be empty."""
    plain: dict[str, Any] = dict.fromkeys(("DATETIME", "TIMESTAMP"), "2026-01-01 00:00:00.000000")
    plain |= dict.fromkeys(("JSON", "JSONB"), "{}") | {"BOOLEAN": False}
    plain |= dict.fromkeys(("INTEGER", "BIGINT", "FLOAT", "DOUBLE PRECISION"), 0)
    values = {
        column["name"]: plain.get(str(column["type"]).split("(")[0], "")
        for column in inspect(connection).get_columns(name)
        if not column["nullable"] and column["default"] is None
    } | given
    names = ", ".join(values)
    marks = ", ".join(f":{key}" for key in values)
    connection.execute(text(f"INSERT INTO {name} ({names}) VALUES ({marks})"), values)  # noqa: S608 - own names


def test_what_older_versions_said_of_the_inside_becomes_a_detail(url: str) -> None:
    engine = make_engine(url).execution_options(tunes_writes=True)
    said = {
        "bug": ("internal", "KeyError: 'x'"),
        "model": ("base_not_installed", "The base model 'sdxl' is not installed at /srv/bases/sdxl."),
        "picture": ("render_failed", "The picture came out as numbers that are not finite."),
        "source": ("source_refused", "https://a.example/x.zip was answered with 404 Error."),
        "asked": ("invalid_request", "ValueError: rank"),
    }
    with engine.connect() as connection, connection.begin():
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0010")
        for number, (name, (code, message)) in enumerate(said.items(), 1):
            failed = {"failure_code": code, "failure_message": message, "failure_remedy": "Ask."}
            _add_old_row(
                connection, "tunes", id=name, account_id="local", status="failed", number=number, **failed
            )
            line = f"{message} Ask. [{code}]"
            _add_old_row(
                connection,
                "events",
                id=number,
                subject_id=name,
                phase="failed",
                message=line,
                data='{"a": 1}',
            )
    engine.dispose()
    registry = Registry(url, migrate=False)
    registry.migrate(older=True)
    rows = {name: registry.tunes.get(name) for name in said}
    events = {name: registry.events.of(name)[0] for name in said}
    registry.close()
    kept = {name for name, row in rows.items() if row.failure_message == said[name][1]}
    assert kept == {"picture", "source", "asked"}
    assert all(rows[name].failure_detail is None for name in kept)
    assert rows["bug"].failure_message == UNEXPECTED and rows["bug"].failure_detail == "KeyError: 'x'"
    assert rows["model"].failure_message == "A model that is needed is not installed."
    assert rows["model"].failure_detail == said["model"][1]
    assert events["bug"].message == UNEXPECTED
    assert events["bug"].data == {"a": 1, "detail": "KeyError: 'x' Ask. [internal]"}
    assert events["picture"].message.startswith("The picture came out") and events["picture"].data == {"a": 1}


def test_an_older_schema_on_a_server_is_upgraded_when_an_operator_says_so(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = make_engine(url).execution_options(tunes_writes=True)
    with engine.connect() as connection, connection.begin():
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0010")
    engine.dispose()
    if not url.startswith("sqlite"):
        with pytest.raises(Failure) as refused:
            Registry(url)
        assert refused.value.code == FailureCode.CONFLICT and "schema 0010" in refused.value.message
        assert "`tunes registry upgrade`" in refused.value.remedy
    from tunes_dagster.cli import main
    from tunes_dagster.core.settings import get_settings

    monkeypatch.setenv("TUNES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TUNES_REGISTRY_URL", url)
    get_settings.cache_clear()
    try:
        assert main(["registry", "upgrade"]) == 0
        assert f"from schema 0010 to {HEAD}" in capsys.readouterr().out
        assert main(["registry", "upgrade"]) == 0
        assert "already" in capsys.readouterr().out
    finally:
        get_settings.cache_clear()
    registry = Registry(url)
    assert registry.revision() == HEAD
    registry.close()


def test_a_registry_of_a_newer_version_is_refused(url: str) -> None:
    registry = Registry(url)
    with registry.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    registry.close()
    with pytest.raises(Failure) as error:
        Registry(url)
    assert error.value.code == FailureCode.CONFLICT and "newer version" in error.value.remedy


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_text("this is not a database, but long enough to be read as one" * 20)
    with pytest.raises(Failure) as error:
        Registry(f"sqlite:///{tmp_path}/registry.db")
    assert error.value.code == FailureCode.STORE_UNAVAILABLE and "registry.db" in error.value.detail


def _open_and_add(url: str, start: float, count: int) -> None:
    time.sleep(max(0.0, start - time.time()))
    registry = Registry(url)
    for _ in range(count):
        add_tune(registry, id=new_id("tune"))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_several_processes_open_an_empty_registry_at_once(url: str) -> None:
    context = multiprocessing.get_context("fork")
    start = time.time() + 0.2
    processes = [context.Process(target=_open_and_add, args=(url, start, 5)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    registry = Registry(url)
    assert [tune.number for tune in registry.tunes.rows()] == list(range(20, 0, -1))
    registry.close()


def test_opening_a_current_registry_is_cheap(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    Registry(url).close()
    code = (
        "import sys, time\n"
        "from tunes_dagster.registry import Registry\n"
        "took = []\n"
        "for _ in range(3):\n"
        "    start = time.perf_counter(); Registry(sys.argv[1]).close(); took.append(time.perf_counter() - start)\n"
        "assert 'alembic' not in sys.modules and 'torch' not in sys.modules and 'dagster' not in sys.modules\n"
        "print(min(took))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.05
