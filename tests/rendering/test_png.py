import io
import random

import pytest
from PIL import Image, PngImagePlugin

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.store import Store
from tunes_dagster.rendering import png

RECIPE = {
    "prompt": "a photo of ohwx woman, “Zürich” 水",
    "negative_prompt": "blurry",
    "seed": 7,
    "steps": 20,
    "guidance_scale": 4.0,
    "width": 256,
    "height": 192,
    "rendered_at": [128, 96],
    "scheduler": "dpm++2m_karras",
    "base": {"branch": "tiny-sdxl"},
    "loras": [{"id": "tune_1", "sha256": "ab" * 32, "scale": 1.0}],
    "code": "0.1.0",
}


def test_recipe_survives_the_file(tmp_path):
    store = Store(tmp_path)
    png.save_png(store, "batches/b/1.png", Image.new("RGB", (16, 16), "teal"), RECIPE)
    data = store.read_bytes("batches/b/1.png")
    assert png.read_recipe(data) == RECIPE
    assert Image.open(io.BytesIO(data)).getpixel((3, 3)) == (0, 128, 128)


def test_other_tools_find_their_words():
    text = Image.open(io.BytesIO(png.png_bytes(Image.new("RGB", (8, 8)), RECIPE))).text["parameters"]
    first, second, third = text.split("\n")
    assert first == RECIPE["prompt"]
    assert second == "Negative prompt: blurry"
    assert third.startswith(
        "Steps: 20, Sampler: dpm++2m_karras, CFG scale: 4.0, Seed: 7, Size: 128x96, Model: tiny-sdxl"
    )
    assert 'Lora hashes: "tune_1: abababababab"' in third


@pytest.mark.parametrize("data", [b"", b"GIF89a", png.png_bytes(Image.new("RGB", (8, 8)))])
def test_a_picture_without_a_recipe_says_so(data):
    with pytest.raises(Failure) as caught:
        png.read_recipe(data)
    assert caught.value.code == FailureCode.INVALID_REQUEST
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["[1]", "7", "[" * 100_000, "{", '"a"'])
def test_a_recipe_that_is_none_is_no_recipe(text):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(png.KEY, text, zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    with pytest.raises(Failure, match="carries no recipe"):
        png.read_recipe(buffer.getvalue())


def test_a_damaged_picture_is_named_however_it_is_damaged():
    whole = png.png_bytes(Image.effect_noise((64, 64), 50).convert("RGB"))
    chance = random.Random(3)
    kinds = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 40)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            png.open_own(bytes(data[: chance.randrange(len(data))]))
        except Failure as damaged:
            assert damaged.code == FailureCode.RENDER_FAILED
            kinds += 1
    assert kinds > 100


def test_same_picture_same_bytes():
    image = Image.new("RGB", (8, 8), "red")
    assert png.png_bytes(image, RECIPE) == png.png_bytes(image, dict(reversed(RECIPE.items())))
