"""Scorers by their catalog entry: the shipped one, and the production classes with random weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.onnx_files import write_face_network
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.evaluation.scorers import (
    Scorer,
    ScorerEntry,
    TextScorer,
    load_scorer,
    load_scorer_catalog,
)
from tunes_dagster.families.clip import ClipPixels
from tunes_dagster.tiny import weights_dir


@pytest.fixture(scope="module")
def pictures():
    source = np.random.default_rng(0)
    sizes = [(64, 48), (40, 90), (70, 70)]
    return [Image.fromarray(source.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def random_clip(folder):
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    tokenizer = AutoTokenizer.from_pretrained(weights_dir() / "scorer")
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def random_dino(folder):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    mean = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**mean, "crop_size": {"height": 42, "width": 42}})
    )


@pytest.mark.parametrize(("kind", "make", "width"), [("clip", random_clip, 16), ("dino", random_dino, 32)])
def test_production_classes_load_from_their_folder(tmp_path, pictures, kind, make, width):
    make(tmp_path)
    scorer = load_scorer(ScorerEntry(name=f"random-{kind}", kind=kind, repo_id=str(tmp_path)), tmp_path)
    rows = scorer.embed_images(pictures)
    assert rows.shape == (3, width) and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.allclose(scorer.embed_images(pictures[1:2]), rows[1:2], atol=1e-5), "a row stands for itself"
    assert scorer.embed_images([]).shape == (0, width)
    assert isinstance(scorer, Scorer) and isinstance(scorer, TextScorer) == (kind == "clip")
    if kind == "clip":
        texts = scorer.embed_texts(["a dog", "a photo of a cat in the snow"])
        assert texts.shape == (2, width) and np.allclose(texts[:1], scorer.embed_texts(["a dog"]), atol=1e-5)


def test_all_who_look_with_clips_eyes_see_what_its_own_processor_makes(tmp_path):
    """Without a configuration as CLIP has it, which the policy's checker and IP-Adapters rely on."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    for size in ((90, 60), (224, 224), (301, 400)):
        picture = Image.effect_noise(size, 60)
        stock = CLIPImageProcessorPil()([picture.convert("RGB")], return_tensors="pt").pixel_values
        assert torch.equal(ClipPixels(tmp_path, 224)([picture]), stock)


def test_the_whole_centred_square_is_seen_in_the_colours_that_a_network_was_taught(tmp_path):
    """DINO's configuration would scale to 256 and cut out 224."""
    said = {
        "image_mean": [0.2, 0.3, 0.4],
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": 64},
        "resample": 1,
    }
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {**said, "image_processor_type": "BitImageProcessor", "crop_size": {"height": 32, "width": 32}}
        )
    )
    picture = Image.new("RGB", (60, 40), (255, 255, 255))
    picture.paste((0, 0, 0), (0, 0, 10, 40))  # what lies beside the square
    pixels = ClipPixels(tmp_path, 16)
    (seen,) = pixels([picture])
    assert pixels.side == 32 and seen.shape == (3, 32, 32) and seen.dtype == torch.float32
    assert torch.allclose(seen[:, 16, 16], torch.tensor([1.6, 1.4, 1.2])), (
        "white, minus the mean, by the deviation"
    )
    assert float(seen.min()) > 1, "nothing of what lies beside the square is seen, and all of the square"


def test_the_shipped_scorer_scales_as_it_was_trained():
    from tunes_dagster.tiny.images import to_batch

    pictures = [Image.effect_noise((side, side), 60).convert("RGB") for side in (64, 128, 256)]
    pixels = ClipPixels(weights_dir() / "scorer", 0)
    for picture in pictures:
        assert torch.allclose(pixels([picture]), to_batch([picture]), atol=1e-5)


def test_the_shipped_scorer_reads_and_looks(pictures):
    from tunes_dagster.tiny import load_scorer as shipped

    entry = load_scorer_catalog().entry(load_scorer_catalog().profiles["embedded"]["text"])
    scorer = load_scorer(entry, weights_dir())
    assert np.allclose(scorer.embed_images(pictures), shipped().embed_images(pictures), atol=1e-5)
    assert np.allclose(scorer.embed_texts(["a dog"]), shipped().embed_texts(["a dog"]), atol=1e-5)


def test_a_damaged_scorer_is_named(tmp_path):
    catalog = load_scorer_catalog()
    entry = catalog.entry(catalog.profiles["production"]["text"])
    place = entry.location(tmp_path)
    place.mkdir(parents=True)
    (place / "config.json").write_text("<html>")
    with pytest.raises(Failure, match=f"The scorer '{entry.name}' cannot be loaded") as caught:
        load_scorer(entry, tmp_path)
    assert caught.value.code == FailureCode.WEIGHTS_UNUSABLE and "tunes bases pull" in caught.value.remedy


def test_a_scorer_that_is_not_there_says_how_to_get_it(tmp_path):
    catalog = load_scorer_catalog()
    for question in ("likeness", "text"):
        entry = catalog.entry(catalog.profiles["production"][question])
        assert entry.licence and entry.revision and len(entry.revision) == 40
        with pytest.raises(Failure, match="is not installed") as caught:
            load_scorer(entry, tmp_path)
        assert caught.value.remedy.startswith(f"Run `tunes bases pull {entry.name}`")
    with pytest.raises(Failure, match="no scorer called 'dyno'"):
        catalog.entry("dyno")


class FixedFaces:
    """Finds one face where it is told that one is, or its landmarks, as YuNet does."""

    def __init__(self, found):
        self.found = found

    def setInputSize(self, size):
        self.size = size

    def detect(self, image):
        return (1, self.found) if hasattr(self, "size") else self.found


def test_faces_are_compared_by_a_face_network(tmp_path):
    """SFace's class on a network of ours: what it is given, turned upright or not, and pictures without a face."""
    weights = write_face_network(tmp_path / "faces.onnx")
    entry = ScorerEntry(name="sface", kind="sface", repo_id=str(tmp_path / "faces.onnx"))
    scorer = load_scorer(entry, tmp_path)
    face = Image.effect_noise((112, 112), 80).resize((8, 8)).resize((112, 112), Image.Resampling.NEAREST)
    face = Image.merge("RGB", [face, face.point(lambda v: v // 2), face.point(lambda v: 255 - v)])
    picture = Image.new("RGB", (200, 160))
    picture.paste(face, (60, 30))
    scorer._detector = FixedFaces([(60, 30, 112, 112)])
    means = (
        np.asarray(face, np.float32).reshape(8, 14, 8, 14, 3).mean(axis=(1, 3)).transpose(2, 0, 1).reshape(-1)
    )
    expected = weights @ means
    rows = scorer.embed_images([picture])
    assert rows.shape == (1, 128) and float(rows[0] @ expected / np.linalg.norm(expected)) > 0.9999
    scorer._detector = FixedFaces([])
    assert not scorer.embed_images([picture]).any()
    assert scorer.embed_images([]).shape == (0, 128)

    # Lying on its side, with eyes, nose and mouth where SFace's upright crop has them (OpenCV's face_recognize.cpp).
    upright = np.array([(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)])
    lying = np.stack([upright[:, 1], 111 - upright[:, 0]], axis=1)
    scorer._landmarks = FixedFaces(np.array([[0, 0, 112, 112, *lying.reshape(-1), 0.9]], np.float32))
    scorer._landmarks.setInputSize((112, 112))
    turned = scorer.embed_images([face.rotate(90)])
    assert float(turned[0] @ rows[0]) > 0.98
    with pytest.raises(Failure, match="face detector"):
        load_scorer(entry.model_copy(update={"detector": str(tmp_path / "none.onnx")}), tmp_path)


def test_an_operators_file_lies_over_the_shipped_one(tmp_path):
    file = tmp_path / "scorers.yaml"
    file.write_text(
        "profiles: {production: {faces: sface}}\nscorers: {sface: {kind: sface, repo_id: /models/sface.onnx}}\n"
    )
    catalog = load_scorer_catalog(str(file))
    assert catalog.profiles["production"] == {
        "likeness": "dinov2-base",
        "text": "clip-vit-large",
        "faces": "sface",
    }
    assert str(catalog.entry("sface").location(tmp_path)) == "/models/sface.onnx"
