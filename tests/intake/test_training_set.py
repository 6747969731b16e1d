from __future__ import annotations

import io
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.intake.conftest import png
from tests.intake.test_judge import seen
from tests.support.detectors import NoDetector
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import DatasetOptions
from tunes_dagster.core.store import Store
from tunes_dagster.intake.buckets import bucket_shapes, bucket_step, choose_bucket, crop_for, face_crop
from tunes_dagster.intake.faces import load_detector
from tunes_dagster.intake.judge import judge
from tunes_dagster.intake.manifest import Examined, Manifest
from tunes_dagster.intake.training_set import (
    Framing,
    TrainingSet,
    build_training_set,
    choose_held_out,
    leaks,
    number_held_out,
)
from tunes_dagster.tiny.world import draw_shot, draw_subject, face_box, random_shot, shots_of
from tunes_dagster.tiny.world.things import Thing


def manifest_of(pictures: list[Examined], options: DatasetOptions | None = None) -> Manifest:
    rows, _ = judge(pictures, options or DatasetOptions(), "mug")
    return Manifest(tune_id="tune_1", class_name="mug", detector="none", rows=rows)


def build(
    manifest: Manifest,
    store: Store,
    seed: int = 0,
    resolution: int = 512,
    class_name: str = "mug",
    **options: object,
) -> TrainingSet:
    return build_training_set(
        manifest,
        Framing(DatasetOptions.model_validate(options), resolution, class_name),
        store,
        NoDetector(),
        seed,
        Silent(),
    )


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([64, 96, 128, 192, 256, 512, 640, 768, 1000, 1024, 2048]), st.data())
def test_shapes_and_crops(resolution: int, data: st.DataObject) -> None:
    shapes = bucket_shapes(resolution)
    step = bucket_step(resolution)
    assert len(shapes) <= 16
    assert len(set(shapes)) == len(shapes)
    for width, height in shapes:
        assert width % step == height % step == 0
        assert width * height <= resolution**2
        assert (height, width) in shapes
    width, height = data.draw(st.integers(16, 5000)), data.draw(st.integers(16, 5000))
    bucket = choose_bucket(width, height, resolution)
    off = abs(math.log(bucket[0] / bucket[1] * height / width))
    assert all(off <= abs(math.log(w / h * height / width)) + 1e-9 for w, h in shapes)
    face = (data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1)), 9, 9)
    for focus in ([], [face]):
        left, top, right, bottom = crop_for(width, height, bucket, focus)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert right - left == width or bottom - top == height  # as large as the picture allows
        wanted = bucket[0] / bucket[1]
        assert abs((right - left) - (bottom - top) * wanted) <= 1 + wanted
    left, top, right, bottom = face_crop(width, height, face)
    assert 0 <= left < right <= width
    assert right - left == bottom - top


def test_crops_keep_the_face() -> None:
    left, _, right, _ = crop_for(1600, 600, (512, 512), [(1400, 200, 100, 100)])
    assert left <= 1400
    assert right == 1600
    assert crop_for(1600, 600, (512, 512)) == (500, 0, 1100, 600)


def test_common_photos_at_sdxl_size() -> None:
    assert choose_bucket(4000, 3000, 1024) == (1152, 896)
    assert choose_bucket(3024, 4032, 1024) == (896, 1152)
    assert choose_bucket(1920, 1080, 1024) == (1344, 768)
    assert choose_bucket(800, 800, 1024) == (1024, 1024)
    assert choose_bucket(128, 128, 128) == (128, 128)


@pytest.mark.parametrize(
    ("pictures", "asked", "held_out"),
    [
        (1, None, 0),
        (4, None, 0),
        (5, None, 1),
        (8, None, 1),
        (15, None, 1),
        (16, None, 2),
        (100, None, 12),
        (8, 0, 0),
        (8, 3, 3),
        (3, 10, 2),
        (1, 1, 0),
    ],
)
def test_how_many_are_held_out(pictures: int, asked: int | None, held_out: int) -> None:
    assert number_held_out(pictures, asked) == held_out


def test_the_choice_depends_on_content_and_seed_only(store: Store) -> None:
    pictures = [seen(n) for n in range(16)]
    rows = manifest_of(pictures).rows
    chosen = choose_held_out(rows, 3, 0)
    assert choose_held_out(rows[::-1], 3, 0) == chosen
    assert any(choose_held_out(rows, 3, seed) != chosen for seed in range(1, 5))
    more = manifest_of([*pictures, seen(30)]).rows
    assert len(choose_held_out(more, 3, 0) & chosen) >= 2  # a new picture moves at most one of them


def test_warned_pictures_are_held_out_last() -> None:
    rows = manifest_of([seen(n, sharpness=0.1 if n else 0.9) for n in range(8)]).rows
    assert choose_held_out(rows, 1, 5) == {rows[0].hash}


def test_copies_stay_on_one_side(store: Store) -> None:
    pictures = [seen(n) for n in range(9)]
    twins = [
        seen(n, name=f"twin {n}", hash=f"t{n}", pixels_hash=f"t{n}", key=f"blobs/t{n}.png") for n in range(9)
    ]
    manifest = manifest_of(pictures + twins, DatasetOptions(near_duplicate_bits=0))
    assert len(manifest.accepted) == 18
    for seed in range(6):
        built = build(manifest, store, seed=seed, hold_out=4, near_duplicate_bits=0)
        assert len(built.held_out) == 4
        assert leaks(built) == []


def test_the_check_finds_leaks(store: Store) -> None:
    twin = seen(0, name="twin.png", hash="t", pixels_hash="t")
    built = build(
        manifest_of([*(seen(n) for n in range(8)), twin], DatasetOptions(near_duplicate_bits=0)), store
    )
    for item in built.items:
        item.held_out = item.name == "twin.png"
    assert leaks(built) == ["twin.png is held out and nearly the same as 0.png"]
    built.items.append(built.items[3].model_copy(update={"held_out": True, "hash": "crop"}))
    assert len(leaks(built)) == 2


def test_what_is_built_and_saved(store: Store) -> None:
    pictures = [seen(n, caption="hi" if n == 1 else None) for n in range(7)]
    pictures[2] = seen(2, width=600, height=900)
    built = build(manifest_of(pictures), store)
    assert [i.name for i in built.items] == [p.name for p in pictures]
    assert (len(built.training), len(built.held_out)) == (6, 1)
    assert built.items[1].caption == "hi"
    assert {i.bucket for i in built.items} == {(576, 448), (384, 640)}
    assert TrainingSet.load(store, "tune_1") == built
    assert build(manifest_of(pictures), store) == built


def test_face_crops(store: Store) -> None:
    pictures = [seen(n, width=1000, height=800, faces=[(400, 200, 150, 180)]) for n in range(6)]
    pictures[1] = seen(1, faces=[])
    pictures[2] = seen(2, faces=[(5, 5, 20, 20)])  # too small to crop
    pictures[3] = seen(3, faces=[(20, 20, 500, 400)])  # fills the picture already
    built = build(manifest_of(pictures), store, face_crop=True, class_name="woman")
    faces = [i for i in built.items if i.kind == "face"]
    assert [i.name for i in faces] == ["0.png (face)", "4.png (face)", "5.png (face)"]
    assert {i.bucket for i in faces} == {(512, 512)}
    left, top, right, bottom = faces[0].crop
    assert left <= 400 < 550 <= right
    assert top <= 200 < 380 <= bottom
    assert len({i.hash for i in built.items}) == len(built.items)
    for face in faces:  # a crop is on the side of its picture
        assert face.held_out == next(i for i in built.items if i.hash == face.picture).held_out
    assert leaks(built) == []
    assert [i.kind for i in build(manifest_of(pictures), store, class_name="woman").items] == ["full"] * 6


def test_nothing_accepted_is_said_with_reasons(store: Store) -> None:
    with pytest.raises(Failure) as caught:
        build(manifest_of([seen(1, blank=True)]), store)
    assert caught.value.code == FailureCode.TOO_FEW_PICTURES
    assert caught.value.facts == {"reasons": ["1.png: It shows one flat colour. Hand in another picture."]}


def test_another_detector_looks_again(store: Store) -> None:
    class Finder(NoDetector):
        name = "finder"

        def detect(self, image: Image.Image) -> list:
            return [(10, 10, 20, 20)]

    key = store.write_blob(png(1, 200, 200), ".png")
    manifest = manifest_of([seen(1, key=key, width=200, height=200, faces=[])])
    options = DatasetOptions(face_crop=True, min_side=16)
    built = build_training_set(manifest, Framing(options, 128, "mug"), store, Finder(), 0, Silent())
    assert [i.kind for i in built.items] == ["full", "face"]


def test_the_shipped_detectors_find_a_real_face_and_none_in_a_pattern() -> None:
    import matplotlib

    image = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    detector = load_detector()
    (face,) = detector.detect(image)
    x, y, w, h = face
    assert 100 < x + w / 2 < 350
    assert 100 < y + h / 2 < 350
    large = image.resize((image.width * 3, image.height * 3))
    assert len(detector.detect(large)) == 1
    assert detector.detect(Image.new("RGB", (300, 300), "white")) == []
    with pytest.raises(Failure, match="face detector.s model that the settings name is missing"):
        load_detector("/nowhere/yunet.onnx")


def further_away(name: str, count: int, size: int = 256) -> list[tuple[Image.Image, tuple[float, ...]]]:
    """Drawn pictures of a subject that fills half of them, and where its face is."""
    shots = [replace(shot, pose=replace(shot.pose, zoom=0.5)) for shot in shots_of(name, count, seed=9)]
    return [(draw_shot(shot, size, 2), face_box(shot, size) or ()) for shot in shots]


def test_faces_of_drawn_people_are_cropped_and_masked(store: Store) -> None:
    detector = load_detector()
    drawn = further_away("nova", 6)
    pictures = []
    for n, (image, _) in enumerate(drawn):
        data = io.BytesIO()
        image.save(data, "PNG")
        key = store.write_blob(data.getvalue(), ".png")
        pictures.append(seen(n, key=key, width=256, height=256, faces=detector.detect(image)))
    manifest = manifest_of(pictures)
    options = DatasetOptions.model_validate({"face_crop": True, "mask": "face"})
    built = build_training_set(manifest, Framing(options, 128, "woman"), store, detector, 0, Silent())
    assert [item.kind for item in built.items] == ["full", "face"] * 6
    for item, (_, (x, y, width, height)) in zip(built.items[1::2], drawn, strict=True):
        left, top, right, bottom = item.crop
        assert left <= x and top <= y and right >= x + width and bottom >= y + height
        assert right - left < 160  # it is a crop
    for item, (_, (x, y, width, height)) in zip(built.items[::2], drawn, strict=True):
        left, top, across, down = item.mask_box
        assert left <= x and top <= y and left + across >= x + width and top + down >= y + height


def test_drawn_pictures_without_exactly_one_face_are_refused_when_one_is_required() -> None:
    detector = load_detector()
    [(alone, _)] = further_away("fern", 1)
    chair = draw_shot(random_shot(random.Random(2), Thing("chair", "red")), 256, 2)
    two = Image.new("RGB", (512, 256))
    two.paste(alone, (0, 0))
    two.paste(draw_subject("nova", 1, seed=9, size=256)[0][0], (256, 0))
    pictures = [
        seen(n, width=image.width, height=image.height, faces=detector.detect(image))
        for n, image in enumerate((alone, chair, two))
    ]
    rows, _ = judge(pictures, DatasetOptions(require_face=True), "man")
    assert [row.verdict for row in rows] == ["accepted", "rejected", "rejected"]
    assert "No face was found." in rows[1].reason and "2 faces were found." in rows[2].reason


def test_one_picture_is_made_into_many_that_are_all_of_it(tmp_path: Path) -> None:
    manifest = manifest_of([seen(1)])
    person = build(manifest, Store(tmp_path), class_name="woman", one_picture=True)
    mug = build(manifest, Store(tmp_path), class_name="mug", one_picture=True)
    assert len(person.items) > len(mug.items) >= 5
    for built in (person, mug):
        assert not built.held_out and not leaks(built)
        assert len({item.hash for item in built.items}) == len(built.items)
        assert {item.picture for item in built.items} == {manifest.rows[0].hash}
        row = manifest.rows[0]
        for item in built.items:
            left, top, right, bottom = item.crop
            assert 0 <= left < right <= row.width and 0 <= top < bottom <= row.height
    assert any(item.mirrored for item in person.items)
    assert not any(item.mirrored for item in mug.items)  # the print on a mug has one right side
    assert len(build(manifest, Store(tmp_path), class_name="mug").items) == 1
    several = build(manifest_of([seen(1), seen(2)]), Store(tmp_path), class_name="mug", one_picture=True)
    assert len(several.items) == 2


def test_masks_come_from_files_or_faces(tmp_path: Path) -> None:
    masked = seen(1).model_copy(update={"mask_key": "blobs/mask.png", "faces": [(10, 10, 20, 20)]})
    manifest = manifest_of([masked, seen(2).model_copy(update={"faces": []})])
    assert [item.mask_key for item in build(manifest, Store(tmp_path)).items] == [None, None]
    by_file = build(manifest, Store(tmp_path), mask="file")
    assert [item.mask_key for item in by_file.items] == ["blobs/mask.png", None]
    by_face = build(manifest, Store(tmp_path), mask="face")
    left, top, width, height = by_face.items[0].mask_box
    assert left <= 10 and top <= 10 and width > 20 and height > 20
    assert by_face.items[1].mask_box is None


def test_faces_are_restored_before_training(tmp_path: Path) -> None:
    class Bright:
        """Stands for a restorer: what it returns is what is trained on."""

        name = "bright-1"

        def restore(self, image: Image.Image) -> Image.Image:
            return Image.new("RGB", image.size, "white")

    store = Store(tmp_path)
    key = store.write_blob(png(1), ".png")
    with_face = seen(1).model_copy(update={"key": key, "faces": [(10, 10, 20, 20)]})
    without = seen(2).model_copy(update={"key": key, "faces": []})
    built = build_training_set(
        manifest_of([with_face, without]),
        Framing(DatasetOptions(face_correct=True), 512, "woman"),
        store,
        NoDetector(),
        0,
        Silent(),
        Bright(),
    )
    first, second = built.items
    assert first.key != key and second.key == key
    assert first.picture == with_face.hash  # the picture is still the one that came in
    restored = Image.open(io.BytesIO(store.read_bytes(first.key)))
    assert restored.getpixel((5, 5)) == (255, 255, 255)
