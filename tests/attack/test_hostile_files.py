"""Files of strangers: each is opened in a child with limits, and whatever it does there costs that one file."""

from __future__ import annotations

import ast
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from benchmarks.hostile import MOST_BYTES, cost, photo
from tests.intake.conftest import png
from tests.intake.test_archives import FILES, zipped
from tests.support.hostile_archives import ARCHIVES, WORKBOOKS
from tests.support.hostile_pictures import (
    PICTURES,
    as_many_scans_as_are_taken,
    png_rgba,
    tiff_that_is_flat,
)
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.settings import Settings
from tunes_dagster.intake.archives import ArchiveLimits, read_archive
from tunes_dagster.intake.pictures import check, decode, normalise
from tunes_dagster.intake.sandbox import pool as sandbox
from tunes_dagster.intake.sandbox.limits import Limits, for_archive
from tunes_dagster.intake.sandbox.pool import Pool, asked_by, get_pool, scratch

ROOT = Path(__file__).resolve().parents[2] / "tunes_dagster"
KIND = {"zip": "archive", "tar": "archive", "xlsx": "table"}


# 88 megapixels each: 2-3 s on a free core.
LARGE = (
    "as_many_scans_as_are_taken.jpg",
    "png_rgba.png",
    "png_rgba16.png",
    "png_palette_with_alpha.png",
    "png_interlaced.png",
    "gif_that_is_flat.gif",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else [])
        for name in (*PICTURES, *ARCHIVES, *WORKBOOKS)
    ],
)
def test_a_small_file_costs_little(name: str) -> None:
    """It is refused or read; what it may take is the kernel's to hold, and what it took the kernel's to say."""
    made = {**PICTURES, **ARCHIVES, **WORKBOOKS}[name]()
    assert len(made) < 4_000_000
    taken = cost(name, made, KIND.get(name.rpartition(".")[2], "picture"))
    assert taken.ended.peak_bytes < MOST_BYTES, taken
    assert "went wrong" not in taken.said or name.endswith("xlsx"), taken
    assert taken.ended.status in (0, -signal.SIGXCPU), taken


SAID = {
    "empty_scans.jpg": "101 scans",
    "coloured_scans.jpg": "takes 884 MB",
    "jpeg_comments.jpg": "segments",
    "jpeg_filling.jpg": "segments",
    "jpeg_that_claims.jpg": "65500 x 65500",
    "png_chunks.png": "chunks",
    "png_empty_data.png": "chunks",
    "gif_blocks.gif": "blocks of data",
    "gif_comments.gif": "blocks of data",
    "gif_stray_bytes.gif": "stray bytes",
    "gif_with_a_frame_outside.gif": "65000 x 65000",
    "webp_canvas.webp": "16383 x 16383",
    "webp_that_is_flat.webp": "takes 1,414 MB",
    "webp_frames.webp": "chunks",
    "tiff_tile.tif": "tiles",
    "tiff_strips.tif": "entries say",
    "tiff_shared_values.tif": "entries say",
    "tiff_entries.tif": "entries",
    "bigtiff_entries.tif": "entries",
    "tiff_samples.tif": "samples per pixel",
    "tiff_that_is_flat.tif": "memory",
    "heif_that_claims.heic": "60000 x 60000",
    "heif_grid.heic": "megapixels of tiles",
    "heif_boxes.heic": "boxes",
    "avif_that_is_large.avif": "takes 866 MB",
    "zip_bzip2.zip": "method 12 (bzip2)",
    "zip_lzma.zip": "method 14 (LZMA)",
    "zip_deflate64.zip": "method 9 (deflate64)",
    "zip_overlapping.zip": "shares its bytes",
    "zip_directory_that_lies.zip": "more than 10,000 files",
    "zip_in_zip.zip": "another archive",
    "tar_pax_header.tar": "a header of 30,000,018 bytes",
    "tar_long_name.tar": "a header of 30,000,000 bytes",
    "tar_header_after_header.tar": "header after header",
    "tar_of_folders.tar": "more than 10,000 files",
    "xlsx_entities.xlsx": "amplification",
    "xlsx_of_spaces.xlsx": "a bomb?",
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_counted_is_named_before_a_decoder_follows_it(name: str) -> None:
    made = {**PICTURES, **ARCHIVES, **WORKBOOKS}[name]()
    taken = cost(name, made, KIND.get(name.rpartition(".")[2], "picture"))
    assert SAID[name] in taken.said
    assert taken.ended.cpu_seconds < 3


# Names that open a file whose content a stranger may have made.
OPENERS = {
    ("Image", "open"),
    ("images", "open"),
    ("cv2", "imread"),
    ("cv2", "imdecode"),
    ("cv2", "VideoCapture"),
    ("zipfile", "ZipFile"),
    ("tarfile", "open"),
    ("gzip", "open"),
    ("gzip", "GzipFile"),
    ("bz2", "BZ2File"),
    ("lzma", "LZMAFile"),
    ("lzma", "LZMADecompressor"),
    ("zlib", "decompress"),
    ("openpyxl", "load_workbook"),
    ("pickle", "load"),
    ("pickle", "loads"),
}
BARE = {"load_workbook", "ZipFile", "GzipFile", "open_heif", "read_heif", "imread"}
# What is not a stranger's: our own renders, and an archive that is written.
OWN = {("rendering/png.py", "Image.open")}


def openings() -> Iterator[tuple[str, str]]:
    """Yield file and call of everything in the package that opens pictures, archives or workbooks."""
    for path in sorted(
        ROOT.rglob("*.py", recurse_symlinks=True) if sys.version_info >= (3, 13) else _files()
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                if (called.value.id, called.attr) in OPENERS:
                    yield path.relative_to(ROOT).as_posix(), f"{called.value.id}.{called.attr}"
            elif isinstance(called, ast.Name) and called.id in BARE:
                yield path.relative_to(ROOT).as_posix(), called.id


def _files() -> Iterator[Path]:
    for folder, _, names in os.walk(ROOT, followlinks=True):
        yield from (Path(folder) / name for name in names if name.endswith(".py"))


def test_only_children_open_what_strangers_sent() -> None:
    found = set(openings())
    inside = {path for path, _ in found if path.startswith("intake/sandbox/child/")}
    assert len(inside) >= 3, "pictures, archives and tables"
    assert {one for one in found if one[0] not in inside} == OWN


def test_a_nursery_has_decoders_and_nothing_else() -> None:
    code = (
        "import sys; from tunes_dagster.intake.sandbox.child import tasks, __main__; tasks.prepare();"
        "print([name for name in ('torch', 'dagster', 'sqlalchemy', 'pydantic', 'cv2', 'fastapi', 'httpx')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_nursery_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNES_REGISTRY_URL", "postgresql://ann:secret@example.com/tunes")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    pool = fresh(Pool(1, Settings()))
    try:
        decode_in(pool, png(1))
        assert pool.nursery.pid is not None
        assert not [
            name for name in psutil.Process(pool.nursery.pid).environ() if name.startswith(("TUNES", "AWS"))
        ]
    finally:
        pool.close()


def fresh(pool: Pool) -> Pool:
    return pool


def refuse(why: str, remedy: str) -> Failure:
    return Failure(FailureCode.PICTURE_UNREADABLE, f"a.png: {why}.", remedy)


ROOMY = Limits(cpu_seconds=30, memory_bytes=400_000_000, wall_seconds=120, file_bytes=500_000_000)


def decode_in(pool: Pool, data: bytes, limits: Limits = ROOMY, **more: bool) -> list[dict]:
    with (
        scratch() as one,
        scratch() as two,
        pool.task("picture", data, {"name": "a.png", **more}, lambda *_: limits, [one, two], refuse) as task,
    ):
        return list(task.messages())


def children(pool: Pool) -> list[psutil.Process]:
    assert pool.nursery.pid is not None
    return psutil.Process(pool.nursery.pid).children()


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(2, Settings())
    yield made
    made.close()


def test_time_is_held_by_the_kernel(pool: Pool) -> None:
    """All that is done with 88 megapixels takes 2 s; the kernel counts whole seconds, so this one gets its first."""
    short = Limits(cpu_seconds=0.5, memory_bytes=500_000_000, wall_seconds=120, file_bytes=500_000_000)
    with pytest.raises(Failure, match="takes more than the"):
        decode_in(pool, as_many_scans_as_are_taken(), short, keep=True, measure=True)
    assert decode_in(pool, png(1))


def test_memory_is_held_by_the_kernel(pool: Pool) -> None:
    """The header asks for 353 MB, which there are; the decoder wants a strip of 265 MB beside them."""
    with pytest.raises(Failure, match="more than the 400 MB of memory"):
        decode_in(pool, tiff_that_is_flat())
    assert decode_in(pool, png(1))


def test_what_a_child_writes_is_held_by_the_kernel(pool: Pool) -> None:
    short = Limits(cpu_seconds=30, memory_bytes=400_000_000, wall_seconds=120, file_bytes=1000)
    with pytest.raises(Failure, match="is damaged") as caught:
        decode_in(pool, png(1), short)
    assert "File too large" in caught.value.detail


def test_the_clock_ends_a_child_that_hangs(pool: Pool) -> None:
    """This one waits for its parent, which does not come."""
    hasty = Limits(cpu_seconds=30, memory_bytes=400_000_000, wall_seconds=0.5, file_bytes=500_000_000)
    with scratch() as out:
        arguments = {"name": "a.zip", "limits": asdict(ArchiveLimits())}
        with (
            pytest.raises(Failure, match="longer than") as caught,
            pool.task("archive", zipped(FILES), arguments, lambda *_: hasty, [out], refuse) as task,
        ):
            list(task.messages())
    assert caught.value.code == FailureCode.TIMED_OUT
    psutil.wait_procs(children(pool), timeout=20)
    assert not children(pool)


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGSEGV, "crashed (SIGSEGV)"), (signal.SIGABRT, "(SIGABRT)")]
)
def test_a_crash_is_one_failure_of_one_file(pool: Pool, number: int, said: str) -> None:
    with scratch() as out, scratch() as other:
        arguments = {"name": "a.zip", "limits": asdict(ArchiveLimits())}
        limits: Callable[[int, Settings], Limits] = lambda size, settings: for_archive(size, 10**6, settings)  # noqa: E731
        with (
            pytest.raises(Failure) as caught,
            pool.task("archive", zipped(FILES), arguments, limits, [out], refuse) as crashing,
            pool.task("archive", zipped(FILES), arguments, limits, [other], refuse) as beside,
        ):
            hers, mine = beside.messages(), crashing.messages()
            next(hers)
            next(mine)
            first, _ = sorted(children(pool), key=lambda one: (one.create_time(), one.pid))
            first.send_signal(number)
            beside.go_on()
            assert next(hers)["member"]["name"] == "folder/b.png", "the other one goes on"
            crashing.go_on()
            list(mine)
    assert said in caught.value.message


def test_a_picture_whose_child_the_system_killed_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once; whoever is killed twice is refused."""
    killed: list[int] = []
    begin = sandbox.Task.begin

    def killing(self: sandbox.Task, op: str, arguments: dict, fds: list[int]) -> None:
        if len(killed) < times:
            for child in children(get_pool()):
                child.kill()
            killed.append(1)
        begin(self, op, arguments, fds)

    monkeypatch.setattr(sandbox.Task, "begin", killing)
    times = 1
    assert decode(png(1)).size == (96, 80)
    assert killed == [1]
    killed.clear()
    times = 2
    with pytest.raises(Failure, match="memory ended") as caught:
        decode(png(1), "a.png")
    assert caught.value.code == FailureCode.PICTURE_UNREADABLE
    killed.clear()
    with pytest.raises(Failure, match="killed by the system") as caught:
        list(read_archive(written(zipped(FILES)), name="a.zip"))
    assert caught.value.code == FailureCode.RUN_LOST, "what came of it already may have been used"


def written(data: bytes) -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / "file"
    path.write_bytes(data)
    return path


def test_a_nursery_that_was_killed_is_started_again(pool: Pool) -> None:
    assert decode_in(pool, png(1))
    first = pool.nursery.pid
    assert first is not None
    psutil.Process(first).kill()
    psutil.Process(first).wait(20)
    assert decode_in(pool, png(1))
    assert pool.nursery.pid != first


def test_everything_ends_with_its_parent() -> None:
    code = (
        "import os, sys, time; from tunes_dagster.intake.sandbox.pool import get_pool, Child\n"
        "pool = get_pool(); child = Child(pool.nursery, 10**9)\n"
        "print(pool.nursery.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9
    nursery = int(done.stdout)
    if psutil.pid_exists(nursery):
        psutil.Process(nursery).wait(20)


def test_a_child_serves_one_owner_and_is_replaced_in_the_end(pool: Pool) -> None:
    seen = set()
    for _ in range(2):
        with pool.session() as among:
            for _ in range(sandbox._TASKS_OF_A_CHILD + 1):
                with scratch() as one, scratch() as two:
                    task = pool.task(
                        "picture", png(1), {"name": "a"}, lambda *_: ROOMY, [one, two], refuse, among
                    )
                    with task as given:
                        list(given.messages())
                        seen.add(given._child)
        assert not among._children
    assert len(seen) == 4


def test_a_refused_picture_ends_its_child(pool: Pool) -> None:
    with pool.session() as among, scratch() as one, scratch() as two:
        with (
            pytest.raises(Failure),
            pool.task("picture", b"no", {"name": "a"}, lambda *_: ROOMY, [one, two], refuse, among) as task,
        ):
            list(task.messages())
        assert among.idle() is None


def test_a_child_may_say_nothing_but_what_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes from a child counts as a stranger's word: sizes, hashes and pixels that do not agree are refused."""
    good = {"width": 2, "height": 2, "note": "", "pixels_hash": "0" * 64}
    lies: list[dict | list] = [
        {**good, "width": 10**6},
        {**good, "width": True},
        {**good, "height": -1},
        {**good, "pixels_hash": "../x"},
        {**good, "width": 30_000, "height": 30_000},
        {"width": 2},
        [],
        good,
    ]
    for said in lies:
        monkeypatch.setattr(sandbox.Task, "messages", lambda self, said=said: iter([{"picture": said}]))
        with pytest.raises(Failure, match="makes no sense"):
            decode(png(1))
    monkeypatch.setattr(
        sandbox.Task, "messages", lambda self: iter([{"member": {"name": "../../etc/passwd", "size": 3}}])
    )
    with pytest.raises(Failure, match="leads out of its folder"):
        list(read_archive(written(zipped(FILES))))


def test_whoever_asks_for_much_waits_for_himself(pool: Pool) -> None:
    """Of one account only so many stand in line; another one is served."""
    places = sandbox._Places(1)
    with asked("ann"), places.held():
        import contextvars
        import threading

        threads = []
        for account in ["ann"] * (sandbox._WAITING_OF_ONE - 1) + ["bob"]:
            context = contextvars.copy_context()
            context.run(asked_by.set, account)
            threads.append(threading.Thread(target=context.run, args=(_wait_in_line, places)))
            threads[-1].start()
        while sum(places._waiting.values()) < sandbox._WAITING_OF_ONE + 1:
            threads[0].join(0.01)
        with pytest.raises(sandbox.Busy), places.held():
            pass
    for thread in threads:
        thread.join(20)
    assert not places._waiting


def _wait_in_line(places: sandbox._Places) -> None:
    with places.held():
        pass


class asked:  # noqa: N801
    def __init__(self, account: str) -> None:
        self.account = account

    def __enter__(self) -> None:
        self.token = asked_by.set(self.account)

    def __exit__(self, *_: object) -> None:
        asked_by.reset(self.token)


def test_files_are_handed_over_as_they_come(tmp_path: Path) -> None:
    """Bytes, a path, a file, one that lies in memory: the child reads the same."""
    import tempfile

    data = photo(1, 64)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    want = normalise(data)
    assert want.data == data and want.suffix == ".jpg"
    with path.open("rb") as file, tempfile.SpooledTemporaryFile(max_size=10**6) as spooled:
        spooled.write(data)
        for source in (path, file, io.BytesIO(data), spooled):
            again = normalise(source)
            assert (again.hash, again.data) == (want.hash, data)
    check(data)


@pytest.mark.slow
def test_a_large_picture_is_read_within_its_limits() -> None:
    """88 megapixels with alpha, of a size for which there is time."""
    limits = Limits(cpu_seconds=60, memory_bytes=360 * 2**20, wall_seconds=600, file_bytes=500_000_000)
    made = Pool(1, Settings())
    try:
        with scratch() as one, scratch() as two:
            arguments = {"name": "a.png", "keep": True, "measure": True}
            with made.task("picture", png_rgba(), arguments, lambda *_: limits, [one, two], refuse) as task:
                (said,) = task.messages()
                assert said["picture"]["width"] == 9400
                assert task.end().peak_bytes < MOST_BYTES
    finally:
        made.close()
