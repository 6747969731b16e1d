"""Training again and comparing: the same weights on the same device, and a table of what was changed."""

from __future__ import annotations

import hashlib

import pytest
from safetensors.torch import load

from tests.dagster.test_pipeline import drive_until, materialization
from tunes_dagster.core.failures import Failure
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.families.sdxl import SdxlBase
from tunes_dagster.intake.captions import CaptionTable, set_captions
from tunes_dagster.service import compare as comparison
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.rerun import rerun


def tensors_hash(house, tune_id: str) -> str:
    """SHA-256 over names and numbers of a tune's weights; the header, which holds its title, is left out."""
    result = house.registry.tunes.get(tune_id).result
    digest = hashlib.sha256()
    for name, tensor in sorted(load(house.store.read_bytes(result["weights_key"])).items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def again(house, tune_id: str, **changes):
    return rerun(
        Installation(house.settings, registry=house.registry, store=house.store, catalog=load_catalog()),
        house.registry.tunes.get(tune_id),
        changes,
    )


def difference(house, first, second) -> set[tuple[str, str, str, str]]:
    rows = [house.registry.tunes.get(tune.id) for tune in (first, second)]
    return {(one.kind, one.what, one.first, one.second) for one in comparison.differences(*rows, house.store)}


@pytest.mark.slow
def test_again_gives_the_same_weights_and_a_change_gives_others(house, monkeypatch):
    monkeypatch.setenv("TUNES_REPORT_CHECKPOINTS", "0")
    first = house.submit("bob", training={"prior_weight": 0.0})
    drive_until(house, first.id, status=("trained",))

    def never(*args, **kwargs):
        raise AssertionError("a picture was encoded again")

    monkeypatch.setattr(SdxlBase, "encode_images", never)
    same = again(house, first.id)
    assert same.status == "prepared" and same.title == "bob (again)" and same.id != first.id
    drive_until(house, same.id, status=("trained", "failed"))
    assert tensors_hash(house, same.id) == tensors_hash(house, first.id)
    assert difference(house, first, same) == set()
    from tunes_dagster.assets.names import LORA

    shown = materialization(house, LORA, same.id)
    assert shown["pictures_cached"] == "4/4"

    # Captions as they are now, and one option.
    table = CaptionTable.load(house.store, first.id)
    row = next(r for r in table.rows if r.hash in table.texts())
    trained = {item["caption"] for item in comparison.recipe_of(same, house.store)["pictures"]}
    row = next(r for r in table.rows if r.caption in trained)
    set_captions(first.id, {row.name: "a photo of ohwx mug on the moon"}, house.store)
    other = again(house, first.id, steps=7)
    drive_until(house, other.id, status=("trained", "failed"))
    assert house.registry.tunes.get(other.id).result["steps"] == 7
    assert tensors_hash(house, other.id) != tensors_hash(house, first.id)
    seen = difference(house, first, other)
    assert ("settings", "steps", "12", "7") in seen
    assert ("captions", row.name, row.caption, "a photo of ohwx mug on the moon") in seen
    assert {kind for kind, *_ in seen} == {"settings", "captions"}


def test_what_cannot_be_trained_again_is_refused_by_name(paper_house):
    house = paper_house
    tune = house.submit("bob")
    with pytest.raises(Failure, match="dataset of 'bob' is not there"):
        again(house, tune.id)
    for changes, named in (({"rnak": 8}, "rnak"), ({"rank": 3}, "rank"), ({"resolution": 64}, "resolution")):
        with pytest.raises(Failure, match=named):
            again(house, tune.id, **changes)
    other = house.submit("eve", token="zkqj", training={"rank": 8})
    assert {("subject", "token", "ohwx", "zkqj"), ("settings", "rank", "4", "8")} <= difference(
        house, tune, other
    )
