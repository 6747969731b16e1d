"""`tunes diff` and `tunes rerun` as typed."""

from __future__ import annotations

import json

from tests.cli.conftest import Tunes


def test_diff_is_a_table_for_people_and_json_for_programs(tunes: Tunes, photos) -> None:
    for title, *more in (("one",), ("two", "--token", "zkqj", "--set", "training.rank=8")):
        said = tunes("train", str(photos), "--name", "mug", "--title", title, "--no-wait", *more)
        assert said.code == 0, said.err
    said = tunes("diff", "1", "2")
    assert said.code == 0 and "zkqj" in said.out and "rank" in said.out and "2 two" in said.out
    rows = json.loads(tunes("diff", "one", "two", "--json").out)
    assert {"kind": "settings", "what": "rank", "first": "4", "second": "8"} in rows
    assert "made the same way" in tunes("diff", "1", "one").out


def test_rerun_says_what_is_missing_and_what_cannot_be_changed(tunes: Tunes, photos) -> None:
    assert tunes("train", str(photos), "--name", "mug", "--no-wait").code == 0
    said = tunes("rerun", "1", "--no-wait")
    assert said.code == 2 and "dataset of" in said.err
    said = tunes("rerun", "1", "--set", "dataset.min_side=8", "--no-wait")
    assert said.code == 2 and "Only training options can be changed, not 'dataset'" in said.err
