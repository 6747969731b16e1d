from __future__ import annotations

import base64
import io
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFilter
from upath import UPath

from tests.intake.conftest import ScriptedServer, encoded, photo, png, send
from tests.intake.test_archives import tarred, zipped
from tests.support.detectors import NoDetector
from tunes_dagster.core.failures import Cancelled, Failure, FailureCode
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.store import Store
from tunes_dagster.intake import sources
from tunes_dagster.intake.collect import collect_sources
from tunes_dagster.intake.fetch import Fetcher, FetchLimits
from tunes_dagster.intake.folders import settled
from tunes_dagster.intake.manifest import Finding, Manifest
from tunes_dagster.intake.payloads import move_payloads, store_upload
from tunes_dagster.intake.sources import SourceRules, list_sources


class Watcher(Silent):
    """Counts looks at pictures, remembers notes, cancels when told to."""

    def __init__(self, cancel_after: int = 10**9) -> None:
        self.steps: list[tuple[int, int]] = []
        self.notes: list[str] = []
        self.cancel_after = cancel_after

    def step(self, done: int, total: int, **numbers: float) -> None:
        self.steps.append((done, total))

    def note(self, message: str) -> None:
        self.notes.append(message)

    def check_cancelled(self) -> None:
        if len(self.steps) >= self.cancel_after:
            raise Cancelled


class CountingDetector(NoDetector):
    def __init__(self) -> None:
        self.looked = 0

    def detect(self, image: Image.Image) -> list:
        self.looked += 1
        return []


def request(sources: dict[str, Any], **more: Any) -> TuneRequest:
    return TuneRequest.model_validate({"name": "mug", "sources": sources, **more})


def collect(
    asked: TuneRequest, store: Store, fetcher: Fetcher, report: Silent | None = None, **more: Any
) -> Manifest:
    detector = more.pop("detector", NoDetector())
    return collect_sources("tune_1", asked, store, fetcher, detector, report or Silent(), SourceRules(**more))


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def dataset() -> dict[str, bytes]:
    """Pictures as people have them, with captions and faults among them."""
    return {
        "1.png": png(1),
        "2.jpg": encoded(photo(2), "JPEG", quality=92),
        "3.webp": encoded(photo(3), "WEBP"),
        "deep/4.gif": encoded(photo(4), "GIF"),
        "5.heic": _heic(5),
        "no-suffix": png(6),
        "copy of 1.bmp": encoded(photo(1), "BMP"),
        "near 2.jpg": encoded(photo(2).resize((72, 60)), "JPEG"),
        "tiny.png": png(7, 40, 30),
        "blank.png": encoded(Image.new("RGB", (90, 90), "grey")),
        "blurred.png": encoded(photo(8, 200, 200).filter(ImageFilter.GaussianBlur(5))),
        "broken.png": png(9)[:300],
        "fake.jpg": b"<html>",
        "1.txt": "ein Krug – rot".encode("cp1252"),
        "metadata.jsonl": b'{"file_name": "deep/4.gif", "text": "a mug on grass"}',
        "README.txt": b"x",
        "notes.pdf": b"%PDF-",
        ".DS_Store": b"x",
    }


def _heic(number: int) -> bytes:
    import pillow_heif

    pillow_heif.register_heif_opener()
    return encoded(photo(number), "HEIF", quality=90)


EXPECTED = {
    "1.png": ("accepted", []),
    "2.jpg": ("accepted", []),
    "3.webp": ("accepted", []),
    "deep/4.gif": ("accepted", []),
    "5.heic": ("accepted", []),
    "no-suffix": ("accepted", []),
    "copy of 1.bmp": ("rejected", [Finding.EXACT_DUPLICATE]),
    "near 2.jpg": ("rejected", [Finding.NEAR_DUPLICATE]),
    "tiny.png": ("rejected", [Finding.TOO_SMALL]),
    "blank.png": ("rejected", [Finding.BLANK]),
    "blurred.png": ("warned", [Finding.BLURRED]),
    "broken.png": ("rejected", [Finding.UNREADABLE]),
    "fake.jpg": ("rejected", [Finding.UNREADABLE]),
}
MIN_SIDE = {"dataset": {"min_side": 60}}


def check_dataset(manifest: Manifest, store: Store) -> None:
    assert {r.name: (r.verdict, r.findings) for r in manifest.rows} == EXPECTED
    captions = {r.name: r.caption for r in manifest.rows if r.caption}
    assert captions == {"1.png": "ein Krug – rot", "deep/4.gif": "a mug on grass"}
    assert sorted(manifest.ignored) == ["README.txt", "notes.pdf"]
    for row in manifest.rows:
        if row.verdict == "rejected":
            assert row.reason
            assert row.remedy
        if row.key:
            assert store.exists(row.key)
            assert row.hash in row.key
    assert Manifest.load(store, "tune_1") == manifest


def test_a_folder_of_everything(tmp_path: Path, store: Store, fetcher: Fetcher) -> None:
    folder = fill(tmp_path / "photos", dataset())
    report = Watcher()
    manifest = collect(request({"folder": str(folder)}, **MIN_SIDE), store, fetcher, report)
    check_dataset(manifest, store)
    assert report.steps[-1] == (13, 13)
    assert manifest.counts() == {"accepted": 6, "warned": 1, "rejected": 6}
    assert any("broken.png" in reason for reason in manifest.reasons())
    assert len(manifest.records()) == 13


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_by_url(pack: Any, server: ScriptedServer, store: Store, fetcher: Fetcher) -> None:
    server.routes["/p.zip"] = pack({f"my photos/{name}": data for name, data in dataset().items()})
    asked = request({"archive_url": server.url("/p.zip?token=secret")}, **MIN_SIDE)
    manifest = collect(asked, store, fetcher)
    found = {r.name.removeprefix("my photos/"): (r.verdict, r.findings) for r in manifest.rows}
    assert found == EXPECTED
    assert {r.caption for r in manifest.rows} == {"ein Krug – rot", "a mug on grass", None}
    assert not any("secret" in r.source for r in manifest.rows)


def test_urls_one_of_them_bad(server: ScriptedServer, store: Store, fetcher: Fetcher) -> None:
    for number in range(5):
        server.routes[f"/{number}.png"] = png(number)
    server.routes["/page.png"] = lambda h: send(h, b"<html>", content_type="text/html")
    paths = ["/0.png", "/gone.png", "/1.png", "/page.png", "/2.png", "/3.png", "/4.png", "/0.png"]
    urls = [*(server.url(p) for p in paths), "http://169.254.169.254/latest/meta-data", "file:///etc/passwd"]
    manifest = collect(request({"image_urls": urls}), store, fetcher)
    assert [r.verdict for r in manifest.rows] == [
        "accepted",
        "rejected",
        "accepted",
        "rejected",
        "accepted",
        "accepted",
        "accepted",
        "rejected",
        "rejected",
    ]
    assert "404" in manifest.rows[1].reason
    assert "web page" in manifest.rows[3].reason
    assert {r.findings[0] for r in manifest.rows if r.findings} == {Finding.REFUSED}


def test_base64_and_uploads(store: Store, fetcher: Fetcher) -> None:
    plain = base64.b64encode(png(1)).decode()
    uri = "data:image/png;base64," + base64.urlsafe_b64encode(png(2)).decode().rstrip("=")
    asked = request({"images_base64": [plain, uri]})
    straight = collect(asked, store, fetcher)
    assert [r.verdict for r in straight.rows] == ["accepted", "accepted"]
    moved = move_payloads(asked, store, "tune_1")
    assert moved.sources.images_base64 == []
    keys = [
        *moved.sources.uploads,
        store_upload(store, "tune_1", 2, "../../My Face.PNG", png(3)),
        store_upload(store, "tune_1", 3, "my face.txt", b"the caption"),
        store_upload(store, "tune_1", 4, "more.zip", zipped({"x.png": png(4)})),
    ]
    manifest = collect(request({"uploads": keys}), store, fetcher)
    assert {r.hash for r in straight.rows} < {r.hash for r in manifest.rows}
    assert [(r.name, r.caption) for r in manifest.rows[2:]] == [
        ("My Face.PNG", "the caption"),
        ("x.png", None),
    ]


def test_uploads_of_others_are_nobodys_to_name(store: Store, fetcher: Fetcher) -> None:
    theirs = store_upload(store, "tune_2", 0, "a.png", png(1))
    with pytest.raises(Failure, match="not an upload of tune_1"):
        collect(request({"uploads": [theirs]}), store, fetcher)


def test_sources_of_several_kinds_together(
    tmp_path: Path, server: ScriptedServer, store: Store, fetcher: Fetcher
) -> None:
    server.routes["/a.png"] = png(1)
    server.routes["/b.zip"] = zipped({"a.png": png(2)})
    folder = fill(tmp_path / "photos", {"a.png": png(3), "more.zip": zipped({"a.png": png(4)})})
    asked = request(
        {"archive_url": server.url("/b.zip"), "image_urls": [server.url("/a.png")], "folder": str(folder)}
    )
    manifest = collect(asked, store, fetcher)
    assert [r.name for r in manifest.rows] == ["a.png", "a.png (2)", "a.png (3)", "a.png (4)"]
    assert len(manifest.accepted) == 4


def test_a_second_run_reads_nothing_again(
    tmp_path: Path, server: ScriptedServer, store: Store, fetcher: Fetcher
) -> None:
    server.routes["/p.zip"] = zipped({"a.png": png(1), "b.png": png(2)})
    server.routes["/c.png"] = png(3)
    folder = fill(tmp_path / "photos", {"d.png": png(4)})
    sources = {
        "archive_url": server.url("/p.zip"),
        "image_urls": [server.url("/c.png"), server.url("/e.png")],
        "folder": str(folder),
    }
    detector = CountingDetector()
    first = collect(request(sources), store, fetcher, detector=detector)
    assert [r.verdict for r in first.rows] == ["accepted"] * 3 + ["rejected"] + ["accepted"]
    server.routes["/e.png"] = png(5)  # what failed is tried again, nothing else is
    second = collect(request(sources), store, fetcher, detector=detector)
    assert [r.verdict for r in second.rows] == ["accepted"] * 5
    assert (server.count("/p.zip"), server.count("/c.png"), server.count("/e.png")) == (1, 1, 2)
    assert detector.looked == 5
    (folder / "d.png").write_bytes(png(6))  # another version of the file is another origin
    os.utime(folder / "d.png", (time.time() + 5, time.time() + 5))
    third = collect(request(sources), store, fetcher, detector=detector)
    assert detector.looked == 6
    assert third.rows[-1].hash != second.rows[-1].hash
    # Other thresholds judge the same measures anew.
    strict = collect(request(sources, dataset={"near_duplicate_bits": 32}), store, fetcher, detector=detector)
    assert detector.looked == 6
    assert len(strict.rows) == 5


def test_a_cancelled_collection_goes_on_where_it_stopped(tmp_path: Path, store: Store) -> None:
    fetcher = Fetcher(limits=FetchLimits(concurrency=1))
    folder = fill(tmp_path / "photos", {f"{n}.png": png(n) for n in range(8)})
    detector = CountingDetector()
    asked = request({"folder": str(folder)})
    with pytest.raises(Cancelled):
        collect(asked, store, fetcher, Watcher(cancel_after=3), detector=detector)
    assert detector.looked < 8
    before = detector.looked
    assert len(collect(asked, store, fetcher, detector=detector).accepted) == 8
    assert detector.looked == 8 > before


def test_cancelling_does_not_wait_for_a_slow_download(server: ScriptedServer, store: Store) -> None:
    def slow(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.stopped.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    server.routes["/slow.png"] = slow
    started = time.monotonic()
    with Fetcher(["localhost"]) as fetcher, pytest.raises(Cancelled):
        collect(request({"image_urls": [server.url("/slow.png")]}), store, fetcher, Watcher(cancel_after=0))
    assert time.monotonic() - started < 4


def test_too_few_pictures_says_why_for_each(tmp_path: Path, store: Store, fetcher: Fetcher) -> None:
    folder = fill(tmp_path / "photos", {"a.png": png(1), "b.png": png(2, 20, 20), "c.png": b"junk"})
    with pytest.raises(Failure) as caught:
        collect(request({"folder": str(folder)}, dataset={"min_pictures": 2}), store, fetcher)
    failure = caught.value
    assert failure.code == FailureCode.TOO_FEW_PICTURES
    assert "1 of 3 pictures can be used; 2 are needed" in failure.message
    assert failure.facts
    assert [reason.split(":")[0] for reason in failure.facts["reasons"]] == ["b.png", "c.png"]
    assert len(Manifest.load(store, "tune_1").rows) == 3  # the manifest is there to look at


def test_too_few_good_pictures_are_not_called_none(tmp_path: Path, store: Store, fetcher: Fetcher) -> None:
    folder = fill(tmp_path / "photos", {"a.png": png(1)})
    with pytest.raises(Failure) as caught:
        collect(request({"folder": str(folder)}, dataset={"min_pictures": 2}), store, fetcher)
    assert caught.value.message == "1 of 1 pictures can be used; 2 are needed."


def test_what_may_pass_is_retryable_and_what_is_hostile_is_named(
    server: ScriptedServer, store: Store, fetcher: Fetcher
) -> None:
    server.routes["/busy.png"] = lambda h: send(h, b"", 503)
    server.routes["/evil.zip"] = zipped({"../a.png": png(1)})
    with pytest.raises(Failure) as caught:
        collect(request({"image_urls": [server.url("/busy.png")]}), store, fetcher)
    assert caught.value.code == FailureCode.SOURCE_UNREACHABLE
    assert caught.value.retryable
    with pytest.raises(Failure, match="leads out of its folder") as caught:
        collect(request({"archive_url": server.url("/evil.zip")}), store, fetcher)
    assert caught.value.code == FailureCode.ARCHIVE_REFUSED
    with pytest.raises(Failure, match="loopback") as caught:
        collect(request({"archive_url": "http://127.0.0.1/a.zip"}), store, fetcher)
    assert caught.value.code == FailureCode.SOURCE_REFUSED
    with pytest.raises(Failure, match="names no pictures"):
        collect(request({}), store, fetcher)


def test_an_empty_folder_and_a_missing_one(tmp_path: Path, store: Store, fetcher: Fetcher) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(Failure, match="No pictures were found") as caught:
        collect(request({"folder": str(tmp_path / "empty")}), store, fetcher)
    assert caught.value.code == FailureCode.TOO_FEW_PICTURES
    with pytest.raises(Failure, match="There is no folder"):
        collect(request({"folder": str(tmp_path / "missing")}), store, fetcher)


def test_folders_outside_what_is_allowed(tmp_path: Path, store: Store, fetcher: Fetcher) -> None:
    inside = fill(tmp_path / "open" / "photos", {"a.png": png(1)})
    fill(tmp_path / "secret", {"b.png": png(2)})
    allowed = [str(tmp_path / "open")]
    assert len(collect(request({"folder": str(inside)}), store, fetcher, allow_folders=allowed).accepted) == 1
    (tmp_path / "open" / "way out").symlink_to(tmp_path / "secret")
    for folder in ("secret", "open/../secret", "open/way out", "openly"):
        with pytest.raises(Failure, match="not one that requests may name"):
            collect(request({"folder": str(tmp_path / folder)}), store, fetcher, allow_folders=allowed)
    (inside / "link.png").symlink_to(tmp_path / "secret" / "b.png")
    manifest = collect(request({"folder": str(inside)}), store, fetcher, allow_folders=allowed)
    assert [r.name for r in manifest.rows] == ["a.png"]  # a link that leads out is not followed


def test_a_folder_that_became_a_link_after_it_was_allowed_is_not_followed(
    tmp_path: Path, store: Store, fetcher: Fetcher
) -> None:
    """Whoever writes into the drop folder waits until it was accepted, and puts a link to others' pictures there."""
    mine = fill(tmp_path / "drop" / "mine", {"a.png": png(1)})
    theirs = fill(tmp_path / "store" / "theirs", {"b.png": png(2)})
    asked = request({"folder": settled(str(mine))})
    assert len(collect(asked, store, fetcher).accepted) == 1
    for moved in (mine, mine.parent):
        moved.rename(tmp_path / f"was {moved.name}")
        moved.symlink_to(theirs if moved == mine else theirs.parent)
        with pytest.raises(Failure, match="is a link now") as caught:
            collect(asked, store, fetcher)
        assert caught.value.code == FailureCode.SOURCE_REFUSED and "theirs" not in caught.value.message
        moved.unlink()
        (tmp_path / f"was {moved.name}").rename(moved)


def test_a_picture_that_became_a_link_after_the_folder_was_listed_is_not_followed(
    tmp_path: Path, store: Store, fetcher: Fetcher
) -> None:
    mine = fill(tmp_path / "mine", {"a.png": png(1), "b.png": png(3)})
    theirs = fill(tmp_path / "theirs", {"c.png": png(2)}) / "c.png"
    plan = list_sources(request({"folder": str(mine)}).sources, "tune_1", store, fetcher)
    (mine / "a.png").unlink()
    (mine / "a.png").symlink_to(theirs)
    first, second = plan.origins
    with pytest.raises(Failure, match="a.png is a link now"):
        first.load(tmp_path / "copy", threading.Event())
    assert second.load(tmp_path / "copy", threading.Event()).path == mine / "b.png"


def test_the_same_from_and_to_s3(s3: dict[str, Any], tmp_path: Path, fetcher: Fetcher) -> None:
    for name, data in dataset().items():
        UPath(f"s3://studio/inbox/set/{name}", **s3).write_bytes(data)
    store = Store("s3://studio/store", s3)
    asked = request({"folder": "s3://studio/inbox/set"}, **MIN_SIDE)
    detector = CountingDetector()
    manifest = collect(asked, store, fetcher, detector=detector)
    check_dataset(manifest, store)
    looked = detector.looked
    assert collect(asked, Store("s3://studio/store", s3), fetcher, detector=detector) == manifest
    assert detector.looked == looked
    local = Store(tmp_path / "local")
    here = collect(
        request({"folder": "s3://studio/inbox/set"}, **MIN_SIDE), local, fetcher, folder_options=s3
    )
    assert [r.hash for r in here.rows] == [r.hash for r in manifest.rows]
    with pytest.raises(Failure, match="There is no folder"):
        collect(request({"folder": "s3://studio/nothing"}), store, fetcher)
    with pytest.raises(Failure, match="not one that requests may name"):
        collect(asked, store, fetcher, allow_folders=["s3://studio/inbox/other", "/inbox"])


def test_masks_beside_pictures_are_no_pictures(tmp_path: Path, store: Store, fetcher: Fetcher) -> None:
    files = {
        "1.jpg": encoded(photo(1), "JPEG", quality=92),
        "1.mask.png": png(11),
        "b/2.png": png(2),
        "b/2-mask.png": png(12),
        "face-mask.png": png(3),
    }
    folder = fill(tmp_path / "photos", files)
    manifest = collect(request({"folder": str(folder)}), store, fetcher)
    assert {row.name: row.mask_key is not None for row in manifest.rows} == {
        "1.jpg": True,
        "b/2.png": True,
        "face-mask.png": False,
    }


def test_one_odd_file_costs_only_itself(
    tmp_path: Path, store: Store, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill(
        tmp_path / "photos", {f"{n}.png": png(n) for n in range(3)} | {"0.txt": b"x", "1.txt": b"one"}
    )
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(png(7))
    (folder / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"accented")
    (folder / "away.png").symlink_to(tmp_path)
    listed = sources.list_files

    def meanwhile(*arguments: Any) -> Any:
        files = list(listed(*arguments))
        (folder / "0.txt").unlink()
        (folder / "2.png").unlink()
        return files

    monkeypatch.setattr(sources, "list_files", meanwhile)
    manifest = collect(request({"folder": str(folder)}), store, fetcher)
    assert {r.name: (r.verdict, r.caption) for r in manifest.rows} == {
        "0.png": ("accepted", None),
        "1.png": ("accepted", "one"),
        "2.png": ("rejected", None),
        "café.png": ("accepted", "accented"),
    }
    assert [note.split(":")[0] for note in manifest.notes] == [
        "away.png",
        "0.txt",
        "Without a caption among those that came along",
    ]


def test_one_damaged_member_of_a_zip_costs_only_itself(
    server: ScriptedServer, store: Store, fetcher: Fetcher
) -> None:
    files = {"a.png": png(1), "b.png": png(2), "c.txt": b"a caption " * 50, "Icon\r": b""}
    data = bytearray(zipped(files))
    for name in (b"b.png", b"c.txt"):
        at = data.index(name) + len(name) + 10
        data[at : at + 8] = b"\xff" * 8
    server.routes["/p.zip"] = bytes(data)
    manifest = collect(request({"archive_url": server.url("/p.zip")}), store, fetcher)
    assert [(r.name, r.verdict) for r in manifest.rows] == [("a.png", "accepted"), ("b.png", "rejected")]
    torn = manifest.rows[1]
    assert torn.reason == "It is damaged inside its archive." and torn.failure_detail, torn
    assert torn.failure_detail not in str(manifest.records()) + str(manifest.findings())
    assert manifest.ignored == ["c.txt"] and "c.txt: not used" in manifest.notes[0]


def test_names_of_a_zip_without_the_flag_for_utf8(
    server: ScriptedServer, store: Store, fetcher: Fetcher
) -> None:
    data = zipped({"cafe_.png": png(1), "captions.csv": "café.png,one".encode()})
    server.routes["/p.zip"] = data.replace(b"cafe_.png", "café.png".encode())
    (row,) = collect(request({"archive_url": server.url("/p.zip")}), store, fetcher).rows
    assert (row.name, row.caption) == ("café.png", "one")


def test_a_folder_of_links_says_that_they_are(tmp_path: Path, store: Store, fetcher: Fetcher) -> None:
    elsewhere, folder = fill(tmp_path / "elsewhere", {"a.png": png(1)}), tmp_path / "links"
    folder.mkdir()
    (folder / "a.png").symlink_to(elsewhere / "a.png")
    (folder / "b.png").symlink_to(elsewhere / "nothing.png")
    with pytest.raises(Failure, match="a.png: not used, it is a link that leads out"):
        collect(request({"folder": str(folder)}), store, fetcher)


def test_masks_are_fitted_or_refused_by_name_and_what_is_transparent_is_not_meant(
    tmp_path: Path, store: Store, fetcher: Fetcher
) -> None:
    clear = Image.new("RGBA", (48, 40), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (0, 0, 24, 40))
    files = {f"{n}.png": png(n) for n in range(3)} | {"broken.png": b"no", "broken_mask.png": png(8)}
    files |= {
        "0_mask.png": encoded(clear),
        "1_Mask.PNG": png(5, 60, 90),
        "2-mask.png": encoded(clear.convert("L")),
    }
    folder = fill(tmp_path / "photos", files)
    manifest = collect(request({"folder": str(folder)}, dataset={"mask": "file"}), store, fetcher)
    assert {r.name: (r.verdict, bool(r.mask_key)) for r in manifest.rows if r.name != "broken.png"} == {
        "0.png": ("accepted", True),
        "1.png": ("accepted", False),
        "1_Mask.PNG": ("rejected", False),
        "2.png": ("accepted", True),
    }
    refused = next(r for r in manifest.rows if r.name == "1_Mask.PNG")
    assert "the mask of 1.png" in refused.reason and "60 x 90, the picture is 96 x 80" in refused.reason
    key = next(r.mask_key for r in manifest.rows if r.name == "0.png")
    with Image.open(io.BytesIO(store.read_bytes(key))) as mask:
        assert mask.convert("L").getextrema() == (0, 255) and mask.getpixel((40, 20)) == (0, 0, 0)
    assert any("2-mask.png shows one flat colour" in note for note in manifest.notes)
    assert any(
        "Taken as masks by their names" in note and "0_mask.png (of 0.png)" in note for note in manifest.notes
    )


def test_masks_in_a_folder_second_ones_and_those_without_a_picture_are_told_apart(
    tmp_path: Path, store: Store, fetcher: Fetcher
) -> None:
    half = Image.new("L", (96, 80))
    half.paste(255, (0, 0, 48, 80))
    names = ("masks/a.png", "b_mask.png", "b-mask.png", "c-masklabel.png")
    files = {f"{name}.png": png(number) for number, name in enumerate("abc")}
    files |= {name: encoded(half) for name in names} | {"party_mask.png": png(7)}
    folder = fill(tmp_path / "set", files)
    manifest = collect(
        request({"folder": str(folder)}, dataset={"min_side": 16, "mask": "file"}), store, fetcher
    )
    assert {row.name: bool(row.mask_key) for row in manifest.rows} == {
        **dict.fromkeys(("a.png", "b.png", "c.png"), True),
        "party_mask.png": False,
    }
    told = " ".join(manifest.notes)
    assert "not there, and trained on like pictures: party_mask.png." in told
    assert "have another mask already: b" in told and all(name in told for name in names)
