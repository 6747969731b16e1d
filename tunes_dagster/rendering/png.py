"""The one way to save a render: a PNG that carries its recipe.

The recipe lies as JSON in the text chunk `tunes` (compressed iTXt), and once more, in the words other tools
read, in the chunk `parameters` (the form of A1111, which ComfyUI, Civitai and picture browsers understand).
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib
from typing import Any

from PIL import Image, PngImagePlugin

from tunes_dagster.core.failures import Failure, FailureCode, as_failure
from tunes_dagster.core.store import Store

KEY = "tunes"
_MAGIC = b"\x89PNG\r\n\x1a\n"
# A prompt with everything that decides its pictures has 10 KB.
_RECIPE_BYTES = 4 << 20


def parameters_text(recipe: dict[str, Any]) -> str:
    """Return the recipe in A1111's form: prompt, negative prompt, then `Name: value` pairs on one line."""
    lines = [str(recipe.get("prompt", ""))]
    if recipe.get("negative_prompt"):
        lines.append(f"Negative prompt: {recipe['negative_prompt']}")
    size = recipe.get("rendered_at") or [recipe.get("width"), recipe.get("height")]
    pairs = {
        "Steps": recipe.get("steps"),
        "Sampler": recipe.get("scheduler"),
        "CFG scale": recipe.get("guidance_scale"),
        "Seed": recipe.get("seed"),
        "Size": f"{size[0]}x{size[1]}" if all(size) else None,
        "Model": (recipe.get("base") or {}).get("branch"),
        "Lora hashes": ", ".join(
            f"{lora.get('id', 'lora')}: {str(lora.get('sha256', ''))[:12]}"
            for lora in recipe.get("loras", [])
        )
        or None,
        "Version": f"tunes-dagster {recipe['code']}" if recipe.get("code") else None,
    }

    def quoted(value: object) -> str:
        text = str(value)
        return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text

    lines.append(", ".join(f"{name}: {quoted(value)}" for name, value in pairs.items() if value is not None))
    return "\n".join(lines)


def png_bytes(image: Image.Image, recipe: dict[str, Any] | None = None) -> bytes:
    """Return a picture as PNG with its recipe inside.

    Args:
        image: Saved as RGB.
        recipe: JSON-able; None saves a plain picture.
    """
    info = PngImagePlugin.PngInfo()
    if recipe is not None:
        text = json.dumps(recipe, ensure_ascii=False, sort_keys=True, default=str)
        info.add_itxt(KEY, text, zip=True)
        info.add_itxt("parameters", parameters_text(recipe))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", pnginfo=info, compress_level=6)
    return buffer.getvalue()


def save_png(store: Store, key: str, image: Image.Image, recipe: dict[str, Any] | None = None) -> str:
    """Write a picture with its recipe into the store and return the key."""
    return store.write_bytes(key, png_bytes(image, recipe))


def jpeg_of(data: bytes) -> bytes:
    """Return a PNG that this program made as JPEG, with its recipe in A1111's words in the comment.

    Raises:
        Failure: `RENDER_FAILED` when it cannot be read.
    """
    picture = open_own(data)
    comment = b""
    with contextlib.suppress(Failure):  # it carries no recipe
        comment = parameters_text(read_recipe(data)).encode("utf-8")[:60_000]
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, subsampling=0, comment=comment)
    return buffer.getvalue()


def open_own(data: bytes) -> Image.Image:
    """Return a PNG that this program made, as RGB; what strangers made is opened by `intake.pictures`.

    Raises:
        Failure: `RENDER_FAILED` when it is damaged, or no still picture.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow has a kind of its own for each way in which a file can be damaged
        raise as_failure(error, Failure(FailureCode.RENDER_FAILED, "The picture cannot be read.")) from error


def read_recipe(data: bytes) -> dict[str, Any]:
    """Return the recipe that a PNG of ours carries; its pixels are not decoded.

    Raises:
        Failure: `INVALID_REQUEST` when the bytes are not a PNG or carry no recipe.
    """
    if not data.startswith(_MAGIC):
        raise Failure(
            FailureCode.INVALID_REQUEST,
            "The picture cannot be read: it is not a PNG.",
            "Hand in the PNG as it was rendered, not a screenshot or a converted copy.",
        )
    try:
        if text := _text(data, KEY.encode()):
            return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError, zlib.error, struct.error):
        pass  # damaged: the same as none
    raise Failure(
        FailureCode.INVALID_REQUEST,
        "The picture carries no recipe.",
        "Hand in the PNG as it was rendered; other programs often drop the text when they save.",
    )


def _text(data: bytes, keyword: bytes) -> str:
    """Return the text of a compressed iTXt chunk (PNG 11.3.4.5), or an empty one."""
    at = len(_MAGIC)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        if kind == b"iTXt" and body.startswith(keyword + b"\0\1\0"):
            _language, _translated, packed = body[len(keyword) + 3 :].split(b"\0", 2)
            unpacking = zlib.decompressobj()
            return unpacking.decompress(packed, _RECIPE_BYTES).decode("utf-8")
        at += 12 + length
    return ""
