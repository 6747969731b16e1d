"""Tokenizers of the real classes that know single letters only, so that no word is unknown to them."""

from __future__ import annotations

import string

_LETTERS = string.ascii_letters + string.digits + string.punctuation


def byte_tokenizer(model_max_length: int = 77, **settings: str):
    """Return a CLIP tokenizer of bytes, numbered as the released one numbers them."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    words = [*symbols, *(f"{s}</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=[],
        model_max_length=model_max_length,
        **settings,
    )


def letter_tokenizer(model_max_length: int = 512, extra_ids: int = 0, **settings: str):
    """Return a T5 tokenizer of single letters."""
    from transformers import T5Tokenizer

    start = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(
        vocab=start + [(letter, -3.0) for letter in _LETTERS],
        extra_ids=extra_ids,
        model_max_length=model_max_length,
        **settings,
    )


def chat_tokenizer(template: str, bos: str | None = None):
    """Return a byte-level tokenizer of the Qwen class with a chat template."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = [*bytes_to_unicode().values(), "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
    return Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate(symbols)},
        merges=[],
        bos_token=bos,
        chat_template=template,
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        padding_side="right",
    )
