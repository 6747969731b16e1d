"""`cogvideo-2b` from PixelAPI's call to the file that is downloaded, on a double of the released model."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import cv2
import pytest

from tests.gateway.conftest import House
from tests.support.tiny_aids import make_random_video
from tunes_dagster.core.progress import Silent
from tunes_dagster.rendering.aids import make_aids
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.run import run_batch
from tunes_dagster.sessions.batches import PromptWriter, render_jobs


def render(house: House, dtype: Any) -> None:
    """Render every queued prompt as the asset does."""
    rows, service = house.registry, house.service
    for batch in rows.groups.make_batches(wait_seconds=0):
        work = rows.work.claim("render", batch.id, "run")
        writer = PromptWriter(rows, work.id, "run")
        jobs = render_jobs(rows, rows.prompts.rows(batch_id=batch.id), {}, writer)
        entry = service.catalog.usable(batch.base_id, service.settings.bases_folder)
        folder, aids = (
            entry.location(service.settings.bases_folder),
            make_aids(service.catalog, service.settings),
        )
        run_batch(
            jobs, entry, folder, "cpu", dtype, Delivery(house.store, "out", Silent(), writer.on_done), aids
        )
        rows.work.finish(work.id, "run")


@pytest.mark.parametrize(
    ("dtype", "frames"),
    [("float32", 9), ("bfloat16", 9), pytest.param("float32", 49, marks=pytest.mark.slow)],
)
def test_a_clip_from_the_call_to_its_file(
    house: House, tmp_path: Any, monkeypatch: Any, dtype: str, frames: int
) -> None:
    import torch

    entry = house.service.catalog.resolve("cogvideo-2b")
    make_random_video(entry.location(house.service.settings.bases_folder))
    small = {"width": 64, "height": 64, "num_frames": frames}  # 720 x 480 and 49 on the released one
    monkeypatch.setattr(entry, "rendering", {**entry.rendering, **small})
    known = house.client.get("/v1/models", headers=house.auth()).json()["models"]
    assert {m["id"]: m["status"] for m in known}["cogvideo-2b"] == "available"
    asked = {"model": "cogvideo-2b", "prompt": "a dog runs", "steps": 2, "seed": 5}
    made = house.client.post("/v1/image/generate", json=asked, headers=house.auth())
    assert made.status_code == 200 and made.json()["status"] == "queued", made.text
    odd = house.client.post(
        "/v1/image/generate", json={**asked, "width": 600, "height": 527}, headers=house.auth()
    )
    settings = house.registry.prompts.rows(account_id="ann")[0].settings
    assert odd.status_code == 200 and (settings["width"], settings["height"]) == (592, 512), odd.text
    house.registry.work.cancel_prompt("prompt_" + odd.json()["generation_id"].removeprefix("gen_"))
    render(house, getattr(torch, dtype))
    path = f"/v1/image/{made.json()['generation_id']}"
    done = house.client.get(path, headers=house.auth()).json()
    assert done["status"] == "completed" and not done["error"], done
    file = house.client.get(urlsplit(done["output_url"]).path)
    assert file.headers["content-type"] == "video/mp4" and file.content[4:8] == b"ftyp"
    (tmp_path / "clip.mp4").write_bytes(file.content)
    video = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    assert (int(video.get(cv2.CAP_PROP_FRAME_COUNT)), round(video.get(cv2.CAP_PROP_FPS))) == (frames, 8)
    assert video.read()[1].std() > 1
