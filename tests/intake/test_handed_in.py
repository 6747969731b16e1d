"""Whatever people hand in: one bad row, name or file costs that one, and everything is used or named with a reason."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from tests.intake.handed_in import HandedIn, make, pack
from tests.support.detectors import NoDetector
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.store import Store
from tunes_dagster.intake.collect import collect_sources
from tunes_dagster.intake.fetch import Fetcher
from tunes_dagster.intake.manifest import Manifest
from tunes_dagster.intake.sidecars import tidy

_NUMBER = re.compile(r"[pr]\d+q")


def _collected(made: HandedIn, place: Path) -> Manifest:
    request = TuneRequest.model_validate(
        {
            "name": "mug",
            "sources": {"folder": str(pack(made, place).resolve())},
            "dataset": {"min_side": 16, "near_duplicate_bits": 0},
        }
    )
    store = Store(place / "store")
    try:
        with Fetcher([]) as fetcher:
            return collect_sources("tune_1", request, store, fetcher, NoDetector(), Silent())
    except Failure as failure:
        assert failure.code in (FailureCode.TOO_FEW_PICTURES, FailureCode.PICTURE_UNREADABLE), failure
        return Manifest.load(store, "tune_1")


def check(number: int) -> None:
    """Hand in the dataset of a seed and compare; a failing one is `check(seed)` in a shell."""
    made = make(number)
    with tempfile.TemporaryDirectory() as folder:
        manifest = _collected(made, Path(folder))

    def number_of(name: str) -> str:
        return _NUMBER.findall(name)[0]

    told = "\n".join(
        [*manifest.findings(), *manifest.ignored, *(f"{r.name}: {r.reason}" for r in manifest.rows)]
    )
    used = {number_of(row.name): row for row in manifest.accepted}
    assert set(used) == set(made.good), f"seed {number}: a good picture is not used, or a bad one is"
    lost = {number_of(row.name): row for row in manifest.rows if row.verdict == "rejected"}
    assert set(lost) == made.bad and all(row.reason and row.remedy for row in lost.values())
    assert {number_of(row.name) for row in manifest.prior} == made.prior
    for caption in made.captions:
        row = used.get(caption.picture)
        there = row is not None and row.caption == tidy(caption.text)
        assert there or not caption.certain or not row, (
            f"seed {number}: {caption} is not at its picture: {told}"
        )
        if row and not there:
            same = [one.number for one in made.captions if one.picture == caption.picture]
            assert row.caption is None or any(one in row.caption for one in same), (
                f"{row.caption} is another's"
            )
            assert "not used" in told, f"seed {number}: {caption} is not used and not named: {told}"
    captioned = {caption.picture for caption in made.captions}
    assert not [row.name for key, row in used.items() if row.caption and key not in captioned]
    assert not [thing for thing in made.named if thing not in told], (
        f"seed {number}: {made.named} are not named: {told}"
    )


@seed(20)
@settings(max_examples=16, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_everything_handed_in_is_used_or_named(number: int) -> None:
    check(number)


@pytest.mark.proof
@settings(max_examples=5000, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_everything_handed_in_is_used_or_named_thousands_of_times(number: int) -> None:
    check(number)
