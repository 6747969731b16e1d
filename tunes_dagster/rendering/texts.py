"""Texts as the denoiser gets them: weighted words, prompts of any length, each text encoded once and kept.

A CLIP encoder reads 77 tokens, two of which mark start and end. A longer prompt is encoded in chunks of 75 tokens
that lie one after another, as A1111 does it, and BREAK begins a new one. Weights multiply the hidden states of their
tokens, and the root mean square over the text's tokens is then put back, so that a weight moves attention between words
and not the strength of the whole text. (A1111 puts the mean back, which lies near zero and may change its sign: the
text becomes noise.)

How many chunks a text is encoded in changes what the others in its row block see, so pictures of one forward share it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunes_dagster.rendering.brackets import (
    CHUNK_END,
    has_breaks,
    has_weights,
    plain_sentence,
    weighted,
    without_weights,
)
from tunes_dagster.rendering.schedule import by_step, has_schedule

if TYPE_CHECKING:
    import torch

    from tunes_dagster.families.base import Conditioning, LoadedBase
    from tunes_dagster.rendering.pictures import Picture, Voice

# Embeddings that stay with a base between batches: SDXL's take 0.6 MB each in float32.
_KEPT = 1024
# The least root mean square of a text's weights that is made up for.
_FAINTEST = 0.25


def chunk_count(base: LoadedBase, *texts: str) -> int:
    """Return in how many chunks texts are encoded; 1 where the encoder reads no more than one."""
    encoders = base.clip_encoders()
    most = 1
    for tokenizer, _, _ in encoders:
        for text in texts:
            most = max(most, len(_parts(tokenizer, weighted(text))))
    return most


class TextCache:
    """Text embeddings, each text encoded once and kept with the base for the next batch.

    Args:
        base: The model.
        rows: Texts per forward of the text encoders.
    """

    def __init__(self, base: LoadedBase, rows: int = 16) -> None:
        self._base, self._rows = base, rows
        self._weighs = bool(base.clip_encoders())
        known: OrderedDict[tuple[str, int, str], Conditioning] = OrderedDict()
        self._known = base.__dict__.setdefault("_rendered_texts", known)
        self._voice = ""

    @contextmanager
    def spoken_by(self, voice: Voice | None) -> Iterator[None]:
        """Encode with adapters of the text encoders for the while."""
        if voice is None:
            yield
            return
        from tunes_dagster.training.encoders import dressed

        self._voice = voice.name
        try:
            with dressed(self._base, voice.states, voice.scales):
                yield
        finally:
            self._voice = ""

    def encode(self, texts: Sequence[str]) -> None:
        """Encode those texts of one chunk that are not known yet, many at a time."""
        wanted = (text for text in dict.fromkeys(texts) if not self._has_weights(text))
        new = [text for text in wanted if (text, 1, self._voice) not in self._known]
        for start in range(0, len(new), self._rows):
            some = new[start : start + self._rows]
            plain = [without_weights(text) for text in some] if self._weighs else some
            encoded = self._base.encode_text(plain)
            for i, text in enumerate(some):
                self._keep(
                    (text, 1, self._voice), {name: value[i : i + 1] for name, value in encoded.items()}
                )

    def prompt(self, text: str, chunks: int = 1) -> Conditioning:
        """Return the embedding of a prompt in so many chunks, one row."""
        key = (text, chunks, self._voice)
        if key not in self._known:
            if chunks == 1 and not self._has_weights(text):
                self.encode([text])
            else:
                self._keep(key, encode_weighted(self._base, text, chunks))
        self._known.move_to_end(key)
        return self._known[key]

    def negative(self, text: str, chunks: int = 1) -> Conditioning:
        """Return the embedding of a negative prompt; the empty one is what the stock pipeline uses for none."""
        if text:
            return self.prompt(text, chunks)
        nothing = self._base.no_text(1)
        if chunks == 1:
            return nothing
        if not any(value.any() for value in nothing.values()):
            hidden = nothing["hidden"]
            return {**nothing, "hidden": hidden.new_zeros(1, hidden.shape[1] * chunks, hidden.shape[2])}
        return self.prompt("", chunks)

    def _has_weights(self, text: str) -> bool:
        """Whether a text is to be encoded by its weights; elsewhere brackets are what they look like."""
        return self._weighs and (has_weights(text) or has_breaks(text))

    def _keep(self, key: tuple[str, int, str], value: Conditioning) -> None:
        self._known[key] = value
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)


class Script:
    """The conditioning of pictures that are denoised together, step by step: their words may change by `schedule`.

    Every text is encoded once, before the first step; a step only puts the rows together that it needs.

    Args:
        base: The model.
        pictures: All of the same `Shape`.
        texts: Embeddings.
    """

    def __init__(self, base: LoadedBase, pictures: Sequence[Picture], texts: TextCache) -> None:
        import torch

        self._base, self._shape = base, pictures[0].shape
        self.steps = max(1, self._shape.steps_done)
        self._turns: list[list[tuple[str, ...]]] = [self._rows_of(picture) for picture in pictures]
        self._found: list[dict[tuple[str, ...], list[Conditioning]]] = [{} for _ in pictures]
        voices = {picture.voice.name if picture.voice else "": picture.voice for picture in pictures}
        for voice in voices.values():
            with texts.spoken_by(voice):
                self._encode([n for n, picture in enumerate(pictures) if picture.voice == voice], texts)
        repeat = 2 if self._shape.guided else 1
        scales = [picture.guidance_scale for picture in pictures for _ in range(repeat)]
        self._guidance = torch.tensor(scales, device=base.device)
        self._now: tuple[tuple[str, ...], ...] = ()
        self._rows: Conditioning = {}

    def _rows_of(self, picture: Picture) -> list[tuple[str, ...]]:
        """Return the texts of a picture's rows at each step."""
        weighs = bool(self._base.clip_encoders())
        negative = step_texts(picture.negative, self.steps, weighs)
        prompt = step_texts(picture.text, self.steps, weighs)
        return list(zip(negative, prompt, strict=True)) if self._shape.guided else [(one,) for one in prompt]

    def _encode(self, numbers: Sequence[int], texts: TextCache) -> None:
        """Encode all that pictures say which share their encoders."""
        chunks = self._shape.chunks
        every = {number: dict.fromkeys(self._turns[number]) for number in numbers}
        if chunks == 1:
            prompts = [rows[-1] for number in numbers for rows in every[number]]
            negatives = [rows[0] for number in numbers for rows in every[number] if len(rows) > 1 and rows[0]]
            texts.encode(prompts + negatives)
        for number in numbers:
            for rows in every[number]:
                *negative, prompt = rows
                without = [texts.negative(one, chunks) for one in negative]
                self._found[number][rows] = [*without, texts.prompt(prompt, chunks)]

    def at(self, step: int) -> Conditioning:
        """Return the conditioning of all rows at a step, from 0; of a guided picture the one without text first."""
        import torch

        step = min(step, self.steps - 1)
        now = tuple(turns[step] for turns in self._turns)
        if now != self._now:
            rows = [row for found, words in zip(self._found, now, strict=True) for row in found[words]]
            stacked = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
            shape = self._shape
            self._rows = self._base.with_size(stacked, shape.width, shape.height, self._guidance)
            self._now = now
        return self._rows


def step_texts(text: str, steps: int, weighs: bool) -> list[str]:
    """Return what is encoded of a text at each step.

    Args:
        text: Of a picture.
        steps: That are done of it.
        weighs: Whether words are weighed by brackets; else they are taken out step by step.
    """
    said = by_step(text, steps)
    return said if weighs or not has_schedule(text) else [plain_sentence(one) for one in said]


def text_bytes(base: LoadedBase, picture: Picture) -> int:
    """Return what the embeddings of a picture's words take beyond those of one text: they wait while it is made."""
    weighs, steps = bool(base.clip_encoders()), max(1, picture.shape.steps_done)
    more = sum(len(set(step_texts(one, steps, weighs))) - 1 for one in (picture.text, picture.negative))
    if not more:
        return 0
    one = sum(value.numel() * value.element_size() for value in base.no_text(1).values())
    return more * one * picture.shape.chunks


def encode_weighted(base: LoadedBase, text: str, chunks: int) -> Conditioning:
    """Return the embedding of one weighted text of any length: hidden states `[1, 77 * chunks, d]`, pooled `[1, p]`.

    The pooled state is that of the first chunk, which holds the subject.
    """
    return _encoded(base, weighted(text) if text else [], chunks)


def plain_chunks(base: LoadedBase, text: str) -> int:
    """Return in how many chunks a text is encoded in which brackets and BREAK are words like others."""
    encoders = base.clip_encoders()
    return max([1, *(len(_parts(tokenizer, [(text, 1.0)])) for tokenizer, _, _ in encoders)])


def encode_plain(base: LoadedBase, text: str) -> Conditioning:
    """Return the embedding of a text of any length in which brackets are words like others, as `encode_weighted`."""
    return _encoded(base, [(text, 1.0)], plain_chunks(base, text))


def _encoded(base: LoadedBase, pieces: Sequence[tuple[str, float]], chunks: int) -> Conditioning:
    import torch

    hidden, pooled = [], None
    with torch.no_grad():
        for tokenizer, encoder, layer in base.clip_encoders():
            ids, weights, words = (one.to(base.device) for one in _chunked(tokenizer, pieces, chunks))
            said = encoder(ids, output_hidden_states=True)
            states = said.last_hidden_state if layer == 0 else said.hidden_states[layer]
            hidden.append(_scaled(states, weights, words).flatten(0, 1))
            pooled = getattr(said, "text_embeds", None) if layer else None
    encoded = {"hidden": torch.cat(hidden, dim=-1).unsqueeze(0).to(base.dtype)}
    return encoded if pooled is None else {**encoded, "pooled": pooled[:1].to(base.dtype)}


def _scaled(states: torch.Tensor, weights: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Return hidden states `[chunks, tokens, d]` whose words are weighted against each other.

    The root mean square of the words' states stays what it was: the weights are divided by their own, in which each
    token counts by the strength of its state. That is between the least and the greatest weight, so it neither changes
    sign nor vanishes; below a quarter the text is let fade, as all of it was asked to be next to nothing.

    Args:
        states: Of an encoder.
        weights: `[chunks, tokens]`, 0 to 3.
        words: Which tokens are words `[chunks, tokens]`; start, end and padding are left as they are.
    """
    import torch

    if bool((weights[words] == 1).all()):
        return states
    energy = states.float().square().sum(dim=-1)[words]
    mean = (weights[words].square() * energy).sum() / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny)
    factors = torch.where(words, weights / mean.sqrt().clamp(min=_FAINTEST), torch.ones_like(weights))
    return (states.float() * factors.unsqueeze(-1)).to(states)


def _parts(tokenizer: Any, pieces: Sequence[tuple[str, float]]) -> list[list[tuple[int, float]]]:
    """Return the (token, weight) of each chunk: as many as an encoder reads, and a new one after each BREAK."""
    room = tokenizer.model_max_length - 2
    parts: list[list[tuple[int, float]]] = [[]]
    for words, weight in pieces:
        for index, some in enumerate(words.split(CHUNK_END)):
            if index and parts[-1]:
                parts.append([])
            for one in _ids(tokenizer, some) if some.strip() else ():
                if len(parts[-1]) == room:
                    parts.append([])
                parts[-1].append((one, weight))
    return parts if parts[-1] else parts[:-1]


def _ids(tokenizer: Any, words: str) -> list[int]:
    # Lengths beyond the encoder's are what this file is for: the tokenizer need not warn of them.
    return list(tokenizer(words, add_special_tokens=False, verbose=False).input_ids)


def _chunked(
    tokenizer: Any, pieces: Sequence[tuple[str, float]], chunks: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return token ids, weights, and which of the tokens are words, `[chunks, 77]` each."""
    import torch

    length = tokenizer.model_max_length
    parts = _parts(tokenizer, pieces)
    rows, scales, words = [], [], []
    for part in [*parts, *([[]] * (chunks - len(parts)))]:
        ids = [tokenizer.bos_token_id, *(one for one, _ in part), tokenizer.eos_token_id]
        weights = [1.0, *(weight for _, weight in part), 1.0]
        rows.append(ids + [tokenizer.pad_token_id] * (length - len(ids)))
        scales.append(weights + [1.0] * (length - len(weights)))
        words.append([0 < place <= len(part) for place in range(length)])
    return torch.tensor(rows), torch.tensor(scales), torch.tensor(words)
