"""Looks at this machine and installation, and says what would stop a run and what to do about it.

Each check is one function that returns findings; a check that breaks is itself a finding, never a stack trace.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunes_dagster.core.extras import EXTRAS, has
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.work import WorkKind

if TYPE_CHECKING:
    from tunes_dagster.core.settings import Settings

Level = Literal["ok", "note", "problem"]

# What a run of the shipped base needs; measured with `make demo`.
_MEMORY_GB = 3.0
_DISK_GB = 1.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: What it belongs to: device, disk, store …
        level: `ok`, `note` (worth knowing) or `problem` (would stop a run).
        says: One sentence.
        remedy: What to do about it.
    """

    area: str
    level: Level
    says: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return it for `--json`."""
        return asdict(self)


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield what every check found, in the order in which a run would meet it."""
    checks: tuple[tuple[str, Callable[[Settings], Iterator[Finding]]], ...] = (
        ("software", _software),
        ("device", _device),
        ("memory", _memory),
        ("disk", _disk),
        ("bases", _bases),
        ("helpers", _helpers),
        ("content", _content),
        ("registry", _registry),
        ("the past", _past),
        ("store", _store),
        ("dagster", _dagster),
        ("sessions", _sessions),
        ("time", _time),
        ("drop folder", _drop_folder),
    )
    for area, check in checks:
        try:
            yield from check(settings)
        except Failure as failure:
            yield Finding(area, "problem", failure.message, failure.remedy)
        except Exception as error:
            yield Finding(
                area, "problem", f"{type(error).__name__}: {error}", "See the documentation of this part."
            )


def _software(settings: Settings) -> Iterator[Finding]:
    names = ("tunes-dagster", "dagster", "torch", "diffusers", "transformers", "peft")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            if name != "tunes-dagster":
                yield Finding("software", "problem", f"{name} is not installed.", "Run `make setup`.")
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("software", "ok", f"Python {python}, {', '.join(versions)}.")
    there = {package: extra for package, (extra, _use) in EXTRAS.items() if has(package)}
    lacks = [f"{extra} ({use})" for package, (extra, use) in EXTRAS.items() if package not in there]
    says = f"Extras that are installed: {', '.join(there.values()) or 'none'}"
    yield Finding("software", "ok", f"{says}; others: {', '.join(lacks)}." if lacks else f"{says}.")


def _device(settings: Settings) -> Iterator[Finding]:
    from tunes_dagster.sessions.hardware import find_devices

    for device in find_devices(settings.device, settings.dtype):
        says = f"{device.name}: {device.label}, {device.memory_gb:.0f} GiB, {device.dtype}."
        yield Finding("device", "ok", says)
        if device.name == "cpu" and settings.profile == "production":
            yield Finding(
                "device",
                "problem",
                "The profile `production` trains real bases, and there is no accelerator.",
                "Use a machine with a GPU (torch with CUDA), or TUNES_PROFILE=embedded.",
            )


def _memory(settings: Settings) -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available / 2**30, memory.total / 2**30
    level: Level = "ok" if free >= _MEMORY_GB else "problem"
    remedy = (
        "" if level == "ok" else f"Training the shipped base takes {_MEMORY_GB:g} GiB; close other programs."
    )
    yield Finding("memory", level, f"{free:.1f} of {total:.1f} GiB are free.", remedy)


def _disk(settings: Settings) -> Iterator[Finding]:
    free = shutil.disk_usage(settings.resolved_home).free / 2**30
    level: Level = "ok" if free >= _DISK_GB else "problem"
    remedy = "" if level == "ok" else "Free some space, or set TUNES_HOME to another disk."
    yield Finding("disk", level, f"{free:.1f} GiB are free at {settings.resolved_home}.", remedy)


def _bases(settings: Settings) -> Iterator[Finding]:
    from tunes_dagster.families.catalog import load_catalog

    catalog = load_catalog(settings.profile)
    folder = settings.bases_folder
    yield Finding("bases", "ok", f"Profile {settings.profile}; {len(catalog.entries)} bases in the catalog.")
    usable = {real.base_id: real for real in map(catalog.real, catalog.entries.values())}
    ready = [entry for entry in usable.values() if entry.installed(folder)]
    for entry in ready:
        yield Finding("bases", "ok", f"{entry.base_id} is installed at {entry.location(folder)}.")
    missing = [entry for entry in usable.values() if entry not in ready]
    for entry in missing:
        level: Level = "note" if ready else "problem"
        embedded = entry.repo_id.startswith("embedded:")
        remedy = (
            "The package is incomplete: get it again."
            if embedded
            else f"Run `tunes bases pull {entry.base_id}`."
        )
        yield Finding("bases", "problem" if embedded else level, f"{entry.base_id} is not installed.", remedy)


def _helpers(settings: Settings) -> Iterator[Finding]:
    folder = Path(__file__).parent.parent / "tiny" / "weights"
    for name in ("captioner", "scorer", "upscaler"):
        if not (folder / name).is_dir():
            yield Finding(
                "helpers", "note", f"The shipped {name} is missing at {folder / name}.", "Get it again."
            )
            continue
        yield Finding("helpers", "ok", f"The shipped {name} is there.")
    yield from companions_found(settings)
    import cv2

    cascades = Path(cv2.data.haarcascades)  # type: ignore[attr-defined]
    if not (cascades / "haarcascade_frontalface_default.xml").is_file():
        yield Finding(
            "helpers",
            "problem",
            "OpenCV came without its face cascades.",
            "Install opencv-python-headless 4.",
        )


def companions_found(settings: Settings) -> Iterator[Finding]:
    """Say of what tunes use beside their base whether it is there."""
    from tunes_dagster.families.catalog import load_catalog
    from tunes_dagster.service.companions import companions

    try:
        found = companions(settings, load_catalog(settings.profile))
    except Failure as failure:
        yield Finding("helpers", "problem", failure.message, failure.remedy)
        return
    for one in found:
        if one.entry.repo_id.startswith("embedded:"):
            continue  # said already
        says = f"{one.entry.base_id}, for {one.use}, is "
        if one.installed:
            yield Finding("helpers", "ok", f"{says}installed at {one.place}.")
        else:
            yield Finding("helpers", "note", f"{says}not installed: of a tune, {one.without}.", one.remedy)


def _content(settings: Settings) -> Iterator[Finding]:
    """Say what is looked at before a prompt is taken and before a picture is handed out, and what nobody looks at."""
    from tunes_dagster.families.catalog import load_catalog
    from tunes_dagster.rendering.policy import load_rules, rules_file

    rules = [rule for rule in load_rules(settings) if not rule.allows]
    if rules:
        names = len({rule.name for rule in rules})
        says = f"Prompts are held against {len(rules)} rules under {names} names in {rules_file(settings)}."
        yield Finding("content", "ok", says)
    else:
        yield Finding(
            "content",
            "note",
            "Prompts are held against no rules.",
            "Unset TUNES_CONTENT_RULES for the shipped ones.",
        )
    entry = load_catalog(settings.profile).first("safety")
    if not settings.safety_checker:
        yield Finding("content", "note", "No picture is looked at: TUNES_SAFETY_CHECKER is false.")
    elif entry is None or not entry.installed(settings.bases_folder):
        yield Finding(
            "content",
            "note",
            "No picture is looked at, before or after rendering: no model that could is installed, and none ships "
            "with the package. Only the words of prompts are.",
            f"Run `tunes bases pull {entry.base_id if entry else 'safety-checker'}`.",
        )
    else:
        yield Finding(
            "content",
            "ok",
            f"Finished pictures and clips are looked at by {entry.base_id}, which knows sexual content in photographs. "
            "It does not see cruelty, ages, forged papers or who is shown, knows drawings badly, and is not shown the "
            "pictures that callers send.",
        )


def _registry(settings: Settings) -> Iterator[Finding]:
    from tunes_dagster.registry import open_registry

    registry = open_registry(settings)
    counts = registry.tunes.count()
    words = ", ".join(f"{number} {status}" for status, number in sorted(counts.items())) or "none"
    where = registry.engine.url.render_as_string(hide_password=True)
    yield Finding("registry", "ok", f"{where}, schema {registry.revision()}; tunes: {words}.")
    dead = len(registry.outbox.rows(state=["dead", "held"], limit=1000))
    if dead:
        yield Finding(
            "registry", "note", f"{dead} callbacks were given up.", "See `tunes callbacks list --state dead`."
        )


def _past(settings: Settings) -> Iterator[Finding]:
    """Say what faults of earlier versions left behind in the rows."""
    from tunes_dagster.registry import open_registry

    faults = open_registry(settings).audit.faults()
    for fault in faults:
        yield Finding("the past", "note", fault.says, fault.remedy)
    if not faults:
        yield Finding("the past", "ok", "Nothing is left of the faults of earlier versions.")


def _store(settings: Settings) -> Iterator[Finding]:
    from tunes_dagster.core.ids import new_id
    from tunes_dagster.core.store import Store

    store = Store(settings.resolved_store_url, settings.store_options)
    key, content = f"doctor/{new_id('probe')}", b"probe"
    try:
        store.write_bytes(key, content)
        same = store.read_bytes(key) == content
        store.delete(key)
    except Exception as error:
        yield Finding(
            "store",
            "problem",
            f"{settings.resolved_store_url} cannot be written: {type(error).__name__}: {error}",
            "Check TUNES_STORE_URL, TUNES_STORE_OPTIONS (endpoint_url, key, secret) and the permissions.",
        )
        return
    if same:
        yield Finding("store", "ok", f"{settings.resolved_store_url} can be read and written.")
    else:
        yield Finding(
            "store", "problem", f"{settings.resolved_store_url} gave other bytes back.", "Check the disk."
        )


def _dagster(settings: Settings) -> Iterator[Finding]:
    home = os.environ.get("DAGSTER_HOME", "")
    storage = os.environ.get("TUNES_DAGSTER_STORAGE") or str(settings.resolved_home / "dagster")
    if home and Path(home, "dagster.yaml").is_file():
        yield Finding("dagster", "ok", f"Home {home}, storage {storage}.")
    else:
        yield Finding(
            "dagster",
            "note",
            f"DAGSTER_HOME is {home or 'not set'} and holds no dagster.yaml: a plain instance in {storage} is used.",
            "For sensors in threads, pools and monitoring, copy the project's dagster.yaml and set DAGSTER_HOME to it.",
        )
    from tunes_dagster.pipeline.inprocess import daemon_is_alive, open_instance

    if daemon_is_alive(open_instance(settings)):
        yield Finding("dagster", "ok", "The daemon is alive: it takes what is handed in.")
    else:
        yield Finding(
            "dagster",
            "note",
            "No daemon runs: `tunes train` and `tunes render` work in their own process.",
            "Start it with `tunes dev` to have drop folder, API and callbacks served.",
        )


def _sessions(settings: Settings) -> Iterator[Finding]:
    """Say who does what needs a device, and why."""
    from tunes_dagster.core.launching import sessions_suit
    from tunes_dagster.sessions.hardware import count_devices

    why = f"TUNES_SESSIONS is {settings.sessions}."
    if settings.sessions == "auto":
        why = sessions_suit().why
    if settings.uses_sessions:
        devices = count_devices(settings.device)
        held = "its device" if devices == 1 else f"each of {devices} devices"
        yield Finding(
            "sessions", "ok", f"While there is work, a session holds {held}, with bases loaded. {why}"
        )
    else:
        yield Finding(
            "sessions",
            "note",
            f"Each training and each batch is a process of its own, which loads its base anew. {why}",
            "TUNES_SESSIONS=on has one session do it (docs/dagster.md).",
        )


def _time(settings: Settings) -> Iterator[Finding]:
    from tunes_dagster.core.progress import format_seconds

    kinds = (*WorkKind, "campaign", "housekeeping")
    said = ", ".join(f"{kind} {format_seconds(settings.longest(kind))}" for kind in kinds)
    yield Finding("time", "ok", f"The longest that a piece of work may take: {said}.")


def _drop_folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.resolved_drop_folder
    if "://" in folder:
        yield Finding("drop folder", "ok", f"{folder} is watched when the daemon runs.")
        return
    if Path(folder).is_dir():
        waiting = sum(1 for entry in Path(folder).iterdir() if entry.is_dir())
        yield Finding("drop folder", "ok", f"{folder} holds {waiting} folders.")
        from tunes_dagster.registry import open_registry
        from tunes_dagster.service.waiting import unused_drops

        for drop in unused_drops(open_registry(settings)):
            yield Finding(
                "drop folder",
                "note",
                f"{drop.path} is not used: {drop.message}",
                "Correct it there, or take it away.",
            )
    else:
        yield Finding("drop folder", "note", f"{folder} does not exist yet.", "`tunes dev` makes it.")


def summary(findings: list[Finding]) -> dict[str, Any]:
    """Return findings as one JSON-able object."""
    problems = [finding for finding in findings if finding.level == "problem"]
    return {"ready": not problems, "findings": [finding.as_dict() for finding in findings]}
