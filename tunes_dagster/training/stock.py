"""A stock pipeline over the very tensors of a loaded base: whatever diffusers does to it leaves the base as it is.

Files are proved by diffusers' own loaders. These put layers into a network, words into a vocabulary and precisions on
a VAE. So they are given other module objects over the same tensors: no number is copied, nothing has to be taken off
afterwards, and a loader that breaks off half way breaks what nobody else uses. Trained weights that the base wears just
now, and words that it was taught, are left out.

This file imports torch at the top; import it inside functions.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tunes_dagster.families.diffusers_private import offload_device, offload_hooks, without_hooks
from tunes_dagster.training.torch_private import shared

if TYPE_CHECKING:
    from tunes_dagster.families.base import LoadedBase


def stock_over(base: LoadedBase, without: str = "") -> Any:
    """Return a pipeline of the base's class as it was loaded, over the base's tensors; `place` it before it renders.

    Args:
        base: Loaded; what it wears and was taught since is left out.
        without: Name of a part that the pipeline is to lack.
    """
    pipeline = base.pipeline()
    offloaded = is_offloaded(pipeline)
    stock = copy.copy(pipeline)
    for name, part in pipeline.components.items():
        if name == without:
            twin = None
        elif isinstance(part, nn.Module):
            # Under offloading, tensors that both would move separately would lie in memory twice.
            twin = shared(part, offloaded)
        else:
            twin = copy.deepcopy(part)
        setattr(stock, name, twin)
    _forget_words(stock, base)
    if offloaded:
        without_hooks(stock)
    return stock


def place(stock: Any, base: LoadedBase) -> Any:
    """Have the networks of a stock pipeline come and go where those of the base do; return it.

    After its files were loaded: diffusers' loaders take such hooks off and do not know the device that they were for.
    """
    if is_offloaded(base.pipeline()):
        stock.enable_model_cpu_offload(device=offload_device(base.pipeline()))
    return stock


def with_own_vae(pipeline: Any) -> Any:
    """Return a pipeline over the same networks whose calls do not touch its VAE.

    On Apple's GPUs that of SDXL casts its VAE to the latents' precision, for good.
    """
    if is_offloaded(pipeline):
        return pipeline
    own = copy.copy(pipeline)
    own.vae = shared(pipeline.vae)
    return own


def is_offloaded(pipeline: Any) -> bool:
    """Whether the networks of a pipeline are on the device only while they work."""
    return bool(offload_hooks(pipeline))


def _forget_words(stock: Any, base: LoadedBase) -> None:
    """Take the words that a base was taught from the tokenizers and encoders of a pipeline over it."""
    by_name = base.pipeline().components
    for name, (tokenizer, encoder) in base.word_encoders().items():
        if name not in base.untaught:
            continue
        plain, rows = base.untaught[name]
        for part, value in by_name.items():
            if value is tokenizer:
                setattr(stock, part, copy.deepcopy(plain))
            elif value is encoder:
                _cut(getattr(stock, part), rows)


def with_own_words(encoder: Any) -> None:
    """Give a text encoder embeddings of its own: loaders of words write into them when no row has to be added."""
    _embed(encoder, encoder.get_input_embeddings().weight.detach().clone())


def _embed(encoder: Any, table: torch.Tensor) -> None:
    """Exchange a text encoder's embeddings."""
    weight, new = encoder.get_input_embeddings().weight, nn.Parameter(table, requires_grad=False)
    for layer in encoder.modules():  # T5 has two over one weight
        if getattr(layer, "weight", None) is weight:
            layer.weight, layer.num_embeddings = new, len(table)


def _cut(encoder: Any, rows: int) -> None:
    """Leave the first rows of a text encoder's embeddings, as a view of them."""
    _embed(encoder, encoder.get_input_embeddings().weight.detach()[:rows])
    encoder.config.vocab_size = rows
    model = getattr(encoder, "text_model", encoder)
    if hasattr(model, "eos_token_id"):
        model.eos_token_id = encoder.config.eos_token_id
