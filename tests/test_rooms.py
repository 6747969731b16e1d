"""The rules between rooms: who may import whom, and what is said in one place only. `ruff` holds the rest of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tunes_dagster"
# Every room and the rooms that it may use. A room that is not named here has no place in the house yet.
MAY_USE = {
    "core": set(),
    "registry": {"core", "callbacks"},  # callbacks: the form of a body, fixed when it becomes owed
    "tiny": {"core"},
    "intake": {"core", "tiny"},
    "callbacks": {
        "core",
        "registry",
        "intake",
        "gateway",
    },  # intake: the guard; gateway: a dialect's own form
    "families": {"core", "training", "rendering"},  # names of layers, and the samplers
    "training": {"core", "families", "intake", "rendering"},  # rendering: the sheet of samples
    "rendering": {"core", "families", "intake", "training", "registry"},
    "evaluation": {"core", "families", "intake", "training", "rendering", "tiny"},
    "service": {"core", "families", "intake", "registry", "training", "rendering", "evaluation", "callbacks"},
    "campaigns": {"core", "families", "intake", "registry", "rendering", "service"},
    "gateway": {"core", "families", "intake", "registry", "training", "rendering", "service", "callbacks"},
    "sessions": {
        "core",
        "families",
        "intake",
        "registry",
        "training",
        "rendering",
        "evaluation",
        "service",
        "callbacks",
    },
    "resources": {
        "core",
        "families",
        "intake",
        "registry",
        "callbacks",
        "evaluation",
        "training",
        "tiny",
        "service",
        "sessions",
    },
    "assets": {
        "core",
        "families",
        "intake",
        "registry",
        "training",
        "rendering",
        "evaluation",
        "service",
        "sessions",
        "campaigns",
        "callbacks",
        "resources",
        "pipeline",
        "tiny",
    },
    "pipeline": {
        "core",
        "families",
        "intake",
        "registry",
        "rendering",
        "service",
        "sessions",
        "campaigns",
        "callbacks",
        "resources",
        "assets",
        "definitions",
    },
    "definitions": {"pipeline"},
    "cli": {
        "core",
        "families",
        "intake",
        "registry",
        "training",
        "rendering",
        "evaluation",
        "service",
        "sessions",
        "campaigns",
        "callbacks",
        "gateway",
        "pipeline",
        "assets",
        "resources",
        "tiny",
    },
}
# Words that are a family's name and something else as well: the words and sizes of dialects and demonstrations.
SAYS_OTHERWISE = {
    "tunes_dagster/core/recipe.py": "the default base's alias",
    "tunes_dagster/cli/plan.py": "the same",
    "tunes_dagster/cli/demo.py": "the demonstration's two bases",
    "tunes_dagster/cli/demonstration.py": "the same",
    "tunes_dagster/tiny/__init__.py": "folders of the shipped models",
}
# Where the host says what time it is. Everywhere else it is `Registry.now`, which the database's clock decides: hosts
# differ. Durations are `time.monotonic`.
HOST_TIME = {
    "tunes_dagster/core/clock.py": "the clock itself",
    "tunes_dagster/core/ids.py": "ids sort about as they were made; nothing is decided by that",
    "tunes_dagster/registry/engine.py": "the clock of SQLite is its host's",
    "tunes_dagster/registry/migrations/versions/0001_the_whole_schema.py": "dates the account that is always there",
    "tunes_dagster/gateway/service.py": "the limiter of requests counts by it, and says by it when it counts anew",
    "tunes_dagster/pipeline/inprocess.py": "Dagster's daemon on this host writes its heartbeat by it",
    "tunes_dagster/service/drops.py": "is compared with when the files of the drop folder changed",
    "assets/housekeeping.py": "is compared with when files changed and Dagster's runs began",
    "tunes_dagster/intake/captions.py": "a note for people",
    "tunes_dagster/service/orphans.py": "is compared with when files changed",
    "tunes_dagster/cli/output.py": "ages for people",
}
CLOCKS = {
    "tunes_dagster.core.clock": {"now"},
    "datetime.datetime": {"now", "utcnow", "today"},
    "datetime.date": {"today"},
    "time": {"time", "time_ns", "localtime", "gmtime", "ctime"},
}
# All engines are made where what is to be written is hidden from errors and logs.
ENGINES = {
    "tunes_dagster/registry/engine.py",
    "tunes_dagster/registry/postgres.py",
}
MAKES_ENGINES = {"create_engine", "create_async_engine", "engine_from_config", "create_pool_from_url"}


@cache
def modules() -> list[tuple[str, str, ast.Module]]:
    """Return (room, path from the root, syntax tree) of every module of the package."""
    found = []
    folders = [PACKAGE, ROOT / "assets", ROOT / "resources"]
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).parts
            room = folder.name if folder is not PACKAGE else inside[0].removesuffix(".py")
            if room != "__init__":
                tree = ast.parse(path.read_text(encoding="utf-8"))
                found.append((room, path.relative_to(ROOT).as_posix(), tree))
    return found


def used(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, room) of what a module imports when it runs, at its top and inside functions."""
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in node.body
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "tunes_dagster":
            names = [alias.name for alias in node.names if not alias.name.startswith("__")]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = (
                [node.module.removeprefix("tunes_dagster.")]
                if node.module.startswith("tunes_dagster.")
                else []
            )
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
            names = [
                name.removeprefix("tunes_dagster.") for name in found if name.startswith("tunes_dagster.")
            ]
        else:
            names = []
        for name in names:
            yield node.lineno, name.split(".")[0]


def test_every_room_uses_only_the_rooms_below_it():
    wrong = [
        f"{path}:{line} uses {other}"
        for room, path, tree in modules()
        for line, other in used(tree)
        if other != room and other not in MAY_USE.get(room, set())
    ]
    assert not wrong, wrong


def test_families_are_named_in_their_own_room_and_in_the_words_of_dialects_only():
    from tunes_dagster.families.specs import families

    names = set(families())
    wrong = [
        f"{path}:{node.lineno} says {node.value!r}"
        for room, path, tree in modules()
        if room != "families" and "/dialects/" not in path and path not in SAYS_OTHERWISE
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not wrong, wrong


def named(tree: ast.Module) -> dict[str, str]:
    """Return what the names that a module imports stand for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.Import):
            found |= {one.asname or one.name: one.name for one in node.names}
    return found


def asked_for_the_time(tree: ast.Module) -> Iterator[int]:
    """Yield the lines on which a module asks the host for the time."""
    names = named(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            first, _, rest = owner.partition(".")
            full = ".".join(filter(None, (names.get(first, first), rest)))
            if node.attr in CLOCKS.get(full, ()):
                yield node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            module, _, name = names.get(node.id, "").rpartition(".")
            if name in CLOCKS.get(module, ()):
                yield node.lineno


def test_the_database_says_what_time_it_is():
    asked = {path: list(asked_for_the_time(tree)) for _room, path, tree in modules()}
    wrong = [f"{path}:{line}" for path, lines in asked.items() for line in lines if path not in HOST_TIME]
    assert not wrong, wrong
    assert not (idle := [path for path in HOST_TIME if not asked.get(path)]), idle


@pytest.mark.parametrize(
    "line",
    [
        "from tunes_dagster.core import clock\nclock.now()",
        "from tunes_dagster.core.clock import now\nf(default=now)",
        "import datetime as dt\ndt.datetime.now()",
        "from datetime import date\ndate.today()",
        "import time\ntime.time()",
        "from time import time\ntime()",
    ],
)
def test_every_way_to_ask_the_host_for_the_time_is_seen(line):
    assert list(asked_for_the_time(ast.parse(line))) == [2]


def test_engines_are_made_where_values_are_hidden():
    wrong = [
        f"{path}:{node.lineno}"
        for _room, path, tree in modules()
        if path not in ENGINES
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.Name | ast.alias)
            and getattr(node, "id", getattr(node, "name", "")) in MAKES_ENGINES
        )
        or (isinstance(node, ast.Attribute) and node.attr in MAKES_ENGINES)
        or (
            isinstance(node, ast.alias)
            and node.name.split(".")[0] in ("psycopg", "psycopg2", "asyncpg", "pg8000")
        )
    ]
    assert not wrong, wrong
    for path in ENGINES:
        made = [
            node
            for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "create_engine"
        ]
        assert made, path
        for call in made:
            hidden = {one.arg: ast.unparse(one.value) for one in call.keywords}
            assert hidden.get("hide_parameters") == "True", (path, call.lineno)


# Who may read the environment's settings, and why; everybody else gets an installation handed in.
READS_SETTINGS = {
    "tunes_dagster/cli/installation.py": "opens the installation of a command and of a server",
    "resources/installation.py": "opens the installation of a code location",
    "tunes_dagster/pipeline/artifacts.py": "is opened by Dagster at the start of a process, as its launcher is",
    "tunes_dagster/pipeline/launcher.py": "is made by Dagster, in every process that opens the instance",
    "tunes_dagster/intake/sandbox/pool.py": "one pool of children per process, with their limits",
}


def test_settings_are_read_by_entry_points_only():
    found = {
        path
        for _room, path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) == "get_settings"
    }
    assert found == set(READS_SETTINGS), found ^ set(READS_SETTINGS)


# The parts of an installation; whoever needs more than one of them is handed the whole.
PARTS = {"Settings", "Registry", "Store", "Catalog"}
# Rooms below `service`, which may not know the installation, take the parts that they need.
KNOWS_THE_INSTALLATION = {room for room, others in MAY_USE.items() if "service" in others} | {"service"}
TAKES_PARTS = {
    ("tunes_dagster/service/installation.py", "__init__"): "is what the parts make",
    (
        "tunes_dagster/service/companions.py",
        "companions",
    ): "is asked about other settings than the operator's",
    ("tunes_dagster/service/companions.py", "missing"): "the same",
    ("tunes_dagster/service/companions.py", "captioner_of"): "the same",
    ("resources/models.py", "open"): "the same",
}


def parts_taken(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Return which parts of an installation a function takes side by side, by their types."""
    args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    words = [
        {inner.id for inner in ast.walk(one.annotation) if isinstance(inner, ast.Name)}
        for one in args
        if one.annotation is not None
    ]
    return PARTS & set().union(*words) if words else set()


def test_whoever_needs_more_than_one_part_of_the_installation_takes_the_installation():
    found = {
        (path, node.name)
        for room, path, tree in modules()
        if room in KNOWS_THE_INSTALLATION
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(parts_taken(node)) > 1
    }
    assert found == set(TAKES_PARTS), found ^ set(TAKES_PARTS)


def test_the_gateway_writes_no_rows_into_the_transactions_of_others():
    found = {
        path
        for room, path, tree in modules()
        if room == "gateway"
        for node in ast.walk(tree)
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlalchemy"))
        or (isinstance(node, ast.Import) and any(one.name.startswith("sqlalchemy") for one in node.names))
    }
    assert not found, found


def test_what_ends_a_request_from_inside_the_gateway_is_a_refusal():
    made = {
        node.name
        for room, _path, tree in modules()
        if room == "gateway"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(base.id.endswith(("Exception", "Error")) for base in node.bases if isinstance(base, ast.Name))
    }
    assert made == {"HttpProblem"}, "anything else, a dry run's report too, is returned"


def test_assets_and_resources_have_one_name():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("tunes_dagster", "assets", "resources", "tests", "benchmarks", "scripts", "factory")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom) and node.level == 0
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        if name.split(".")[0] in ("assets", "resources")
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("path", "line", "rule"),
    [
        ("tunes_dagster/core/new.py", "import dagster", "TID251"),
        ("tunes_dagster/gateway/new.py", "from dagster import asset", "TID251"),
        ("tunes_dagster/families/new.py", "import torch", "TID253"),
        ("assets/new.py", "from diffusers import DiffusionPipeline", "TID253"),
        ("tunes_dagster/cli/new.py", "from resources.state import StoreResource", "TID251"),
    ],
)
def test_ruff_refuses_what_the_rules_forbid(path, line, rule):
    checked = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--stdin-filename", str(ROOT / path), "-"],
        input=f'"""New."""\n\n{line}\n',
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert rule in checked.stdout, checked.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)  # seconds where the linters ran before, minutes where they did not
def test_a_wrong_call_into_assets_fails_the_type_checker(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from tunes_dagster.assets.names import NOT_THERE\nfrom tunes_dagster.assets.cohort import nor_this\n"
        "from tunes_dagster.resources.state import StoreResource\nStoreResource().opne()\n"
    )
    seen = subprocess.run(
        [sys.executable, "-m", "mypy", str(wrong)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert seen.stdout.count("[attr-defined]") == 3, seen.stdout


def reads_by_key(node: ast.AST) -> bool:
    """Whether an expression takes a field out of the result of a row by its name."""

    def result(value: ast.AST) -> bool:
        if isinstance(value, ast.BoolOp):
            return any(map(result, value.values))
        return isinstance(value, ast.Attribute) and value.attr == "result"

    if isinstance(node, ast.Subscript):
        return result(node.value)
    return isinstance(node, ast.Attribute) and node.attr == "get" and result(node.value)


# Columns of queries, whose class is a parameter, and a migration, which knows the rows of its day.
NAMES_FIELDS = {
    "tunes_dagster/registry/figures.py",
    "tunes_dagster/registry/migrations/versions/0008_tunes_of_prompts.py",
}


def test_results_are_read_by_their_types():
    wrong = [
        f"{path}:{node.lineno}"
        for _room, path, tree in modules()
        for node in ast.walk(tree)
        if path not in NAMES_FIELDS
        and reads_by_key(node)
        and not ast.unparse(node.value)[0].isupper()  # a column of a query: `Tune.result["steps"]`
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    "line", ["row.result['steps']", "(row.result or {}).get('steps')", "row.result.get('steps')"]
)
def test_every_way_to_read_a_result_by_a_name_is_seen(line):
    assert any(map(reads_by_key, ast.walk(ast.parse(line))))
