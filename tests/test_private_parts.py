"""Names that begin with `_` are touched by whoever they belong to, and those of libraries in one file per library."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Library → the one file that may touch what it keeps to itself, and the test that pins what is touched.
ADAPTERS = {
    "dagster": ("tunes_dagster/pipeline/dagster_private.py", "tests/dagster/test_private_dagster.py"),
    "diffusers": ("tunes_dagster/families/diffusers_private.py", "tests/training/test_private_diffusers.py"),
    "starlette": ("tunes_dagster/gateway/starlette_private.py", "tests/gateway/test_private_starlette.py"),
    "torch": ("tunes_dagster/training/torch_private.py", "tests/training/test_private_torch.py"),
}
# (file, name): why it is none of these.
PROMISED = {
    ("tunes_dagster/cli/supervising.py", "os._exit"): "is documented",
    ("tunes_dagster/intake/sandbox/child/__main__.py", "os._exit"): "is documented",
    ("tunes_dagster/core/store.py", "_typeshed"): "is for type checkers alone, who document it",
    ("tunes_dagster/intake/sandbox/child/archives.py", "_proc_member"): "tarfile says that subclasses may",
}
# Methods of named tuples, which the documentation of `collections` promises.
OF_TUPLES = {"_replace", "_asdict", "_fields", "_make"}
TOUCHES = {"getattr", "setattr", "hasattr", "delattr"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_" and name not in OF_TUPLES


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def defined(tree: ast.Module) -> Counter[str]:
    """Count every name that a module gives to something of its own."""
    found: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] += 1
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] += 1
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found[node.attr] += ast.unparse(node.value) in ("self", "cls")
    return +found


@cache
def defined_in(path: Path) -> Counter[str]:
    return defined(parsed(path))


@cache
def own_modules(path: Path) -> tuple[Path, ...]:
    """Return the files of ours that a file imports from, and from whose classes its own may inherit."""
    return tuple(
        module
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tunes_dagster")
        if (module := ROOT / f"{node.module.replace('.', '/')}.py").is_file()
    )


def inherits(name: str, path: Path) -> bool:
    """Whether a file of ours from which this one may inherit gives a name."""
    seen, waiting = {path}, list(own_modules(path))
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        if defined_in(one)[name]:
            return True
        waiting += own_modules(one)
    return False


def is_own(owner: str, name: str, own: Counter[str], path: Path) -> bool:
    """Whether what a file touches is defined by it, or by a file of ours that it inherits from."""
    if owner == "super()":  # the definition that asks for the one above it does not count
        return own[name] > 1 or inherits(name, path)
    return bool(own[name]) or (owner in ("self", "cls") and inherits(name, path))


def touched(tree: ast.Module, path: Path = Path(__file__)) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of what a module touches although somebody else keeps it to himself."""
    own = defined(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if not is_own(owner, node.attr, own, path):
                yield (
                    node.lineno,
                    node.attr if owner in ("self", "cls", "super()") else f"{owner}.{node.attr}",
                )
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = (getattr(node, "module", None) or "").split(".")
            for name in node.names:
                if any(map(is_private, (*module, *name.name.split(".")))):
                    yield node.lineno, ".".join(module) if any(map(is_private, module)) else name.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = node.value.split(".")
            is_path = len(parts) > 1 and all(part.isidentifier() for part in parts)
            if is_path and parts[0] in ADAPTERS and any(map(is_private, parts)):
                yield node.lineno, node.value
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in TOUCHES and len(node.args) > 1:
            name = getattr(node.args[1], "value", None)
            if isinstance(name, str) and is_private(name) and not own[name]:
                yield node.lineno, name


def test_what_libraries_keep_to_themselves_is_touched_in_one_file_each():
    adapters = {path for path, _test in ADAPTERS.values()}
    found = [
        (path.relative_to(ROOT).as_posix(), line, name)
        for folder in ("tunes_dagster", "assets", "resources", "factory")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in adapters
        for line, name in touched(parsed(path), path)
    ]
    wrong = [f"{path}:{line} touches {name}" for path, line, name in found if (path, name) not in PROMISED]
    assert not wrong, f"Use a public call, or put it into the adapter of its library: {wrong}"
    idle = PROMISED.keys() - {(path, name) for path, _line, name in found}
    assert not idle, idle


def test_every_adapter_has_a_test_that_pins_it():
    for adapter, test in ADAPTERS.values():
        assert Path(test).name in (ROOT / adapter).read_text(encoding="utf-8"), adapter
        module = adapter.removesuffix(".py").replace("/", ".")
        text = (ROOT / test).read_text(encoding="utf-8")
        assert module in text or f"from {module.rpartition('.')[0]} import" in text, test


@pytest.mark.parametrize(
    "line",
    [
        "from dagster._core.events import DagsterEvent",
        "import dagster._core.events",
        "from dagster import _core",
        "pipeline._all_hooks",
        "getattr(pipeline, '_all_hooks', None)",
        "pipeline._all_hooks = []",
        "class Mine(Theirs):\n    def f(self): return self._instance",
        "class Mine(Theirs):\n    def _f(self): return super()._g()",
        "load('dagster._core.launcher')",
    ],
)
def test_every_way_to_touch_them_is_seen(line):
    assert list(touched(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "class Mine:\n    def __init__(self): self._a = 1\n    def like(self, other): return other._a",
        "from __future__ import annotations",
        "name = value.__class__.__name__",
        "for _ in range(3): pass",
    ],
)
def test_what_belongs_to_a_module_is_its_own(line):
    assert not list(touched(ast.parse(line)))
