import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.rendering.prompts import missing_token, parse_prompt
from tunes_dagster.rendering.sizes import enlarge, fit_area, rendered_size

TINY = load_catalog().entries["tiny-sdxl"]
REAL = load_catalog().entries["sdxl1"]


@pytest.mark.parametrize(
    "asked, rendered",
    [((1024, 1024), (128, 128)), ((512, 768), (104, 152)), ((1024, 512), (176, 88)), ((64, 64), (128, 128))],
)
def test_tiny_base_renders_at_its_native_area(asked, rendered):
    assert rendered_size(TINY, *asked) == rendered


@given(st.integers(8, 256).map(lambda n: n * 8), st.integers(8, 256).map(lambda n: n * 8))
def test_native_area_is_never_left_and_the_aspect_is_kept(width, height):
    w, h = fit_area(width, height, 128 * 128)
    assert w % 8 == 0 and h % 8 == 0 and w * h <= 128 * 128
    if 0.4 < width / height < 2.5:
        assert abs(w / h / (width / height) - 1) < 0.09
        assert w * h > 0.7 * 128 * 128


def test_real_base_renders_what_is_asked_up_to_its_limit():
    assert rendered_size(REAL, 1024, 1024) == (1024, 1024)
    assert rendered_size(REAL, 832, 1216) == (832, 1216)
    w, h = rendered_size(REAL, 2048, 2048)
    assert w == h and w * h <= REAL.max_pixels


def test_enlarging_gives_exactly_the_asked_size():
    image = Image.effect_noise((88, 176), 50).convert("RGB")
    assert enlarge(image, 512, 1024).size == (512, 1024)
    assert enlarge(image, 520, 1024).size == (520, 1024)
    assert enlarge(image, 88, 176) is image


def test_loras_are_taken_out_of_the_text():
    parsed = parse_prompt(
        "<lora:tune_1:0.8> a photo of ohwx man , <lora: Fern :1.1>\n smiling <lora:tune_1:0.1>"
    )
    assert parsed.text == "a photo of ohwx man, smiling"
    assert [(name, round(scale, 6)) for name, scale in parsed.loras] == [("tune_1", 0.9), ("Fern", 1.1)]
    assert parse_prompt("x <lora:a>").loras == (("a", 1.0),)


@pytest.mark.parametrize(
    "text, named",
    [
        ("a {{hair}} man", "{{hair}}"),
        ("a <hypernet:x:1> man", "<hypernet:x:1>"),
        ("a man <lora:x:9>", "<lora:x:9>"),
        ("a man <lora:x:2> <lora:x:2>", "'x' name one tune, with 4 in all"),
        ("a man <faceid:x:1.5> <faceid:x>", "'x' name one tune, with 2.5 in all"),
        ("a man <lora::1>", "<lora::1>"),
        ("a man <lora:x:much>", "<lora:x:much>"),
        ("a man <lora:x:nan>", "<lora:x:nan>"),
        ("a man <lora:x", "<lora"),
        ("<lora:x:1>", "without its tags"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(text, named):
    with pytest.raises(Failure) as caught:
        parse_prompt(text)
    assert caught.value.code == FailureCode.INVALID_REQUEST
    assert named in caught.value.message and caught.value.remedy


@pytest.mark.parametrize(
    "text", ["a man (smiling) on a hill", "5 < 6 and 7 > 3", "ratio 3:2, <3", "a [b] c", r"face \(blue:1\)"]
)
def test_ordinary_punctuation_is_left_alone(text):
    assert parse_prompt(text).text == text


def test_too_many_loras_are_refused():
    with pytest.raises(Failure, match="9 LoRAs"):
        parse_prompt("a man " + "".join(f"<lora:t{i}:1>" for i in range(9)))


def test_a_prompt_without_the_token_is_warned_about():
    assert missing_token("a photo of OHWX man", "ohwx") == ""
    assert missing_token("a photo of ohwxman", "ohwx", "man").endswith(
        "write 'ohwx man' to show the subject."
    )
    assert missing_token("anything", "") == ""
