"""Documentation that can be checked is checked: option tables, links, and the commands it names."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tunes_dagster.core.settings import Settings
from tunes_dagster.gateway.options import GatewayOptions
from tunes_dagster.registry import Registry

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])


def test_the_option_tables_are_those_of_the_models() -> None:
    spec = importlib.util.spec_from_file_location("option_tables", ROOT / "scripts" / "option_tables.py")
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for path in tables.PAGES:
        text = path.read_text(encoding="utf-8")
        assert "<!-- options: " in text
        assert tables.page(text) == text, "run .venv/bin/python scripts/option_tables.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"!?\[[^\]]*\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def _commands(text: str) -> list[list[str]]:
    """Return the calls of `tunes` in a page, each as words: those in backticks and those in blocks."""
    said = re.findall(r"`(tunes [^`\n]+)`", text)
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        lines = re.sub(r"\\\n\s*", " ", block).splitlines()
        said += [
            call for line in lines for call in re.findall(r"(?:^(?:\w+=\S+ )*|&& |bin/)(tunes [a-z].*)", line)
        ]
    return [re.split(r"\s#|\||;|&&|>", call)[0].split() for call in said]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_that_a_page_names_exist(page: Path) -> None:
    import typer.main

    from tunes_dagster.cli import app

    for words in _commands(page.read_text(encoding="utf-8")):
        command, rest = typer.main.get_command(app), words[1:]
        while rest and re.fullmatch("[a-z]+", rest[0]) and (known := getattr(command, "commands", None)):
            assert rest[0] in known, f"{page.name} names `{' '.join(words)}`: there is no {rest[0]}"
            command, rest = known[rest[0]], rest[1:]
        flags = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        named = {found[0] for word in rest if (found := re.match(r"--[a-z][a-z-]*", word))}
        assert named <= flags | {"--help"}, f"{page.name} names `{' '.join(words)}`: {named - flags}"


def test_settings_files_and_targets_that_pages_name_exist() -> None:
    code = [
        *ROOT.glob("tunes_dagster/**/*.py"),
        *ROOT.glob("[abrst]*/**/*.py"),
        ROOT / "Makefile",
        *ROOT.glob("*.yaml"),
    ]
    known = {
        name for path in code for name in re.findall(r"TUNES_[A-Z0-9_]+", path.read_text(encoding="utf-8"))
    }
    known |= {f"TUNES_{name.upper()}" for name in Settings.model_fields}
    known |= {f"TUNES_GATEWAY_{name.upper()}" for name in GatewayOptions.model_fields}
    targets = set(
        re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for page in (page for page in PAGES if page.name != "CHANGELOG.md"):
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"\bTUNES_[A-Z0-9_]*[A-Z0-9]\b", text))
        assert named <= known, f"{page.name} names {named - known}"
        made = set(re.findall(r"(?:`|^)make ([a-z][\w-]*)", text, re.MULTILINE))
        assert made <= targets, f"{page.name} names make {made - targets}"
        for file in re.findall(r"`((?:[\w-]+/)+[\w.-]+\.(?:py|yaml|toml|md|sh))(?:::\w+)?`", text):
            there = any((ROOT / folder / file).exists() for folder in (".", "tunes_dagster"))
            assert there or "NAME" in file, f"{page.name} names {file}"
        for path in re.findall(r"\btests/[\w/]+(?:\.py)?", text):
            assert (ROOT / path).exists(), f"{page.name} names {path}"


def _listed(page: str, heading: str) -> set[str]:
    """Return the names in backticks in the first column of the table under a heading."""
    text = (
        (ROOT / "docs" / page)
        .read_text(encoding="utf-8")
        .partition(f"\n## {heading}\n")[2]
        .partition("\n## ")[0]
    )
    columns = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    return {
        name.strip()
        for column in columns
        for cell in re.findall(r"`([^`]+)`", column)
        for name in cell.split()
    }


def test_the_lists_of_documents_are_those_of_the_code() -> None:
    from tests.test_rooms import MAY_USE
    from tunes_dagster.definitions import build_defs
    from tunes_dagster.families.specs import families
    from tunes_dagster.registry.engine import Part
    from tunes_dagster.registry.tables import Table

    both = [build_defs(campaigns=[], settings={"sessions": sessions}) for sessions in ("on", "off")]
    made = {sensor.name for definitions in both for sensor in definitions.sensors}
    assert _listed("dagster.md", "Jobs and sensors") == made
    assert _listed("registry.md", "Tables") == set(Table.metadata.tables)
    registry = Registry("sqlite://")
    parts = {name for name, part in vars(registry).items() if isinstance(part, Part)}
    registry.close()
    text = (ROOT / "docs" / "registry.md").read_text(encoding="utf-8").partition("## Tables")[0]
    named = {
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert named == parts
    rooms = {room.strip("/") for room in _listed("architecture.md", "Rooms")} - {
        "tunes_dagster",
        "factory",
        "benchmarks",
    }
    assert {room.removesuffix(".py") for room in rooms} == set(MAY_USE)
    assert _listed("bases.md", "Families") >= set(families())
