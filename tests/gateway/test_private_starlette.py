"""What is used of Starlette without its promise: when one of these fails, look at `gateway/starlette_private.py`."""

from __future__ import annotations

import asyncio

import starlette
from starlette.datastructures import FormData, Headers

from tunes_dagster.gateway.starlette_private import KeptRequest, PartsParser

SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")]}


def test_what_is_kept_is_what_starlette_itself_reads():
    async def nothing_more() -> dict[str, object]:
        raise AssertionError(f"Starlette {starlette.__version__} does not look at the body that was kept")

    async def read() -> tuple[bytes, object, list[bytes], FormData]:
        request = KeptRequest(SCOPE, nothing_more)
        assert request.kept_body is None and request.kept_form is None
        request.kept_body = b'{"a": 1}'
        request.kept_form = FormData([("b", "2")])
        pieces = [piece async for piece in request.stream()]
        return await request.body(), await request.json(), pieces, await request.form()

    body, parsed, pieces, form = asyncio.run(read())
    assert body == b'{"a": 1}' and parsed == {"a": 1} and pieces[0] == body
    assert form["b"] == "2", f"Starlette {starlette.__version__} does not look at the form that was kept"


def test_a_parser_knows_whether_a_file_arrives():
    seen: list[tuple[bytes, bool]] = []

    class Watching(PartsParser):
        def on_part_data(self, data: bytes, start: int, end: int) -> None:
            seen.append((data[start:end], self.in_file))
            super().on_part_data(data, start, end)

    async def arriving():
        yield b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\ntext\r\n'
        yield b'--x\r\nContent-Disposition: form-data; name="b"; filename="c"\r\n\r\nfile\r\n--x--\r\n'

    headers = Headers({"content-type": "multipart/form-data; boundary=x"})
    asyncio.run(Watching(headers, arriving()).parse())
    assert {(data, within) for data, within in seen if data} == {(b"text", False), (b"file", True)}
