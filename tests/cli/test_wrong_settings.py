"""A wrong variable of the environment is one sentence that names it, its value and what is allowed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunes_dagster.cli import main
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.evaluation.scorers import load_scorer_catalog

# Of every kind: a word that is none of a few, numbers, lists and objects, places of files and of rows, addresses.
WRONG = [
    ("PROFILE", "nonsense", "'embedded' or 'production'"),
    ("DEVICE", "gpu9", "cuda:1"),
    ("DTYPE", "float8", "'float32'"),
    ("SESSIONS", "perhaps", "'auto', 'on' or 'off'"),
    ("MAX_COHORT", "many", "whole number"),
    ("MAX_COHORT", "0", "greater than or equal to 1"),
    ("IMPORT_MAX_MB", "inf", "whole number"),
    ("HEARTBEAT_SECONDS", "nan", "finite"),
    ("HEARTBEAT_SECONDS", "-1", "greater than 0"),
    ("LOST_AFTER_SECONDS", "0", "greater than 0"),
    ("RENDER_SHARE", "1", "less than 1"),
    ("ALLOW_HOSTS", "a,b", "a list in JSON"),
    ("ALLOW_HOSTS", "[1]", "text"),
    ("RETRY_BACKOFF", "5,6", "a list of numbers in JSON"),
    ("RETRY_BACKOFF", "[]", "at least 1"),
    ("CALLBACK_BACKOFF", "[-5]", "greater than or equal to 0"),
    ("STORE_OPTIONS", '{"secret": "hush"', "an object in JSON"),
    ("STORE_URL", "nope://x/y", "fsspec"),
    ("STORE_URL", "abfs://x/y", "library"),
    ("STORE_URL", "FILE", "should be a folder"),
    ("DROP_FOLDER", "FILE/inbox", "should be a folder"),
    ("REGISTRY_URL", "nonsense", "postgresql://"),
    ("REGISTRY_URL", "mysql://me:hush@x/y", "postgresql://"),
    ("REGISTRY_URL", "postgresql://me:hush@x:port/y", "escape"),
    ("HOME", "FILE", "folder that can be made"),
    ("HOME", "FILE/home", "folder that can be made"),
    ("OPERATOR_URL", "here", "http://"),
    ("UI_URL", "ftp://x", "http://"),
]
SERVED = [
    ("GATEWAY_MAX_BODY_MB", "lots", "number"),
    ("GATEWAY_BODY_SECONDS", "inf", "finite"),
    ("GATEWAY_MOUNTS", "x", "an object in JSON"),
    ("GATEWAY_MOUNTS", '{"pixel": ""}', "pixelapi"),
    ("GATEWAY_MOUNTS", '{"pixu": "pixu"}', "/prefix"),
    ("GATEWAY_CORS_ORIGINS", "x", "a list in JSON"),
    ("GATEWAY_CORS_ORIGINS", '["x"]', "match"),
    ("GATEWAY_RATE_LIMIT_STORE", "nope://me:hush@x", "redis://"),
    ("GATEWAY_PUBLIC_URL", "here", "should be an address"),
    ("GATEWAY_LOG_FORMAT", "xml", "'json' or 'text'"),
    ("GATEWAY_PRICES", "/nowhere", "cannot be read"),
    ("CATALOG", "/nowhere", "YAML file"),
    ("CATALOG", "FILE", "YAML file"),
    ("CATALOG", "ENTRY", "family is missing"),
    ("SCORERS", "/nowhere", "YAML file"),
    ("CONTENT_RULES", "/nowhere", "cannot be read"),
    ("CAPTIONER", "nobody", "Known"),
    ("FACE_DETECTOR", "/nowhere", "ONNX file"),
]


def complained(capsys: Any, tmp_path: Path, monkeypatch: Any, name: str, value: str, *command: str) -> str:
    """Return what a command says about a variable."""
    (tmp_path / "file").write_text("- x")
    (tmp_path / "entry").write_text("x: {colour: blue}")
    value = value.replace("FILE", str(tmp_path / "file")).replace("ENTRY", str(tmp_path / "entry"))
    monkeypatch.setenv("TUNES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TUNES_" + name, value)
    get_settings.cache_clear()
    load_scorer_catalog.cache_clear()
    try:
        assert main(command) == 2
    finally:
        get_settings.cache_clear()
        load_scorer_catalog.cache_clear()
    said = " ".join(capsys.readouterr().err.split())
    assert "TUNES_" + name in said and "hush" not in said and "pydantic" not in said.lower(), said
    return said


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG)
def test_a_wrong_setting_is_a_sentence(
    capsys: Any, tmp_path: Path, monkeypatch: Any, name: str, value: str, allowed: str
) -> None:
    said = complained(capsys, tmp_path, monkeypatch, name, value, "list")
    shown = value.strip("[]").split("/")[-1].removeprefix("FILE")
    assert allowed in said and ("hush" in value or shown in said), said


@pytest.mark.parametrize(("name", "value", "allowed"), SERVED)
@pytest.mark.parametrize("command", ["serve", "dev"])
def test_a_server_does_not_begin_with_one(
    capsys: Any, tmp_path: Path, monkeypatch: Any, command: str, name: str, value: str, allowed: str
) -> None:
    assert allowed in complained(capsys, tmp_path, monkeypatch, name, value, command)


def test_all_that_are_wrong_are_named_at_once(monkeypatch: Any) -> None:
    monkeypatch.setenv("TUNES_PROFILE", "x")
    monkeypatch.setenv("TUNES_MAX_COHORT", "x")
    get_settings.cache_clear()
    with pytest.raises(Failure) as refused:
        get_settings()
    get_settings.cache_clear()
    assert "TUNES_PROFILE" in refused.value.message and "TUNES_MAX_COHORT" in refused.value.message
    assert refused.value.__cause__ is None and refused.value.__context__ is None


def test_an_empty_home_is_not_where_somebody_stands(monkeypatch: Any) -> None:
    monkeypatch.setenv("TUNES_HOME", "")
    assert Settings().home == Path(".tunes")


def test_dagster_is_told_the_sentence_and_nothing_before_it() -> None:
    told = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", "from tunes_dagster.definitions import build_defs; build_defs()"],
        env={**os.environ, "TUNES_PROFILE": "nonsense"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "TUNES_PROFILE is 'nonsense'" in told.stderr.splitlines()[-1], told.stderr
    assert "pydantic" not in told.stderr and told.stderr.count("Traceback") == 1
