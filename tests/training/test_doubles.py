"""The doubles that everything is tested on are the released bases, made small in what is listed and in nothing else."""

from __future__ import annotations

import inspect
import json

import diffusers
import pytest
import transformers

from tests.support.doubles import (
    RELEASED,
    SMALL,
    TOKENIZER_SETTINGS,
    VOCABULARY,
    parts_of,
    released,
    write_double,
)

# What says who wrote a file, when, and in which bits.
WRITTEN = {
    "_diffusers_version",
    "_name_or_path",
    "_commit_hash",
    "transformers_version",
    "torch_dtype",
    "dtype",
}
# Keys of released files that today's classes do not keep, by class.
UNREAD = {
    # `families/loading.py` takes a VAE that says nothing for one that asks for float32.
    "AutoencoderKLFlux2": {"force_upcast"},
    # An encoder alone says so of itself.
    "T5EncoderModel": {"is_encoder_decoder", "tie_word_embeddings", "use_cache"},
}


@pytest.fixture(scope="module", params=SMALL)
def double(request, tmp_path_factory):
    return request.param, write_double(request.param, tmp_path_factory.mktemp("doubles") / request.param)


def written(folder, part):
    for file in ("config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json"):
        if (folder / part / file).is_file():
            return json.loads((folder / part / file).read_text())
    raise AssertionError(f"{part} was not written")


def differing(ours, theirs, shrunk, path=""):
    """Yield the keys of a released configuration that a double does not have as they are."""
    for key, value in theirs.items():
        if key in WRITTEN or key in VOCABULARY:
            continue
        here = f"{path}{key}"
        if isinstance(value, dict):
            inner = shrunk.get(key) if isinstance(shrunk.get(key), dict) else {}
            yield from differing(ours.get(key) or {}, value, inner, f"{here}.")
        elif key not in shrunk and ours.get(key, "is not there") != value:
            yield here, value, ours.get(key, "is not there")


def test_every_released_base_says_where_it_is_from():
    sources = json.loads((RELEASED / "SOURCES.json").read_text())
    assert set(sources) == {path.name for path in RELEASED.iterdir() if path.is_dir()} == set(SMALL)
    for source in sources.values():
        assert source["repository"].startswith("https://") and len(source["commit"]) == 40


def read(class_name, config):
    """Return a configuration as transformers reads it: names and defaults have changed since some were written."""
    if "model_type" not in config:
        made = transformers.CLIPImageProcessor(**{k: v for k, v in config.items() if not k.endswith("_type")})
        return {k: v for k, v in made.to_dict().items() if k in config or k in ("crop_size", "size")}
    kind = transformers.CONFIG_MAPPING[config["model_type"]]
    return json.loads(kind.from_dict(config).to_json_string(use_diff=False))


def test_a_double_differs_from_what_is_released_in_what_is_made_small_alone(double):
    name, folder = double
    for part, (library, class_name) in parts_of(name).items():
        if part.startswith("tokenizer"):
            continue
        shrunk, ours, theirs = SMALL[name].get(part, {}), written(folder, part), released(name, part)
        if library != "diffusers":
            unsaid = {"architectures"} - theirs.keys()  # which the index says anyway
            ours, theirs = read(class_name, ours), read(class_name, theirs)
            theirs = {key: value for key, value in theirs.items() if key not in unsaid}
        theirs = {key: value for key, value in theirs.items() if key not in UNREAD.get(class_name, ())}
        assert list(differing(ours, theirs, shrunk)) == [], (name, part)
        if library == "diffusers":  # what the released file leaves to its class is left to it here
            defaults = inspect.signature(getattr(diffusers, class_name).__init__).parameters
            for key in defaults.keys() & ours.keys() - theirs.keys() - shrunk.keys():
                default = defaults[key].default
                assert ours[key] == (list(default) if isinstance(default, tuple) else default), (part, key)


def test_only_widths_depths_heads_and_sizes_are_made_small():
    sizes = {
        *("size", "width", "height", "frames", "layers", "heads", "dim", "dims", "channels", "groups", "kv"),
        *("ff", "model", "types", "block"),
    }
    for parts in SMALL.values():
        for keys in parts.values():
            flat = [key for key, value in keys.items() if not isinstance(value, dict)]
            flat += [key for value in keys.values() if isinstance(value, dict) for key in value]
            assert [key for key in flat if not sizes & set(key.split("_"))] == []


def test_pipelines_have_the_released_parts_and_options(double):
    name, folder = double
    ours, theirs = json.loads((folder / "model_index.json").read_text()), released(name, "")
    assert ours["_class_name"] == theirs["_class_name"]
    for key, value in theirs.items():
        if key.startswith("_") or key == "add_watermarker":
            continue
        if key.startswith("tokenizer") or key == "feature_extractor":
            assert ours[key][0] == value[0]  # classes are called without Fast and FeatureExtractor by now
        else:
            assert ours[key] == value, key


def test_tokenizers_have_the_released_classes_and_settings(double):
    name, folder = double
    for part, (_, class_name) in parts_of(name).items():
        if not part.startswith("tokenizer") or not (RELEASED / name / part).is_dir():
            continue
        kind = getattr(transformers, class_name)
        tokenizer = kind.from_pretrained(folder / part)
        for key, value in released(name, part).items():
            if key in TOKENIZER_SETTINGS and key != "extra_ids":
                said = value["content"] if isinstance(value, dict) else value
                assert getattr(tokenizer, key) == said, (name, part, key)
