"""Documentation that can be checked is checked: option tables, links, and the commands it names."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

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


def test_the_commands_that_documents_name_exist() -> None:
    import typer.main

    from tunes_dagster.cli import app

    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    named = {
        word
        for page in PAGES
        for word in re.findall(
            r"(?:^|`|[ $])tunes ([a-z]+)\b", page.read_text(encoding="utf-8"), re.MULTILINE
        )
        if f"`tunes {word}" in page.read_text(encoding="utf-8")
        or f"\ntunes {word}" in page.read_text(encoding="utf-8")
    }
    assert named <= known, named - known
