"""How long files and functions may be; how many arguments they take is the linter's to say (`PLR0913`)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("tunes_dagster", "assets", "resources", "factory")
LINES, FUNCTION = 500, 80
# Revisions outlive the code: what they did once is not rewritten.
REVISIONS = "tunes_dagster/registry/migrations/versions/"


def sources() -> Iterator[tuple[str, str]]:
    """Yield path and text of each module; `tunes_dagster/assets` and `/resources` are links to those at the top."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(("tunes_dagster/assets/", "tunes_dagster/resources/", REVISIONS)):
                yield name, path.read_text(encoding="utf-8")


def test_no_file_is_too_long_to_have_one_subject() -> None:
    long = {name: lines for name, text in sources() if (lines := text.count("\n")) > LINES}
    assert not long, long


def test_no_function_is_longer_than_a_screen() -> None:
    long = {
        f"{name} {node.name}": lines
        for name, text in sources()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION
    }
    assert not long, long
