"""Proof that a tune's files are what was trained: loaded by stock diffusers, they render the same picture.

Loaders drop layers whose names they do not expect with no more than a warning, so a file that loads proves
nothing; a file whose picture equals that of our own layers does. A whole network proves itself as the pipeline that
it was exported as.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode, as_failure
from tunes_dagster.core.store import Store
from tunes_dagster.families.base import LoadedBase
from tunes_dagster.training.files import read_header
from tunes_dagster.training.layouts import Files
from tunes_dagster.training.names import is_whole, split_encoders, split_magnitudes, split_state

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor

# Two orders of summation differ by about 1e-5 of the picture's range in float32 and 1e-2 in bfloat16.
_TOLERANCE = {"torch.float64": 1e-4, "torch.float32": 2e-3}
_LOW_PRECISION_TOLERANCE = 0.08
_STEPS, _GUIDANCE = 4, 2.0


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was seen; differences are means over pixels in 0…1, and the largest one.

    Attributes:
        finite: No NaN or infinity in any weight.
        layers: Adapted layers in the file, or parameters of a whole network.
        diffusers_difference: Largest pixel difference between stock diffusers and our layers.
        kohya_difference: The same for the kohya file; None when there is none.
        base_difference: Mean pixel difference that the tune makes.
        tolerance: What counts as the same picture on this device and dtype.
    """

    finite: bool
    layers: int
    diffusers_difference: float
    kohya_difference: float | None
    base_difference: float
    tolerance: float

    @property
    def loads(self) -> bool:
        """Whether both files render what was trained."""
        seen = (self.diffusers_difference, self.kohya_difference)
        return all(one <= self.tolerance for one in seen if one is not None)  # not of a number that is none

    @property
    def furthest(self) -> float:
        """The largest pixel difference of a file that was looked at."""
        return max(self.diffusers_difference, self.kohya_difference or 0.0)

    @property
    def differs(self) -> bool:
        """Whether the tune changes pictures at all."""
        return self.base_difference > 1e-5

    @property
    def passed(self) -> bool:
        """Whether all of it holds."""
        return self.finite and self.loads and self.differs


def verify(files: Files, prompt: str, base: LoadedBase, store: Store, seed: int = 0) -> Verification:
    """Render one small-step picture with the files in stock pipelines and with our own layers.

    All of it happens on the tensors that are loaded, see `training/stock.py`; the base is left as it was, also where
    other tunes train on it.

    Args:
        files: Of the tune.
        prompt: Names token and class.
        base: The loaded base.
        store: Where the files lie.
        seed: Of the picture.
    """
    import numpy as np
    import torch

    from tunes_dagster.families.loading import clear
    from tunes_dagster.training import words
    from tunes_dagster.training.stock import place, stock_over, with_own_vae
    from tunes_dagster.training.wholes import worn

    with store.local(files.weights_key) as path:
        state, text = split_encoders(read_weights(path))
    finite = all(bool(torch.isfinite(value).all()) for value in (*state.values(), *text.values()))
    plain = _picture(place(stock_over(base), base), prompt, base, seed)
    with worn(base, [state]) as bank, words.speaking(base, store, files.weights_key) as spoken:
        bank.assign_all(0)
        token = read_header(store, files.weights_key).get(words.TOKEN_FIELD, "")
        ours = _picture(with_own_vae(base.pipeline()), words.said(prompt, token, spoken), base, seed)
    clear(base.pipeline())
    differences = [
        float(np.abs(_picture(stock, prompt, base, seed) - ours).max())
        for stock in _stock_pipelines(files, state, base, store)
    ]
    if files.kohya_key and split_magnitudes(state):
        with words.speaking(base, store, files.weights_key), _read_as_dora(files.kohya_key, base, store):
            theirs = _picture(with_own_vae(base.pipeline()), prompt, base, seed)
        clear(base.pipeline())
        differences.append(float(np.abs(theirs - ours).max()))
    return Verification(
        finite=finite,
        layers=len(state if is_whole(state) else split_state({**state, **text})),
        diffusers_difference=differences[0],
        kohya_difference=differences[1] if len(differences) > 1 else None,
        base_difference=float(np.abs(plain - ours).mean()),
        tolerance=_TOLERANCE.get(str(base.dtype), _LOW_PRECISION_TOLERANCE),
    )


def _stock_pipelines(
    files: Files, state: Mapping[str, Tensor], base: LoadedBase, store: Store
) -> Iterator[Any]:
    """Yield pipelines that diffusers' own loaders put the files into, one after another.

    They take a DoRA in its first layout alone, and drop the scales of the second one.
    """
    if is_whole(state):
        with store.local_folder(files.pipeline_key) as folder, exported(folder, base) as pipeline:
            yield pipeline
        return
    from tunes_dagster.training.stock import place

    second = "" if split_magnitudes(state) else files.kohya_key
    for key in filter(None, (files.weights_key, second)):
        with loaded(key, base, store) as stock:
            _tell(stock, files.weights_key, base, store)
            yield place(stock, base)


@contextmanager
def _read_as_dora(key: str, base: LoadedBase, store: Store) -> Iterator[None]:
    """Wear a DoRA in kohya's layout for the while, with the weights that ComfyUI makes of the file."""
    from tunes_dagster.training.dora import from_kohya
    from tunes_dagster.training.wholes import worn

    with store.local(key) as path:
        read = from_kohya(base.denoiser, read_weights(path))  # the denoiser's part of it
    with worn(base, [read]) as bank:
        bank.assign_all(0)
        yield


@contextmanager
def exported(folder: Path, base: LoadedBase) -> Iterator[Any]:
    """Give an exported pipeline as stock diffusers loads it, on a base's device and in its precision.

    Its denoiser, tokenizers and scheduler are loaded from the folder; the base's own denoiser waits in the machine's
    memory meanwhile. Networks that were not trained are the base's own: their files are compared with the base's.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when one of those files is not the base's.
    """
    import torch
    from diffusers import DiffusionPipeline

    from tunes_dagster.families.loading import settle
    from tunes_dagster.training.layouts import check_rest
    from tunes_dagster.training.stock import stock_over
    from tunes_dagster.training.wholes import put_aside

    check_rest(folder, base)
    name, kind = base.denoiser_name, type(base.denoiser)
    parts = stock_over(base, without=name).components
    frozen = {part: network for part, network in parts.items() if isinstance(network, torch.nn.Module)}
    with put_aside(base.denoiser):
        denoiser = kind.from_pretrained(folder, subfolder=name, torch_dtype=base.dtype)
        arguments = getattr(base, "load_arguments", {})
        pipeline = DiffusionPipeline.from_pretrained(folder, **{name: denoiser}, **frozen, **arguments)
        yield settle(pipeline, base.device)


def read_weights(path: Any) -> dict[str, Any]:
    """Return the tensors of a safetensors file.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when it is none.
    """
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except Exception as error:  # whatever a damaged file holds; a lack of memory is not the file's
        damaged = Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"{Path(path).name} holds no weights.",
            "Train the tune again.",
            str(path),
        )
        raise as_failure(error, damaged) from error


@contextmanager
def loaded(key: str, base: LoadedBase, store: Store) -> Iterator[Any]:
    """Give a stock pipeline over a base's tensors that has loaded a file, without its talk about text encoders."""
    from tunes_dagster.training.stock import stock_over

    stock = stock_over(base)
    talkative = logging.getLogger("diffusers")
    level = talkative.level
    talkative.setLevel(logging.ERROR)
    try:
        with store.local(key) as path:
            stock.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="verified")
        yield stock
    finally:
        talkative.setLevel(level)


def _tell(stock: Any, weights_key: str, base: LoadedBase, store: Store) -> None:
    """Have the tune's words, if it has any, loaded by a pipeline's own loader."""
    from tunes_dagster.training import words
    from tunes_dagster.training.stock import with_own_words

    header = read_header(store, weights_key)
    if words.KEY_FIELD not in header:
        return
    token, vectors = header[words.TOKEN_FIELD], words.load(store, header[words.KEY_FIELD])
    second = ("tokenizer_2", "text_encoder_2")
    names = {"clip_l": ("tokenizer", "text_encoder"), "clip_g": second, "t5": second}
    for name, vector in vectors.items():
        tokenizer, encoder = (getattr(stock, part) for part in names[name])
        with_own_words(encoder)
        stock.load_textual_inversion({token: vector}, tokenizer=tokenizer, text_encoder=encoder)
        words.pool_at_the_end(tokenizer, encoder)


def _picture(pipeline: Any, prompt: str, base: LoadedBase, seed: int) -> np.ndarray:
    """Return one picture as float32 [height, width, 3] in 0…1, at the base's native size."""
    import torch

    side = min(base.entry.native_size, base.native_side)
    return pipeline(
        **base.stock_arguments(prompt, "", _GUIDANCE),
        num_inference_steps=_STEPS,
        height=side,
        width=side,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
    ).images[0]
