"""An installation of its own for every test, and a way to run commands in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tunes_dagster.cli import main
from tunes_dagster.cli.installation import Installation
from tunes_dagster.core.settings import get_settings


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


Tunes = Callable[..., Said]


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """An empty installation with a base that looks installed; nothing here loads it."""
    base_folder = tmp_path / "base"
    base_folder.mkdir()
    (base_folder / "model_index.json").write_text("{}")
    for name in (
        "TUNES_REGISTRY_URL",
        "TUNES_STORE_URL",
        "TUNES_PROFILE",
        "DAGSTER_HOME",
        "TUNES_DAGSTER_STORAGE",
    ):
        monkeypatch.delenv(name, raising=False)
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(
        "".join(
            f"tiny-{family}: {{family: {family}, repo_id: '{base_folder}', licence: none, native_size: 64,"
            f" max_pixels: 65536, memory_gb: 1, embedded: tiny-{family}, token: ohwx,"
            f" training: {{steps: 20, rank: 4}}, aliases: [{alias}],"
            " rendering: {steps: 2, width: 64, height: 64, scheduler: euler}}\n"
            for family, alias in (("sdxl", "tiny"), ("flux", "tiny-flow"))
        )
    )
    monkeypatch.setenv("TUNES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TUNES_CATALOG", str(catalog))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    get_settings.cache_clear()
    yield Installation(get_settings())
    get_settings.cache_clear()


@pytest.fixture
def tunes(installation: Installation, capsys: pytest.CaptureFixture[str]) -> Tunes:
    """Run `tunes …` in the installation."""

    def run(*arguments: str) -> Said:
        capsys.readouterr()
        code = main(arguments)
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (96, 96), colour).save(folder / f"{index}.png")
    return folder
