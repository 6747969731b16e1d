"""A tune is prepared by plain calls: what the assets of a dataset do, without Dagster."""

from __future__ import annotations

from pathlib import Path

from tests.support.detectors import NoDetector
from tests.support.houses import draw_pictures
from tunes_dagster.core.failures import FailureCode
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.intake.fetch import Fetcher
from tunes_dagster.service.drops import take_in_drops
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.prepare import caption, crop, gather
from tunes_dagster.service.submit import submit_tune


def test_pictures_are_gathered_cropped_and_captioned_by_plain_calls(tmp_path: Path) -> None:
    folder = str(draw_pictures(tmp_path / "mug", 5))
    asked = {"name": "mug", "sources": {"folder": folder}}
    with Installation(Settings(home=tmp_path / "home")) as whole:
        tune = submit_tune(whole, TuneRequest.model_validate(asked), allow_folder=folder)
        manifest, failure = gather(whole, tune, Fetcher(), NoDetector(), Silent())
        assert failure is None and len(manifest.accepted) == 5
        built = crop(whole, tune, NoDetector(), Silent())
        written = caption(whole, tune, lambda: None, Silent())
        assert len(written.rows) == len(built.items) and all(
            "ohwx mug" in row.caption for row in written.rows
        )

        (tmp_path / "few").mkdir()
        (tmp_path / "few" / "torn.png").write_bytes(b"no picture")
        few = str(tmp_path / "few")
        asked = {"name": "mug", "sources": {"folder": few}}
        tune = submit_tune(whole, TuneRequest.model_validate(asked), allow_folder=few)
        manifest, failure = gather(whole, tune, Fetcher(), NoDetector(), Silent())
        assert (
            failure is not None and failure.code == FailureCode.TOO_FEW_PICTURES and len(manifest.rows) == 1
        )


def test_a_dropped_dataset_becomes_a_tune_by_a_plain_call(tmp_path: Path) -> None:
    with Installation(Settings(home=tmp_path, drop_settle_seconds=0)) as whole:
        folder = draw_pictures(Path(whole.settings.resolved_drop_folder) / "bob", 3)
        (folder / "tune.yaml").write_text("name: mug\ntoken: zkqj\n")
        ((tune_id, said),) = take_in_drops(whole)
        assert whole.registry.tunes.get(tune_id).token == "zkqj" and "bob: taken in" in said
        assert take_in_drops(whole) == []
