"""Packages that only some installations need: without one, what needs it says how to get it."""

from __future__ import annotations

import sys
import tomllib
from itertools import takewhile
from pathlib import Path

import pytest
import torch

from tunes_dagster.cli.checkup import examine
from tunes_dagster.core import extras
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.recipe import TrainingOptions, TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.intake.workbooks import read_workbook
from tunes_dagster.registry.engine import make_engine
from tunes_dagster.training.checks import check_tune
from tunes_dagster.training.optimizer import make_optimizer

# The names that packages have where they are installed from.
DISTRIBUTIONS = {"psycopg2": "psycopg2-binary"}


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Have a package not be there."""
    for name in [one for one in sys.modules if one.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize("package", extras.EXTRAS)
def test_every_extra_that_is_named_brings_its_package(package):
    root = Path(__file__).resolve().parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra, _use = extras.EXTRAS[package]
    wanted = DISTRIBUTIONS.get(package, package)
    assert any(line.startswith(wanted) for line in project["optional-dependencies"][extra])
    assert not any(line.startswith(wanted) for line in project["dependencies"])


def needs(package: str, said: pytest.ExceptionInfo[Failure]) -> None:
    failure = said.value
    assert package in failure.message and extras.how_to_get(package) in failure.remedy, (
        failure.message,
        failure.remedy,
    )


def test_a_workbook_without_openpyxl(monkeypatch):
    without(monkeypatch, "openpyxl")
    with pytest.raises(Failure) as said:
        read_workbook(b"PK", None, 10)
    needs("openpyxl", said)


def test_prodigy_without_prodigyopt_is_refused_when_it_is_asked_for_and_where_it_would_work(monkeypatch):
    without(monkeypatch, "prodigyopt")
    options = TrainingOptions(optimizer="prodigy", learning_rate=1.0)
    with pytest.raises(Failure) as said:
        make_optimizer(options, [torch.nn.Parameter(torch.zeros(1))])
    needs("prodigyopt", said)
    base = load_catalog("production").entries["sdxl1"]
    request = TuneRequest(name="dog", training=options, sources={"image_urls": ["https://example.com/a.png"]})
    with pytest.raises(Failure) as said:
        check_tune(request, base, base, Settings())
    assert "prodigyopt" in str(said.value.problems) and extras.how_to_get("prodigyopt") in str(
        said.value.problems
    )


def test_a_registry_on_a_server_without_its_driver(monkeypatch):
    without(monkeypatch, "psycopg2")
    monkeypatch.delitem(sys.modules, "tunes_dagster.registry.postgres", raising=False)
    with pytest.raises(Failure) as said:
        make_engine("postgresql://somebody@example.com/tunes")
    needs("psycopg2", said)


def test_the_doctor_names_extras_and_what_they_are_for(monkeypatch, tmp_path):
    without(monkeypatch, "openpyxl")
    monkeypatch.setenv("TUNES_HOME", str(tmp_path))
    first = takewhile(lambda one: one.area == "software", examine(Settings()))
    (line,) = [one.says for one in first if "Extras" in one.says]
    there, _, others = line.partition("others: ")
    assert "prodigy" in there and "xlsx (tables as XLSX)" in others and "xlsx" not in there
