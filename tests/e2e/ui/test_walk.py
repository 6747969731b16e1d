"""What an operator sees of tunes that are trained, training, failed, cancelled and deleted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.ui.conftest import Dev, wait_for
from tunes_dagster.registry import Tune
from tunes_dagster.service.erase import erase_tunes

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.proof, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def tunes(dev: Dev) -> dict[str, Tune]:
    """One ready with a picture, one that has too few pictures, one that trains for long."""
    made = {
        "ready": dev.submit("ready", prompts=[{"text": "a photo of ohwx mug"}]),
        "few": dev.submit("few", pictures=1, dataset={"captioner": False, "min_pictures": 3}),
        "gone": dev.submit("gone"),
    }
    dev.until(made["few"], "failed")
    for name in ("ready", "gone"):
        dev.until(made[name], "ready", "failed")
        assert dev.registry.tunes.get(made[name].id).status == "ready"
    wait_for(
        lambda: [one.status for one in dev.registry.prompts.rows(tune_id=made["ready"].id)] == ["done"],
        "nothing was rendered",
    )
    erase_tunes(dev.whole, [made["gone"]])
    made["long"] = dev.submit("long", training={"steps": 20_000, "checkpoint_every": 20_000})
    dev.until(made["long"], "training")
    wait_for(lambda: bool(dev.registry.tunes.get(made["long"].id).step), "it never began to train")
    return made


def opened(page: Page, dev: Dev, path: str, text: str) -> None:
    """Open a page and wait until it says something."""
    page.goto(dev.ui + path)
    page.get_by_text(text).first.wait_for()
    page.wait_for_timeout(1500)  # what is drawn after that has no text


def test_the_timeline_shows_what_happened(page: Page, dev: Dev, tunes: dict[str, Tune], shots: Path) -> None:
    opened(page, dev, "/overview", "train_tune")
    assert page.get_by_text("No runs in this time period").count() == 0
    page.screenshot(path=shots / "overview.png")


def test_a_tune_that_trains_is_in_progress_and_the_others_are_not_missing(
    page: Page, dev: Dev, tunes: dict[str, Tune], shots: Path
) -> None:
    opened(page, dev, "/assets/lora?view=partitions", "Materializing (1)")
    assert page.get_by_text("Failed (0)").count() == 1
    page.screenshot(path=shots / "lora-partitions.png")


def test_checks_of_a_trained_tune_have_passed(
    page: Page, dev: Dev, tunes: dict[str, Tune], shots: Path
) -> None:
    opened(page, dev, "/assets/lora?view=checks", "finite_weights")
    page.get_by_text("finite_weights").first.click()
    page.wait_for_timeout(3000)
    page.screenshot(path=shots / "lora-checks.png")
    assert page.get_by_text("Passed").count() >= 1


def test_pictures_are_shown_in_place(page: Page, dev: Dev, tunes: dict[str, Tune], shots: Path) -> None:
    opened(page, dev, f"/assets/lora?view=partitions&partition={tunes['ready'].id}", "samples over training")
    picture = page.locator("img[alt='samples']").first
    picture.wait_for()
    page.screenshot(path=shots / "lora-pictures.png")
    assert picture.evaluate("one => one.complete && one.naturalWidth") > 50


def test_renders_stay_in_step_while_another_tune_trains(
    page: Page, dev: Dev, tunes: dict[str, Tune], shots: Path
) -> None:
    opened(page, dev, "/assets/renders?view=partitions", "Materialized (1)")
    page.screenshot(path=shots / "renders-partitions.png")
    opened(page, dev, "/assets/renders?view=overview", "renders")
    assert page.get_by_text("Unsynced").count() == 0


def test_the_drop_folder_and_the_installation_are_there(page: Page, dev: Dev, shots: Path) -> None:
    opened(page, dev, "/assets/drop_folder?view=checks", "everything_is_usable")
    opened(page, dev, "/asset-groups", "installation")
    page.screenshot(path=shots / "lineage.png")


@pytest.fixture(scope="module", autouse=True)
def ended(dev: Dev, tunes: dict[str, Tune]):  # noqa: ANN201 - a generator
    """Let the long one end."""
    yield
    dev.registry.work.cancel_tune(tunes["long"].id)
    dev.until(tunes["long"], "cancelled")
