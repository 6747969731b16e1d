import io
from html.parser import HTMLParser

import pytest
from PIL import Image

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.core.store import Store
from tunes_dagster.rendering import pages
from tunes_dagster.rendering.batch_report import write_batch_report
from tunes_dagster.rendering.jobs import RenderedImage, RenderJob, RenderResult
from tunes_dagster.rendering.png import save_png


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.text, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def parsed(html):
    links = Links()
    links.feed(html)
    return links


@pytest.fixture
def batch(tmp_path):
    store = Store(tmp_path)
    jobs, results = [], []
    for i, text in enumerate(["a red mug", "a <b>bold</b> mug & spoon", "a broken mug"]):
        settings = RenderSettings(
            num_images=2, seed=5, steps=20, guidance_scale=4, width=256, height=128, scheduler="euler"
        )
        jobs.append(RenderJob(f"prompt_{i}", text, settings))
        images = []
        for seed in (5, 6)[: 2 - (i == 2)]:
            key = save_png(
                store, f"batches/b/1/prompt_{i}-{seed}.png", Image.new("RGB", (256, 128), "teal"), {}
            )
            images.append(
                RenderedImage(
                    key=key,
                    seed=seed,
                    width=256,
                    height=128,
                    rendered_at=(176, 88),
                    bytes=1,
                    sha256="",
                    recipe_hash="",
                    deviation=40.0,
                )
            )
        failure = Failure(FailureCode.RENDER_FAILED, "Not finite.", "Lower it.") if i == 2 else None
        results.append(RenderResult(jobs[-1].prompt_id, images, failure, ["no token"] if i == 1 else []))
    return store, jobs, results


def test_batch_has_a_sheet_and_a_page_beside_its_pictures(batch):
    store, jobs, results = batch
    report = write_batch_report(store, "batches/b/1", jobs, results, title="Mugs", base="tiny-sdxl")
    sheet = Image.open(io.BytesIO(store.read_bytes(report.sheet_key)))
    assert sheet.size == report.sheet.size and sheet.width > 2 * 256
    html = store.read_text(report.page_key)
    links = parsed(html)
    shown = [source for source in links.sources if source.endswith(".png")]
    assert len(set(shown)) == 5
    assert all(store.exists(f"batches/b/1/{source}") for source in shown)
    text = " ".join(links.text)
    assert "tiny-sdxl · 20 steps · guidance 4 · euler · 256 × 128, rendered at 176 × 88" in text
    assert "a <b>bold</b> mug & spoon" in text and "Not finite. Lower it." in text and "no token" in text
    assert "script" not in links.tags and "b" not in links.tags


def test_prompts_with_different_numbers_flow_into_a_grid(batch):
    store, jobs, results = batch
    one = RenderJob("single", "a cup", jobs[0].settings.model_copy(update={"num_images": 1}))
    first = RenderResult("single", results[0].images[:1])
    report = write_batch_report(store, "batches/b/2", [*jobs, one], [*results, first])
    assert "../1/prompt_0-5.png" in store.read_text(report.page_key)


def test_long_batches_are_cut_on_the_sheet_only(batch):
    store, jobs, results = batch
    report = write_batch_report(store, "batches/b/3", jobs[:1] * 40, results[:1] * 40)
    assert report.sheet.height < 10_000
    assert store.read_text(report.page_key).count("<figure>") == 80


def test_commands_can_be_copied():
    html = pages.page("t", "", [pages.Section("Next", commands={"see it": 'tunes render "a <b> mug"'})])
    assert "<pre><code>tunes render &quot;a &lt;b&gt; mug&quot;</code></pre>" in html


def test_paths_are_relative_and_quoted():
    assert pages.relative("tunes/t/lora/1/samples/a.png", "tunes/t/lora/1/index.html") == "samples/a.png"
    html = pages.page(
        "t",
        "",
        [
            pages.Section(
                "h",
                "x",
                {"a": [1, 2.5], "gone": None},
                wide="a b.png",
                figures=[pages.Figure(source="ü#.png")],
            )
        ],
    )
    assert {"a%20b.png", "%C3%BC%23.png"} <= set(parsed(html).sources)
    assert "1, 2.5" in html and "gone" not in html


def test_a_damaged_picture_is_a_cell_of_its_own(batch):
    store, jobs, results = batch
    key = results[0].images[0].key
    store.write_bytes(key, store.read_bytes(key)[:60])
    report = write_batch_report(store, "batches/b/1", jobs, results)
    assert store.exists(report.sheet_key)
