"""Prior preservation: what the untuned base says about its own world, kept so that a tune does not forget it.

A tune's rows are joined by rows whose target is the base's own prediction with the adapter off (as OneTrainer's
prior prediction and ai-toolkit's differential output preservation do it). Since the base is frozen, these
predictions are constants: they are computed once, before the loop, and cost no forward in it. Two sets:

- the class set: noised pictures that the base renders from prompts about the class, about other rare words and
  about other things. It depends on base, class, picture shape and count only, so it lies in the store's cache
  and the second tune of a class finds it there;
  Pictures of the class that came along (kohya's regularisation pictures) take its place;
- the own set: the tune's own pictures, noised, under captions without the token or with other rare words. The
  base's answer there says what "a woman" and "zkqj woman" must keep meaning in front of this very subject.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tunes_dagster.core.store import Store
from tunes_dagster.families.base import LoadedBase
from tunes_dagster.intake.subject import is_style
from tunes_dagster.training import cache, order
from tunes_dagster.training.captions import stacked
from tunes_dagster.training.jobs import TrainExample, TuneJob

# Noised versions of each class picture and of each own picture.
CLASS_DRAWS, OWN_DRAWS = 8, 16
# Of class pictures that came along all together: as many as of a hundred rendered ones, once each at the least.
_GIVEN_ROWS = 800
# Stands for what the pipeline uses where no negative prompt is given, which is not always the empty caption.
NO_TEXT = "\0"
# Denoising steps of the class pictures: they need to be typical, not perfect.
_SAMPLING_STEPS = 12
# Rows per forward without gradients.
_ROWS_PIXELS = 16 * 128 * 128

_PEOPLE = frozenset(
    ["woman", "man", "person", "girl", "boy", "lady", "guy", "child", "kid", "people", "face"]
)
_PLACES = (
    "on the beach",
    "in a forest",
    "in the mountains",
    "at night",
    "in the snow",
    "in the desert",
    "in the city",
    "in a meadow",
    "on a red background",
    "on a blue background",
    "on a green background",
    "on a yellow background",
    "on a white background",
    "on a black background",
    "on a purple background",
    "on a pink background",
    "on an orange background",
    "on a gray background",
    "on a brown background",
)
_PERSON_DETAILS = (
    "with black hair",
    "with long brown hair",
    "with short blond hair",
    "with curly red hair",
    "with gray hair",
    "wearing glasses",
    "wearing sunglasses",
    "wearing a red hat",
    "wearing a blue cap",
    "wearing a black top hat",
    "wearing a green beanie",
    "in a red shirt",
    "in a blue shirt",
    "in a striped yellow shirt",
    "in a black shirt",
    "smiling",
    "with blue eyes",
)
_COLOURS = ("red", "blue", "black", "white", "yellow", "brown", "gray", "green")
_OTHERS = ("woman", "man", "person", "dog", "cat", "mug", "car", "ball", "chair", "bottle", "backpack")


@dataclass
class PriorSet:
    """Noised latents and what the base predicts for them; row i of each belongs together.

    Attributes:
        noisy: [rows, c, h, w].
        timesteps: [rows].
        predictions: [rows, c, h, w].
        texts: Caption of each row.
    """

    noisy: Tensor
    timesteps: Tensor
    predictions: Tensor
    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def joined(self, other: PriorSet) -> PriorSet:
        """Return both sets as one."""
        return PriorSet(
            torch.cat([self.noisy, other.noisy]),
            torch.cat([self.timesteps, other.timesteps]),
            torch.cat([self.predictions, other.predictions]),
            self.texts + other.texts,
        )


def rare_word(source: random.Random, token: str) -> str:
    """Return a word of four letters that means nothing and is not the token."""
    while True:
        word = "".join(source.choice("bcdfghjklmnpqrstvwxyz") for _ in range(4))
        if word != token.lower():
            return word


def class_prompts(class_name: str, count: int, seed: int = 0) -> list[str]:
    """Return prompts about the class, rare words with the class, and other things, a third each.

    They depend on the class alone, so that all tunes of one class share their pictures.
    """
    source = random.Random(f"{class_name}-{seed}")
    prompts = []
    for i in range(count):
        place = source.choice(_PLACES)
        if i % 3 == 1:
            subject = f"{rare_word(source, '')} {_detailed(class_name, source)}"
        else:
            others = [other for other in _OTHERS if other != class_name]
            subject = _described(class_name if i % 3 == 0 else source.choice(others), source)
        prompts.append(f"a photo of {subject} {place}")
    return prompts


def _described(word: str, source: random.Random) -> str:
    if word not in _PEOPLE and source.random() < 0.7:
        return f"a {source.choice(_COLOURS)} {word}"
    return f"{'an' if word[0] in 'aeiou' else 'a'} {_detailed(word, source)}"


def _detailed(word: str, source: random.Random) -> str:
    if word in _PEOPLE and source.random() < 0.7:
        return f"{word} {source.choice(_PERSON_DETAILS)}"
    return word


def without_token(caption: str, token: str, class_name: str) -> str:
    """Return the caption with the subject called by its class alone: `a photo of a woman on the beach`.

    A style is not called anything: `a dog on the beach, in ohwx ink style` becomes `a dog on the beach`.
    """
    if is_style(class_name):
        named = rf"{re.escape(token)}(?:\s+{re.escape(class_name)})?"
        plain = re.sub(rf",?\s*\b(?:in\s+(?:an?\s+|the\s+)?)?{named}\b", "", caption, flags=re.I).strip(" ,")
        return plain or "a picture"
    article = "an" if class_name[:1].lower() in "aeiou" else "a"
    pattern = re.compile(rf"\b(?:(?:an?|the)\s+)?{re.escape(token)}\b(\s+{re.escape(class_name)}\b)?", re.I)
    return pattern.sub(f"{article} {class_name}", caption)


def _rows_per_forward(shape: Sequence[int], base: LoadedBase) -> int:
    pixels = shape[1] * shape[2] * base.pixels_per_latent**2
    return max(1, _ROWS_PIXELS // pixels)


def _predict_all(
    base: LoadedBase,
    clean: Tensor,
    texts: Sequence[str],
    table: dict[str, dict[str, Tensor]],
    source: torch.Generator,
    on_row: Callable[[int], None],
) -> PriorSet:
    """Noise every row of `clean` once and ask the base about it; timesteps are spread evenly."""
    noise = torch.randn(clean.shape, generator=source).to(clean.dtype)
    spread = (torch.randperm(len(clean), generator=source) + torch.rand(len(clean), generator=source)) / len(
        clean
    )
    height, width = (int(side) * base.pixels_per_latent for side in clean.shape[2:])
    timesteps = base.draw_timesteps(spread, width, height)
    noisy, predictions = [], []

    def predict(start: int, stop: int) -> None:
        part = slice(start, stop)
        part_timesteps = timesteps[part].to(base.device)
        noisy_latents = base.add_noise(
            clean[part].to(base.device), noise[part].to(base.device), part_timesteps
        )
        rows = stacked([table[t] for t in texts[part]])
        text = {name: value.to(base.device) for name, value in rows.items()}
        with torch.no_grad():
            model_pred = base.predict(
                noisy_latents.to(base.dtype), part_timesteps, base.with_size(text, width, height)
            )
        noisy.append(noisy_latents.cpu())
        predictions.append(model_pred.cpu())
        on_row(stop)

    cache.in_parts(len(clean), _rows_per_forward(clean.shape[1:], base), predict)
    return PriorSet(torch.cat(noisy), timesteps, torch.cat(predictions), list(texts))


def class_set(
    base: LoadedBase,
    store: Store,
    prompts: Sequence[str],
    width: int,
    height: int,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[PriorSet, bool]:
    """Return the class set and whether it lay in the cache.

    Args:
        base: The base, without adapters.
        store: Its `cache/prior/` keeps the set.
        prompts: What to render; see `class_prompts`.
        width: Pixels of the pictures.
        height: Pixels of the pictures.
        on_row: Told (done, total) while it is computed.
    """
    name = cache.digest(list(prompts), width, height, CLASS_DRAWS, _SAMPLING_STEPS, base.entry.rendering)
    key = f"cache/prior/{base.fingerprint()}/{name}.safetensors"
    found = cache.read_tensors(store, key)
    if found is not None and {"noisy", "timesteps", "predictions"} <= set(found):
        texts = [text for text in prompts for _ in range(CLASS_DRAWS)]
        return PriorSet(found["noisy"], found["timesteps"], found["predictions"], texts), True
    table, _ = cache.cached_text(prompts, base, store, whole=False)
    source = order.generator(0, order.PRIOR)
    shape = base.latent_shape(width, height)
    total = len(prompts) * (1 + CLASS_DRAWS)
    guidance = float(base.entry.rendering.get("guidance_scale", 5.0))
    noise = torch.randn(len(prompts), *shape, generator=source)
    clean = []

    def render(start: int, stop: int) -> None:
        chunk = prompts[start:stop]
        text = {n: torch.stack([table[t][n] for t in chunk]).to(base.device) for n in table[chunk[0]]}
        clean.append(base.sample(text, noise[start:stop], width, height, _SAMPLING_STEPS, guidance).cpu())
        on_row(stop, total)

    cache.in_parts(len(prompts), _rows_per_forward(shape, base), render)
    repeated = torch.cat(clean).repeat_interleave(CLASS_DRAWS, dim=0)
    texts = [text for text in prompts for _ in range(CLASS_DRAWS)]
    done = len(prompts)
    made = _predict_all(base, repeated, texts, table, source, lambda n: on_row(done + n, total))
    tensors = {"noisy": made.noisy, "timesteps": made.timesteps, "predictions": made.predictions}
    cache.write_tensors(store, key, tensors)
    return made, False


def given(job: TuneJob, bucket: tuple[int, int]) -> list[TrainExample]:
    """Return the class pictures that came with a tune, in one bucket, with captions that do not name its token."""
    return [
        replace(
            one,
            bucket=bucket,
            caption=without_token(one.caption, job.token, job.class_name)
            if job.token.lower() in one.caption.lower()
            else one.caption,
        )
        for one in job.prior_pictures
    ]


def given_set(
    base: LoadedBase,
    clean: Tensor,
    captions: Sequence[str],
    table: dict[str, dict[str, Tensor]],
    seed: int,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> PriorSet:
    """Return the set of class pictures that came along.

    Args:
        base: The base, without adapters.
        clean: Posterior means of the pictures, which share a shape, [pictures, c, h, w].
        captions: One per picture.
        table: Conditioning of every caption.
        seed: The tune's.
        on_row: Told (done, total) while it is computed.
    """
    draws = max(1, min(CLASS_DRAWS, _GIVEN_ROWS // len(captions)))
    texts = [text for text in captions for _ in range(draws)]
    source = order.generator(seed, order.PRIOR, 2)
    total = len(texts)
    return _predict_all(
        base,
        clean.repeat_interleave(draws, dim=0),
        texts,
        table,
        source,
        lambda done: on_row(done, total),
    )


def own_texts(captions: Sequence[str], token: str, class_name: str, seed: int) -> list[str]:
    """Return OWN_DRAWS captions per picture: half without the token, most others with another rare word.

    One in eight is no text at all: guidance is the difference to it, which shrinks when the subject is there too.
    """
    source = random.Random(f"{token}-{class_name}-{seed}")
    texts = []
    for caption in captions:
        plain = without_token(caption, token, class_name)
        for i in range(OWN_DRAWS):
            other = caption.replace(token, rare_word(source, token))
            texts.append(NO_TEXT if i % 8 == 7 else plain if i % 2 == 0 or other == caption else other)
    return texts


def own_set(
    base: LoadedBase,
    clean: Tensor,
    texts: Sequence[str],
    table: dict[str, dict[str, Tensor]],
    seed: int,
) -> PriorSet:
    """Return the own set of a tune.

    Args:
        base: The base, without adapters.
        clean: Posterior means of pictures that share a shape, [pictures, c, h, w].
        texts: OWN_DRAWS per picture, from `own_texts`.
        table: Conditioning of every text.
        seed: The tune's.
    """
    repeated = clean.repeat_interleave(OWN_DRAWS, dim=0)
    return _predict_all(
        base, repeated, texts, table, order.generator(seed, order.PRIOR, 1), lambda done: None
    )
