"""What a prompt may ask for: limits, what is filled in, and what is refused before it is queued."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image
from pydantic import ValidationError

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import PromptRequest, RenderSettings
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.core.wishes import Wishes
from tunes_dagster.families.catalog import AuxiliaryEntry, Catalog, load_catalog
from tunes_dagster.rendering.submission import PromptContext, complete_prompt


@pytest.fixture
def place(tmp_path):
    return Settings(home=tmp_path / "home"), Store(tmp_path / "store"), tmp_path


def complete(
    place,
    text="a photo of ohwx man",
    base="sdxl",
    catalog=None,
    characteristics=(),
    find=None,
    wishes=None,
    **settings,
):
    options, store, _ = place
    catalog = catalog or load_catalog()
    asked = catalog.resolve(base)
    request = PromptRequest(text=text, base=base, settings=RenderSettings(**settings))
    context = PromptContext(
        asked,
        catalog.real(asked),
        catalog,
        options,
        store,
        dict(characteristics),
        find,
        wishes=Wishes("refuse") if wishes is None else wishes,
    )
    return complete_prompt(request, context)


def refused(place, code=FailureCode.INVALID_REQUEST, **asked):
    with pytest.raises(Failure) as caught:
        complete(place, **asked)
    assert caught.value.code == code and caught.value.remedy
    return str(caught.value)


def png(size=(64, 48)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_sizes_follow_the_aspect_ratio(place):
    settings = complete(place, aspect_ratio="16:9").settings
    assert settings.width > settings.height and settings.width * settings.height <= 128 * 128
    settings = complete(place, aspect_ratio="3:4", height=256).settings
    assert (settings.width, settings.height) == (192, 256)
    assert "aspect_ratio is 16:9" in refused(place, aspect_ratio="16:9", width=128, height=128)


def test_baselines_are_steps_and_a_person_wins(place):
    fast, thorough = complete(place, baseline="fast").settings, complete(place, baseline="thorough").settings
    assert (fast.steps, fast.hires_fix) == (13, False) and (thorough.steps, thorough.hires_fix) == (30, True)
    assert complete(place, wishes=Wishes(), baseline="fast", steps=7).settings.steps == 7


def test_pictures_in_a_request_move_into_the_store(place):
    settings = complete(place, input_image=png(), mask_image=f"data:image/png;base64,{png()}").settings
    assert settings.input_image.startswith("blobs/") and settings.denoising_strength == 0.8
    assert Image.open(io.BytesIO(place[1].read_bytes(settings.mask_image))).size == (64, 48)
    assert complete(place, input_image=settings.input_image).settings.input_image == settings.input_image
    half, other = png((32, 24)), png((48, 64))
    assert complete(place, input_image=png(), mask_image=half).settings.mask_image
    assert "mask_image is 48 x 64, but input_image is 64 x 48" in refused(
        place, input_image=png(), mask_image=other
    )
    url = "https://example.com/a.png"
    assert complete(place, input_image=url).settings.input_image == url
    refused(place, FailureCode.SOURCE_REFUSED, input_image="http://169.254.169.254/a.png")
    refused(place, FailureCode.PICTURE_UNREADABLE, input_image="aGVsbG8=")
    refused(place, input_image="blobs/../secret")


@pytest.mark.parametrize("base", ["flux1-dev", "flux1-schnell"])
def test_what_a_distilled_base_has_not_is_refused_where_wishes_are(place, base):
    assert "negative_prompt" in refused(place, base=base, negative_prompt="dark")
    assert "plain sentences" in refused(place, base=base, text="a (red:1.3) hat")
    assert complete(place, base=base, text=r"a \(red\) hat").settings.steps


@pytest.mark.usefixtures("without_upscaler")
@pytest.mark.parametrize(
    ("asked", "command"),
    [
        ({"super_resolution": True, "upscaler": "model"}, "tunes bases pull upscale-4x"),
        ({"controlnet": "canny", "input_image": png()}, "tunes bases pull controlnet-canny-sdxl"),
    ],
)
def test_weights_that_are_not_there_are_named_with_their_command(place, asked, command):
    assert command in refused(place, FailureCode.BASE_NOT_INSTALLED, **asked)


def told(place, **asked):
    """The settings of a prompt that goes on without what cannot be met, and what is said of that."""
    wishes = Wishes()
    settings = complete(place, wishes=wishes, seed=1, **asked).settings
    return settings, wishes.told()


@pytest.mark.usefixtures("without_upscaler")
@pytest.mark.parametrize(
    ("asked", "done", "said"),
    [
        ({"super_resolution": True}, {"super_resolution": True, "upscaler": "lanczos"}, "upscale-4x"),
        ({"face_correct": True}, {"face_correct": False}, "gfpgan"),
        ({"denoising_strength": 0.5}, {}, "denoising_strength means nothing"),
        ({"controlnet_txt2img": True}, {}, "controlnet_txt2img needs a controlnet"),
        (
            {"negative_prompt": "dark", "guidance_scale": 1},
            {"negative_prompt": "", "guidance_scale": 1},
            "negative_prompt is not looked at with a guidance_scale of 1",
        ),
        ({"base": "flux1-dev", "negative_prompt": "dark"}, {"negative_prompt": ""}, "negative_prompt is not"),
        ({"base": "flux1-dev", "text": "a (red:1.3) hat"}, {}, "text has weights"),
        (
            {"base": "cogvideo-2b", "hires_fix": True},
            {"hires_fix": False},
            "hires_fix does not apply to clips",
        ),
    ],
)
def test_a_wish_that_cannot_be_met_is_left_out_and_told_of(place, asked, done, said):
    settings, sentences = told(place, **asked)
    without = {name: value for name, value in asked.items() if name in ("base", "text")}
    if "text" in without:
        without["text"] = "a hat"
    plain, nothing = told(place, **without)
    assert settings == plain.model_copy(update=done) and not nothing
    assert len(sentences) == 1 and said in sentences[0] and ": " in sentences[0]
    assert said.split()[0] in refused(place, **asked), "under the rule `refuse` it ends the request"


def test_foreign_syntax_is_refused_in_both_texts_and_brackets_are_text_on_flux(place):
    for base in ("sdxl", "flux1-dev", "cogvideo-2b"):
        assert "{red|blue}" in refused(place, base=base, text="{red|blue} mug")
    assert "{a|b}" in refused(place, negative_prompt="{a|b}")
    assert "from step to step" in refused(place, base="cogvideo-2b", text="a [cat|dog]")
    for base in ("sdxl", "flux1-dev"):
        assert (
            complete(place, base=base, text="a [cat|dog] [at noon:0.5]").text == "a [cat|dog] [at noon:0.5]"
        )
    assert "not closed" in refused(place, negative_prompt="(dark")
    complete(place, base="flux1-dev", text="a woman (in her thirties) :( or (so")


def test_rules_look_at_the_words_of_each_step(place):
    for text in ("a po[dog|rn]", "a [po:dog:0.5]rn", "a [dog:po:19]rn"):
        assert "rule" in refused(place, FailureCode.BLOCKED, text=text).lower()


def test_a_resampler_that_was_asked_for_is_no_wish_unmet(place):
    settings, sentences = told(place, super_resolution=True, upscaler="lanczos")
    assert settings.upscaler == "lanczos" and not sentences


def test_auxiliary_models_take_their_own_settings(place):
    said = refused(place, base="cogvideo-2b", composition="random", num_images=2, input_image=png())
    assert "composition does not apply to clips" in said and "input_image" in said
    assert "num_images" not in said
    assert complete(place, base="cogvideo-2b", num_frames=9).settings.fps == 8
    assert "in fours: 9 or 13" in refused(place, base="cogvideo-2b", num_frames=11)
    assert "what should be enlarged" in refused(place, base="upscale-4x", text="")
    assert complete(place, base="upscale-4x", text="", input_image=png()).text == ""
    assert "LoRA" in refused(place, base="cogvideo-2b", text="a man <lora:x:1>")
    assert "num_frames is for video" in refused(place, num_frames=9)
    assert "without its tags" in refused(place, text="")


def test_an_installed_controlnet_is_accepted(place):
    folder = place[2] / "control"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    entry = AuxiliaryEntry(
        base_id="c", family="controlnet", fits="sdxl", control="canny", repo_id=str(folder), licence="none"
    )
    catalog = load_catalog()
    known = Catalog({**catalog.entries, **catalog.auxiliary, "c": entry})
    known.auxiliary = {"c": entry}
    assert (
        complete(place, catalog=known, controlnet="canny", input_image=png()).settings.controlnet == "canny"
    )


def test_templates_know_the_tune_and_those_in_tags(place):
    def find(name, tag):
        if name != "duo":
            raise Failure(FailureCode.UNKNOWN_TUNE, "no", "no")
        return {"hat": "a red hat"}

    text = "ohwx man, {{hair}}, {{hat}} <lora:duo:0.5>"
    assert complete(place, text=text, characteristics={"hair": "brown"}, find=find).text == text
    assert "{{hat}}" in refused(place, text="{{hat}}", characteristics={"hair": "brown"}, find=find)
    refused(place, FailureCode.UNKNOWN_TUNE, text="a <lora:solo:1>", find=find)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mask_image": "x"},
        {"controlnet": "canny"},
        {"style": "Baroque"},
        {"color_grading": "Kodak"},
        {"aspect_ratio": "7:3"},
        {"denoising_strength": 1.5},
        {"face_height": 2},
        {"num_frames": 0},
    ],
)
def test_limits_stand_on_the_settings(wrong):
    with pytest.raises(ValidationError):
        RenderSettings(**wrong)
