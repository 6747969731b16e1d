from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.intake.conftest import png
from tests.intake.test_judge import seen
from tests.intake.test_training_set import build, manifest_of
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.store import Store
from tunes_dagster.intake.captions import (
    CaptionTable,
    changed_items,
    edit_caption,
    set_captions,
    write_captions,
)
from tunes_dagster.intake.companions import asked_for
from tunes_dagster.intake.edits import read_csv
from tunes_dagster.intake.manifest import Manifest
from tunes_dagster.intake.subject import holds_subject, template, with_subject
from tunes_dagster.intake.training_set import TrainingSet
from tunes_dagster.intake.varying import what_varies


class Parrot:
    """A captioner that says the same and counts."""

    name = "parrot"

    def __init__(self, says: str = "a mug on a table") -> None:
        self.says = says
        self.asked = 0

    def caption(self, images: list[Image.Image]) -> list[str]:
        self.asked += len(images)
        return [self.says] * len(images)


class Heard(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def prepared(store: Store, number: int = 6, **options: object) -> tuple[Manifest, TrainingSet]:
    pictures = [
        seen(
            n,
            key=store.write_blob(png(n), ".png"),
            width=96,
            height=80,
            faces=[],
            caption="a red mug" if n == 1 else None,
        )
        for n in range(number)
    ]
    manifest = manifest_of(pictures)
    return manifest, build(manifest, store, resolution=64, **options)


def write(
    store: Store, captioner: Parrot | None = None, captions: dict[str, str] | None = None, **more: object
) -> CaptionTable:
    manifest, training_set = prepared(store, **more.pop("prepare", {}))  # type: ignore[arg-type]
    request = TuneRequest.model_validate({"name": "mug", "captions": captions or {}, **more})
    return write_captions("tune_1", training_set, manifest, request, store, captioner, Silent())


def told(table: CaptionTable) -> dict[str, tuple[str, str]]:
    return {row.name: (row.caption, row.source) for row in table.rows}


def test_precedence(store: Store) -> None:
    write(store, Parrot(), captions={"2.png": "from the request", "3.png": "from the request"})
    edit_caption("tune_1", "3.png", "from a person", store)
    table = write(store, Parrot(), captions={"2.png": "from the request", "3.png": "from the request"})
    assert told(table) == {
        "0.png": ("ohwx mug on a table", "captioner"),
        "1.png": ("a red ohwx mug", "sidecar"),
        "2.png": ("a photo of ohwx mug, from the request", "request"),
        "3.png": ("a photo of ohwx mug, from a person", "edit"),
        "4.png": ("ohwx mug on a table", "captioner"),
        "5.png": ("ohwx mug on a table", "captioner"),
    }
    assert told(write(store, None))["0.png"] == ("a photo of ohwx mug", "template")


def test_a_default_caption_stands_for_those_that_did_not_come(store: Store) -> None:
    parrot = Parrot()
    table = write(store, parrot, captions={"2.png": "from the request"}, default_caption="a mug at work")
    assert told(table)["0.png"] == ("ohwx mug at work", "default")
    assert told(table)["1.png"] == ("a red ohwx mug", "sidecar") and told(table)["2.png"][1] == "request"
    assert parrot.asked == 0


def test_request_captions_by_hash_stem_and_file_name(store: Store) -> None:
    _, training_set = prepared(store)
    by_hash = training_set.items[0].hash
    table = write(store, captions={by_hash: "one", "4": "two", "nobody.png": "three"})
    assert "one" in told(table)["0.png"][0]
    assert "two" in told(table)["4.png"][0]


def test_request_captions_find_their_pictures_however_their_names_are_written(store: Store) -> None:
    manifest, training_set = prepared(store)
    names = ["Caf\u00e9.PNG", "a/one.jpg", "b/one.jpg", "deep/Two.jpg", "x.png", "three.webp"]
    for item, name in zip(training_set.items, names, strict=True):
        item.name = name
    lost = manifest.rows[0].model_copy(update={"name": "lost.png", "verdict": "rejected", "hash": "0" * 64})
    manifest.rows.append(lost)
    captions = {
        "cafe\u0301.png": "one",
        "one.jpg": "never",
        "deep\\two.JPG": "two",
        "X": "three",
        "x.PNG": "four",
        "THREE": "five",
        "Lost": "six",
        "nobody": "seven",
    }
    found, told = asked_for(captions, training_set.items, manifest)
    by_name = {item.name: found.get(item.hash) for item in training_set.items}
    assert by_name == dict(zip(names, ["one", None, None, "two", "four", "five"], strict=True))
    said = {text.split("'")[1]: text.split(": ", 1)[1] for text in told}
    assert said == {
        "one.jpg": "it could be of a/one.jpg or of b/one.jpg.",
        "X": "there is no such picture.",
        "Lost": "its picture was not accepted.",
        "nobody": "there is no such picture.",
    }


def test_the_captioner_is_asked_once_per_picture(store: Store) -> None:
    parrot = Parrot()
    write(store, parrot)
    assert parrot.asked == 5
    write(store, parrot)
    assert parrot.asked == 5
    # Another token or class changes the sentence, not what was seen.
    assert told(write(store, parrot, token="sks", name="cup"))["0.png"][0] == "a mug on a table".replace(
        "a mug", "sks cup"
    )
    assert parrot.asked == 5
    other = Parrot("a cup")
    other.name = "other"
    write(store, other)
    assert other.asked == 5


def test_editing_one_caption_changes_one_row_only(store: Store) -> None:
    before = write(store, Parrot())
    after = edit_caption("tune_1", "4.png", "ohwx mug in the rain", store)
    changed = changed_items(before, after)
    assert changed == [row.hash for row in before.rows if row.name == "4.png"]
    assert [b for b, a in zip(before.rows, after.rows, strict=True) if b != a] == before.find("4.png")
    assert before.hash != after.hash
    assert changed_items(after, after) == []
    assert changed_items(None, after) == [row.hash for row in after.rows]
    again = write(store, Parrot())  # preparing again keeps it
    assert again.rows == after.rows
    assert again.version == after.version


def test_versions(store: Store) -> None:
    assert write(store).version == 1
    assert write(store).version == 1  # nothing changed, no version
    assert edit_caption("tune_1", "0.png", "ohwx mug, blue", store).version == 2
    table = set_captions("tune_1", {"0.png": "ohwx mug, green", "1.png": "ohwx mug, red"}, store)
    assert [v.number for v in table.versions] == [1, 2, 3]
    assert [v.why for v in table.versions] == ["written while preparing", "edited", "edited"]
    texts = [store.read_text(f"tunes/tune_1/captions/captions-v{n}.csv") for n in (1, 2, 3)]
    assert "blue" in texts[1]
    assert "blue" not in texts[2]
    assert texts[2] == store.read_text("tunes/tune_1/captions/captions.csv")
    assert CaptionTable.load(store, "tune_1") == table


@pytest.mark.parametrize("style", ["plain", "excel"])
def test_editing_the_file_by_hand(store: Store, style: str) -> None:
    before = write(store)
    rows = list(csv.DictReader(io.StringIO(store.read_text(before.key))))
    rows[2]["caption"] = "une tasse à la plage"
    del rows[5]  # a deleted row keeps its caption
    rows[4]["caption"] = ""  # so does an emptied one
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=";" if style == "excel" else ",")
    writer.writeheader()
    writer.writerows(rows)
    store.write_bytes(before.key, text.getvalue().encode("cp1252" if style == "excel" else "utf-8-sig"))
    loaded = CaptionTable.load(store, "tune_1")
    assert told(loaded)["2.png"] == ("a photo of ohwx mug, une tasse à la plage", "edit")
    assert changed_items(before, loaded) == [before.rows[2].hash]
    written = write(store)
    assert written.rows == loaded.rows
    assert written.version == 2
    assert set(written.texts()) == {row.hash for row in before.rows}


def test_a_file_broken_by_hand_loses_nothing(store: Store) -> None:
    before = write(store)
    for junk in (b"", b"\x00\xff\x00", b"name,caption\nx,y\n", b"hash;caption\n;;\n"):
        store.write_bytes(before.key, junk)
        if b"x" in junk or b"\xff" in junk:  # an edit that cannot be read is refused, never passed over
            with pytest.raises(Failure, match=r"captions.csv cannot be taken: line \d"):
                CaptionTable.load(store, "tune_1")
        else:
            assert CaptionTable.load(store, "tune_1").rows == before.rows


def test_edits_of_a_picture_that_is_left_out_come_back_with_it(store: Store) -> None:
    write(store)
    edit_caption("tune_1", "5.png", "ohwx mug on the moon", store)
    without = write(store, prepare={"number": 5})
    assert "5.png" not in told(without)
    assert told(write(store))["5.png"] == ("ohwx mug on the moon", "edit")


def test_edits_that_cannot_be_meant(store: Store) -> None:
    table = write(store)
    with pytest.raises(Failure, match="is called 'nobody.png'") as caught:
        edit_caption("tune_1", "nobody.png", "x", store)
    assert "0.png" in caught.value.remedy
    with pytest.raises(Failure, match="empty"):
        edit_caption("tune_1", "0.png", " \n", store)
    with pytest.raises(Failure, match="more than one"):  # the hashes of these rows begin alike
        edit_caption("tune_1", "000000", "x", store)
    assert table.find(table.rows[3].hash) == [table.rows[3]]
    with pytest.raises(FileNotFoundError):
        edit_caption("tune_2", "0.png", "x", store)


def test_held_out_pictures_and_face_crops_have_captions(store: Store) -> None:
    key = store.write_blob(png(1, 400, 400), ".png")
    pictures = [
        seen(n, key=key, width=400, height=400, faces=[(150, 150, 60, 60)], caption="a woman outdoors")
        for n in range(6)
    ]
    manifest = manifest_of(pictures)
    built = build(manifest, store, resolution=128, face_crop=True, class_name="woman")
    request = TuneRequest(name="woman")
    table = write_captions("tune_1", built, manifest, request, store, None, Silent())
    assert len(table.rows) == 12
    assert told(table)["0.png"] == ("ohwx woman outdoors", "sidecar")
    assert told(table)["0.png (face)"] == ("a close-up photo of ohwx woman", "template")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a woman on a beach", "ohwx woman on a beach"),
        ("ohwx on a beach", "ohwx woman on a beach"),
        ("OHWX Woman, smiling", "ohwx woman, smiling"),
        ("[trigger] on a beach", "ohwx woman on a beach"),
        ("a photo of ohwx woman", "a photo of ohwx woman"),
        ("on a beach", "a photo of ohwx woman, on a beach"),
        ("the girl and a dog", "ohwx woman and a dog"),
        ("womanly", "a photo of ohwx woman, womanly"),
        ("", "a photo of ohwx woman"),
        ("ohwx, a tall woman", "ohwx, a tall woman"),
    ],
)
def test_token_and_class_are_put_where_one_would_expect_them(caption: str, expected: str) -> None:
    assert with_subject(caption, "ohwx", "woman") == expected


def test_styles_and_other_classes() -> None:
    assert with_subject("a mountain lake.", "ohwx", "style") == "a mountain lake, in ohwx style"
    assert with_subject("", "ohwx", "style") == template("ohwx", "style") == "a picture in ohwx style"
    assert with_subject("a puppy in snow", "sks", "dog") == "sks dog in snow"
    assert with_subject("a (red) [car]", "c-3", "vintage car") == "a (red) [c-3 vintage car]"


@settings(max_examples=80, deadline=None)
@given(
    st.text(max_size=40),
    st.from_regex(r"[a-z0-9_-]{1,8}", fullmatch=True),
    st.sampled_from(["woman", "dog", "style", "coffee mug"]),
)
def test_every_caption_holds_both_and_stays_as_it_is(text: str, token: str, class_name: str) -> None:
    once = with_subject(text, token, class_name)
    assert holds_subject(once, token, class_name)
    assert with_subject(once, token, class_name) == once


def test_tables_as_spreadsheets_save_them() -> None:
    assert read_csv('\ufeffname\tcaption\tsource\thash\na\t"x, y"\tedit\th1\n'.encode()) == {"h1": "x, y"}
    assert read_csv("Hash;Caption\nh1;ein Krug\n".encode("utf-16")) == {"h1": "ein Krug"}


@pytest.mark.parametrize(
    ("class_name", "said", "kept"),
    [
        (
            "woman",
            "a photo of a smiling tan-skinned woman with long green hair on the beach",
            "a photo of a smiling woman on the beach",
        ),
        (
            "woman",
            "a woman with long hair and a white shirt posing for a picture",
            "a woman with a white shirt posing for a picture",
        ),
        (
            "woman",
            "a photo of a bald man with a red heart on the cheek at night",
            "a photo of a man at night",
        ),
        (
            "woman",
            "a woman with a bob, with a red heart on the cheek and in a white shirt in the city",
            "a woman in a white shirt in the city",
        ),
        (
            "woman",
            "a photo of a brown rabbit in front of a red wall",
            "a photo of woman in front of a red wall",
        ),
        ("woman", "on the beach", "on the beach"),
        ("mug", "a red striped mug with a blue background", "a mug with a blue background"),
        ("dog", "an orange dog on a red carpet, with blue eyes", "a dog on a red carpet"),
    ],
)
def test_captions_are_left_with_what_changes(class_name: str, said: str, kept: str) -> None:
    assert what_varies([said], class_name)[0] == [kept]


def test_what_is_worn_in_most_pictures_belongs_to_the_subject() -> None:
    places = ("on the beach", "at night", "in the snow", "in a red shirt in the city")
    said = [f"a woman with glasses {place}" for place in places]
    kept, left_out = what_varies(said, "woman")
    assert kept == [f"a woman {place}" for place in places] and left_out == ["glasses"]
    assert what_varies(said[:3], "woman")[0] == said[:3]  # too few to say what stays
    assert what_varies(said, "woman", ["1", "1", "2", "3"])[0] == said  # two of them of one picture
    same_place = [f"a woman with a {what} on the beach" for what in ("cup", "book", "bag", "dog")]
    assert what_varies(same_place, "woman") == (same_place, [])


@given(st.lists(st.text(max_size=60), max_size=6))
def test_any_caption_can_be_read(texts: list[str]) -> None:
    kept, _ = what_varies(texts, "woman")
    assert len(kept) == len(texts)


def test_the_captioners_words_about_the_subject_are_not_used(store: Store) -> None:
    heard = Heard()
    manifest, training_set = prepared(store)
    request = TuneRequest.model_validate({"name": "mug"})
    table = write_captions(
        "tune_1", training_set, manifest, request, store, Parrot("a blue mug on a table"), heard
    )
    assert {row.caption for row in table.rows if row.source == "captioner"} == {"ohwx mug on a table"}
    assert next(row for row in table.rows if row.source == "sidecar").caption == "a red ohwx mug"
    assert heard.notes == ["1 thing was left out of the captions, which is for the token to learn."]
    style = write(store, Parrot("a blue mug on a table"), name="ink style")
    assert "a blue mug on a table, in ohwx ink style" in {row.caption for row in style.rows}


def test_an_edited_table_is_taken_or_refused_by_line() -> None:
    names = {"12e4": "a.png", "h2": "caf\u00e9.png"}
    spoilt = "name;caption;source;hash\ra.png;one;edit;1,20E+05\rcafe\u0301.png;two;edit;?\r"
    assert read_csv(spoilt.encode(), names) == {"12e4": "one", "h2": "two"}
    assert read_csv(b"name,caption\na.png,\n", names) == {}
    for table, said in (
        (b"name,caption,source,hash\na.png,one, two,edit,12e4\n", "line 2: it has 5 cells"),
        (b'name,caption,source,hash\na.png,"one,edit,12e4\n', "line 2: its quotation marks"),
        (b"name,caption,source,hash\nz.png,one,edit,zz\n", "line 2: there is no picture 'z.png'"),
        (b"a.png,one\n", "line 1: the header lacks"),
        (b"PK\x03\x04 no workbook", "not an XLSX workbook"),
    ):
        with pytest.raises(Failure, match=said):
            read_csv(table, names)
