"""The shipped weights: they load in stock classes, obey simple prompts, and the measuring models measure."""

from __future__ import annotations

import random

import numpy as np
import pytest

from factory.evaluate import CORE, obeyed, rate, sample_prompts
from factory.sheets import render
from tunes_dagster.tiny import (
    BASES,
    FLUX_SEQUENCE,
    MODELS,
    load_base,
    load_captioner,
    load_classifier,
    load_scorer,
    weights_dir,
)
from tunes_dagster.tiny.world import FIDELITY, attributes, caption, draw_shot, draw_subject, random_shot
from tunes_dagster.tiny.world.palette import COLORS


@pytest.fixture(scope="module")
def held_out():
    rng = random.Random("held out for tests")
    shots = [random_shot(rng) for _ in range(48)]
    return [(draw_shot(shot), attributes(shot), caption(shot, rng, plain=True)[0]) for shot in shots]


@pytest.fixture(scope="module", params=BASES)
def base(request):
    return load_base(request.param)


def test_weights_stay_small_and_have_cards():
    files = [f for f in weights_dir().rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 60e6
    for name in MODELS:
        assert (weights_dir() / name / "README.md").read_text().startswith("# ")
    configs = [f for f in files if f.name == "config.json"]
    assert not [f for f in configs if '"_name_or_path": "/' in f.read_text()]


@pytest.mark.parametrize("color", ["red", "blue", "yellow"])
def test_the_base_paints_the_background_it_was_asked_for(base, color):
    prompts = [f"a photo of a man with short black hair, on a {color} background"]
    (image,) = render(base, prompts, seed=2, steps=12)
    pixels = np.asarray(image).astype(int)
    assert pixels.std() > 20
    border = np.concatenate([pixels[:6].reshape(-1, 3), pixels[:40, :6].reshape(-1, 3)])
    distances = {
        name: np.abs(np.median(border, axis=0) - np.array(rgb)).sum() for name, rgb in COLORS.items()
    }
    assert min(distances, key=distances.get) == color


def test_the_base_draws_what_held_out_prompts_name(base):
    prompts, asked, _ = (list(column) for column in zip(*sample_prompts(16, seed=9), strict=True))
    scores = rate(obeyed(load_classifier(), render(base, prompts, steps=12), asked), CORE)
    assert scores["all"] > 0.75, scores  # real pictures of other prompts: 0.1


def test_the_base_draws_the_same_picture_for_the_same_seed(base):
    prompts = ["a photo of a red mug on a table"]
    first, again, other = (render(base, prompts, seed=seed, steps=4)[0] for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_the_base_renders_other_shapes(base):
    base.set_progress_bar_config(disable=True)
    image = base("a photo of a woman", num_inference_steps=3, height=144, width=112).images[0]
    assert image.size == (112, 144)


def test_the_base_takes_an_empty_and_an_explicit_negative_prompt(base):
    guided = {"guidance_scale": 4.0, "height": 128, "width": 128}
    if hasattr(base, "transformer"):
        guided |= {"true_cfg_scale": 4.0, "max_sequence_length": FLUX_SEQUENCE}
    for negative in (None, "", "a photo of a dog"):
        image = base("a cat", negative_prompt=negative, num_inference_steps=2, **guided).images[0]
        assert np.asarray(image).std() > 5


def test_the_classifier_recognises_real_pictures(held_out):
    rows = obeyed(load_classifier(), [image for image, _, _ in held_out], [found for _, found, _ in held_out])
    scores = rate(rows)
    assert scores["all"] > 0.85
    assert scores["background"] > 0.9
    assert scores["kind"] > 0.8


def test_the_captioner_names_what_is_there(held_out):
    images = [image for image, _, _ in held_out]
    texts = load_captioner().caption(images)
    assert texts == load_captioner().caption(images)
    found = [truth["background"] in text for text, (_, truth, _) in zip(texts, held_out, strict=True)]
    kinds = [truth["kind"] in text for text, (_, truth, _) in zip(texts, held_out, strict=True)]
    assert np.mean(found) > 0.7, texts
    assert np.mean(kinds) > 0.7, texts


def test_the_scorer_fits_texts_to_pictures(held_out):
    scorer = load_scorer()
    images = scorer.embed_images([image for image, _, _ in held_out])
    texts = scorer.embed_texts([text for _, _, text in held_out])
    assert images.shape == texts.shape == (48, 128)
    assert images.dtype == np.float32
    assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-4)
    ranks = (images @ texts.T > np.diag(images @ texts.T)[:, None]).sum(axis=1)
    assert np.mean(ranks < 5) > 0.6  # chance: 10 %


def test_the_scorer_tells_unseen_subjects_apart():
    scorer = load_scorer()
    known = np.stack(
        [
            scorer.embed_images([im for im, _ in draw_subject(name, 6, seed=11)]).mean(axis=0)
            for name in FIDELITY
        ]
    )
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    right = []
    for i, name in enumerate(FIDELITY):
        new = scorer.embed_images([im for im, _ in draw_subject(name, 6, seed=12)])
        right += list((new @ known.T).argmax(axis=1) == i)
    assert np.mean(right) > 0.95


def test_evaluation_prompts_name_true_attributes():
    rows = sample_prompts(20)
    assert [text for text, _, _ in rows] == [text for text, _, _ in sample_prompts(20)]
    assert all(asked for _, asked, _ in rows)


def test_the_ip_adapter_shows_people_it_never_saw_and_keeps_the_scene():
    """One picture is shown; likeness is measured to other ones."""
    import torch

    from factory.train.faceadapter import embed, renders
    from tunes_dagster.tiny import FACEADAPTER, FACEADAPTER_FILE
    from tunes_dagster.tiny.images import to_batch

    scorer, pipe = load_scorer(), load_base()
    folder = str(weights_dir() / FACEADAPTER)
    pipe.load_ip_adapter(folder, subfolder="", weight_name=FACEADAPTER_FILE, image_encoder_folder=None)
    people = [("barbo", "man"), ("nova", "woman"), ("comet", "woman")]
    shown, known = [], []
    for name, _ in people:
        pictures = [image for image, _ in draw_subject(name, 5, seed=21)]
        with torch.inference_mode():
            shown.append(embed(scorer.model, to_batch(pictures[:1])))
        known.append(scorer.embed_images(pictures[1:]))
    prompts = [
        (f"a photo of a {kind} {where}", i)
        for i, (_, kind) in enumerate(people)
        for where in ("on the beach", "on a red background")
    ]
    likeness, scenes = {}, {}
    for scale in (0.0, 1.0):
        images = renders(pipe, prompts, shown, scale, steps=10)
        rows = scorer.embed_images(images)
        likeness[scale] = np.mean(
            [(known[i] @ row).mean() for row, (_, i) in zip(rows, prompts, strict=True)]
        )
        found = [answer["background"] for answer in load_classifier().predict(images)]
        scenes[scale] = np.mean([one in ("beach", "red") for one in found])
    assert likeness[1.0] > likeness[0.0] + 0.15, likeness
    assert scenes[1.0] >= 0.8, scenes
