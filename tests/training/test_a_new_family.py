"""A family that another package brings: one file and one catalog entry, and everything works on it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from tests.support.tiny_bases import make_random_sd15
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import PromptRequest, RenderSettings, TrainingOptions, TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.families import specs
from tunes_dagster.families.base import load_family
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.families.sizes import sizes_of
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.memory import plan_room
from tunes_dagster.rendering.renderer import RenderJob, render
from tunes_dagster.rendering.submission import PromptContext, complete_prompt
from tunes_dagster.training.checks import check_tune
from tunes_dagster.training.jobs import TrainingResult
from tunes_dagster.training.layouts import Files
from tunes_dagster.training.loop import train
from tunes_dagster.training.planner import Machine, plan_memory
from tunes_dagster.training.verify import verify

FILE = Path(__file__).parents[2] / "docs" / "examples" / "woodcut.py"
PROMPT = "a photo of ohwx woman in the snow"


def install(folder: Path, value: str = "woodcut:SPEC") -> None:
    """Lay a package out as pip does: its module, and its metadata with the entry point."""
    (folder / "woodcut.py").write_text(FILE.read_text(encoding="utf-8"), encoding="utf-8")
    about = folder / "woodcut-1.0.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: woodcut\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[tunes_dagster.families]\nwoodcut = {value}\n")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    install(folder)
    monkeypatch.syspath_prepend(folder)
    specs.families.cache_clear()
    yield folder
    specs.families.cache_clear()
    sys.modules.pop("woodcut", None)


@pytest.fixture
def entry(package: Path, tmp_path: Path):
    base = make_random_sd15(tmp_path / "woodcut-base")
    overlay = tmp_path / "catalog.yaml"
    fields = {
        "family": "woodcut",
        "repo_id": str(base),
        "licence": "none",
        "native_size": 64,
        "max_pixels": 128 * 128,
        "memory_gb": 1,
        "embedded": "woodcut-1",
        "token": "ohwx",
    }
    overlay.write_text(yaml.safe_dump({"woodcut-1": fields}))
    return load_catalog("production", str(overlay)).resolve("woodcut-1")


def test_it_is_planned_trained_verified_rendered_and_exported(entry, tmp_path, store, make_job):
    settings = Settings(home=tmp_path, profile="production")
    request = TuneRequest(title="Anna", name="woman", base="woodcut-1")
    assert check_tune(request, entry, entry, settings) == request
    machine = Machine("cpu", 8, "float32")
    options = entry.training_options(TrainingOptions(rank=4, batch_size=1))
    plan = plan_memory([options], sizes_of(entry, Path(entry.repo_id)), entry.native_size, machine, 1)
    assert plan.cohort == 1 and plan.needed_gib < 8

    base = load_family(entry, entry.repo_id)
    assert type(base).__name__ == "WoodcutBase"
    result = train([make_job(steps=3)], base, store)["tune_one"]
    assert isinstance(result, TrainingResult), result
    assert result.kohya_key is not None and store.exists(result.kohya_key)
    assert verify(Files(result.weights_key, result.kohya_key), PROMPT, base, store).passed

    asked = PromptRequest(text=PROMPT, settings=RenderSettings(seed=3, steps=2, width=64, height=64))
    context = PromptContext(entry, entry, load_catalog("production"), settings)
    complete = complete_prompt(asked, context)
    assert complete.settings.guidance_scale == 6.0  # the family's own
    room = plan_room(entry, sizes_of(entry), "64x64", machine, "test", 8)
    assert room.pictures >= 1
    job = RenderJob("prompt_1", PROMPT, complete.settings, [(result.weights_key, 1.0)])
    [rendered] = render([job], base, Delivery(store, "out", Silent()))
    assert rendered.failure is None and len(rendered.images) == 1


def test_what_it_cannot_do_is_refused_by_name(entry, tmp_path):
    request = TuneRequest.model_validate(
        {"title": "A", "name": "woman", "base": "woodcut-1", "training": {"kind": "faceid", "dora": True}}
    )
    with pytest.raises(Failure) as refused:
        check_tune(request, entry, entry, Settings(home=tmp_path, profile="production"))
    assert "woodcut" in str(refused.value) and "lora, pti" in str(refused.value)


@pytest.mark.parametrize(
    ("value", "said"), [("woodcut:WoodcutBase", "adds no new model family"), ("woodcut:SD15", "no new")]
)
def test_an_entry_point_that_adds_nothing_is_named(package, value, said):
    install(package, value)
    specs.families.cache_clear()
    with pytest.raises(Failure) as refused:
        specs.families()
    assert refused.value.code == FailureCode.UNKNOWN_BASE and said in refused.value.message


def test_a_family_that_nobody_knows_is_named_with_those_that_are(tmp_path):
    overlay = tmp_path / "catalog.yaml"
    overlay.write_text(
        yaml.safe_dump(
            {
                "odd": {
                    "family": "sd3",
                    "repo_id": "a/b",
                    "licence": "x",
                    "native_size": 64,
                    "max_pixels": 4096,
                    "memory_gb": 1,
                    "embedded": "odd",
                    "token": "ohwx",
                }
            }
        )
    )
    with pytest.raises(Exception, match="'sd3' is no model family; there are sd15, sdxl, flux, flux2"):
        load_catalog("production", str(overlay))
