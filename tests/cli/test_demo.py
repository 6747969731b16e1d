"""`tunes demo` around a pipeline that is played: what it asks for, and the sheet and page it leaves."""

from __future__ import annotations

import io
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Tunes
from tunes_dagster.cli.installation import Installation
from tunes_dagster.intake.captions import CaptionRow, CaptionTable
from tunes_dagster.intake.training_set import TrainingItem, TrainingSet


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "PNG")
    return buffer.getvalue()


def play(installation: Installation) -> None:
    """Do what the pipeline would, quickly: training set, captions, weights, renders."""
    registry, store = installation.registry, installation.store
    tune = registry.tunes.rows()[0]
    key = store.write_blob(png("green"), ".png")
    item = TrainingItem(
        hash="ab" * 32,
        picture="ab" * 32,
        key=key,
        name="nova-1.png",
        kind="full",
        bucket=(64, 64),
        crop=(0, 0, 64, 64),
    )
    TrainingSet(tune_id=tune.id, class_name="woman", resolution=64, seed=0, items=[item]).save(store)
    row = CaptionRow(
        name=item.name, caption="a photo of ohwx woman, green", source="captioner", hash=item.hash
    )
    CaptionTable(tune_id=tune.id, token="ohwx", class_name="woman", rows=[row]).save(store, "first")
    weights = store.write_bytes(f"tunes/{tune.id}/lora/1/lora.safetensors", b"weights")
    store.write_bytes(f"tunes/{tune.id}/lora/1/loss.png", png("white"))
    for kind in ("prepare", "train", "finish"):
        work = registry.work.claim(kind, tune.id, f"run-{kind}", origin="cli")
        registry.work.finish(work.id, f"run-{kind}", result={"weights_key": weights, "seconds": 3.0})
    while batches := registry.groups.make_batches(registry.now(), 0.0, 100):
        for batch in batches:
            work = registry.work.claim("render", batch.id, batch.id, origin="cli")
            for prompt in registry.prompts.rows(batch_id=batch.id):
                image = png("red" if prompt.tune_id else "blue")
                image_key = store.write_bytes(f"batches/{batch.id}/1/{prompt.id}.png", image)
                registry.prompts.done(prompt.id, work.id, batch.id, [image_key])
            registry.work.finish(work.id, batch.id)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, installation: Installation) -> None:
    def drive(whole: Installation, until: Callable[[], bool], report: object, *, instance: object) -> None:
        play(installation)
        assert until()

    module = types.ModuleType("tunes_dagster.pipeline.inprocess")
    module.open_instance = lambda settings: None  # type: ignore[attr-defined]
    module.daemon_is_alive = lambda instance: False  # type: ignore[attr-defined]
    module.drive = drive  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tunes_dagster.pipeline.inprocess", module)


def test_the_demo_ends_with_a_sheet_a_page_and_the_next_command(
    tunes: Tunes, installation: Installation, played: None
) -> None:
    said = tunes("demo")
    assert said.code == 0, said.err
    assert "minutes on two cores" in said.out
    assert 'tunes render "a photo of ohwx woman' in said.out
    folder = installation.settings.resolved_home / "demo" / "nova"
    assert str(folder / "before-after.png") in said.out
    assert len(list((folder / "pictures").glob("*.png"))) == 8
    with Image.open(folder / "before-after.png") as sheet:
        pixels = set(sheet.convert("RGB").getdata())
    assert {(255, 0, 0), (0, 0, 255)} <= pixels  # with the tune, and without
    page = (folder / "report.html").read_text()
    assert "a photo of ohwx woman, green" in page
    assert "page/loss.png" in page
    for source in __import__("re").findall(r'src="([^"]+)"', page):
        assert (folder / source).is_file(), source
    row = installation.registry.objects.tune_named("local", 1)
    assert (row.origin, row.request["sources"]["folder"]) == ("demo", str(folder / "pictures"))
    prompts = installation.registry.prompts.rows()
    assert len(prompts) == 12
    seeds = {prompt.text: set() for prompt in prompts}
    for prompt in prompts:
        seeds[prompt.text].add(prompt.settings["seed"])
    assert all(len(both) == 1 for both in seeds.values())  # the same seed before and after


def test_the_demo_runs_on_either_base_each_in_its_own_folder(
    tunes: Tunes, installation: Installation, played: None
) -> None:
    said = tunes("demo", "--base", "flux", "--steps", "7")
    assert said.code == 0, said.err
    row = installation.registry.objects.tune_named("local", 1)
    assert (row.base_id, row.request["training"]["steps"]) == ("tiny-flux", 7)
    plain = [prompt for prompt in installation.registry.prompts.rows() if not prompt.tune_id]
    assert {prompt.base for prompt in plain} == {"tiny-flux"}
    folder = installation.settings.resolved_home / "demo" / "nova-flux"
    assert "ohwx woman on tiny-flux" in (folder / "report.html").read_text()
    assert not (folder.parent / "nova").exists()
    said = tunes("demo", "--base", "sd3")
    assert (said.code, "sdxl or flux" in said.err) == (2, True)


def test_an_unknown_subject_is_refused(tunes: Tunes) -> None:
    said = tunes("demo", "--subject", "nobody")
    assert (said.code, "There is no subject 'nobody'" in said.err, "nova" in said.err) == (2, True, True)


def test_noise_goes_to_the_log_and_the_console_stays(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from tunes_dagster.cli.output import noise_to, say\n"
        "say('before')\n"
        f"with noise_to(pathlib.Path({str(tmp_path / 'log')!r})):\n"
        "    print('noise'); print('more noise', file=sys.stderr); os.system('echo noise of a child')\n"
        "    say('shown')\n"
        "say('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["before", "shown", "after"]
    assert done.stderr == ""
    log = (tmp_path / "log").read_text()
    assert "noise of a child" in log
    assert "more noise" in log
