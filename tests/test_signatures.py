"""What is handed over in a row is told apart by its place: not where several things of a kind stand side by side."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Fields of one type from which on a dataclass is made by names.
ALIKE = 4
# Rows of tables that are read as such, a line each, under a heading that names the columns.
IN_A_ROW = {
    "tunes_dagster/tiny/world/people.py": {"Person"},
    "tunes_dagster/tiny/world/pets.py": {"Pet"},
    "tunes_dagster/tiny/world/pen.py": {
        "Pose"
    },  # where, how large, how turned: as every drawing library has it
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Yield (path from the root, syntax tree) of every module of ours that is no test."""
    for folder in ("tunes_dagster", "assets", "resources", "factory"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def most_alike(node: ast.ClassDef) -> int:
    """Return how many fields of a class have the commonest type, whether it may be None or not."""
    fields = [
        ast.unparse(one.annotation).replace(" | None", "")
        for one in node.body
        if isinstance(one, ast.AnnAssign)
    ]
    return max(Counter(one for one in fields if "ClassVar" not in one).values(), default=0)


def made_by_place(tree: ast.Module) -> Iterator[ast.ClassDef]:
    """Yield the dataclasses whose fields may be given by their place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            said = [ast.unparse(one) for one in node.decorator_list]
            if any("dataclass" in one and "kw_only=True" not in one for one in said):
                yield node


def test_dataclasses_with_fields_alike_are_made_by_names():
    found = [
        (path, node.lineno, node.name)
        for path, tree in sources()
        for node in made_by_place(tree)
        if most_alike(node) >= ALIKE
    ]
    wrong = [f"{path}:{line} {name}" for path, line, name in found if name not in IN_A_ROW.get(path, ())]
    assert not wrong, f"@dataclass(kw_only=True): {wrong}"
    idle = {(path, name) for path, names in IN_A_ROW.items() for name in names}
    assert not idle - {(path, name) for path, _line, name in found}


@pytest.mark.parametrize(
    ("decorator", "counts"),
    [("@dataclass", 1), ("@dataclasses.dataclass(frozen=True)", 1), ("@dataclass(kw_only=True)", 0), ("", 0)],
)
def test_every_way_to_make_a_dataclass_is_seen(decorator, counts):
    tree = ast.parse(f"{decorator}\nclass A:\n    a: str\n    b: str | None = None\n    c: int\n")
    assert len(list(made_by_place(tree))) == counts
    assert most_alike(tree.body[0]) == 2
