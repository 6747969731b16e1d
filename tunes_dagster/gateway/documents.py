"""The OpenAPI document of each dialect: every answer it gives, bodies in all their forms, and the vendor's samples.

`samples/NAME.yaml` holds the calls that the vendor documents, each with the request and the answer on its page.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from tunes_dagster import __version__
from tunes_dagster.gateway.dialect import Dialect, Form

_SCHEMAS = "#/components/schemas/"
_SAID = {
    400: "The body cannot be read, or a value is out of place",
    401: "No valid key",
    402: "Out of credits",
    403: "Not allowed",
    404: "Not there, or somebody else's",
    408: "The body came too slowly",
    409: "In conflict with what is there",
    413: "Too large",
    415: "The body is compressed",
    422: "A field is refused, by name",
    429: "Too many requests",
    503: "The store or registry does not answer",
}
# What the parameters are that their endpoints leave without a word.
_PARAMETERS = {
    "name[]": "Only of these classes.",
    "tune_id": "Id of a tune.",
    "prompt_id": "Id of a prompt.",
    "pack_id": "Id or slug of a pack.",
    "job_id": "Id of a job (`tune_…`, `inf_…`).",
    "generation_id": "Id of a picture (`gen_…`).",
    "request_id": "What the submission answered.",
    "key": "Id of a tune or prompt in any API: `tune_…`, its number, its public id.",
    "form": "`diffusers`, `kohya` or, of a pti tune, `embeddings`.",
    "callback_id": "Id of a callback.",
    "before_id": "Only rows older than this id: the way to page.",
    "offset": "Rows to leave out; `before_id` reaches further.",
    "limit": "Most rows.",
    "batch_id": "Id of a batch.",
    "workspace_id": "Id or slug of a workspace.",
    "token": "From `upload_url`.",
    "title": "Only tunes of this title.",
    "branch": "Only of this branch.",
    "model_type": "Only of this kind.",
    "public": "Everybody's public packs.",
    "listed": "Everybody's public packs.",
}


@lru_cache(maxsize=8)
def samples(name: str) -> list[dict[str, Any]]:
    """Return a vendor's documented calls: `call` (`POST /path`), `request`, `status` and `answer`."""
    path = Path(__file__).with_name("samples") / f"{name}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else []


def document(dialect: Dialect, server: str) -> dict[str, Any]:
    """Return the OpenAPI document of a dialect.

    Args:
        dialect: The API.
        server: Public address under which its paths begin.
    """
    if dialect.name not in _made:
        _made[dialect.name] = _make(dialect)
    return {**_made[dialect.name], "servers": [{"url": server}]}


_made: dict[str, dict[str, Any]] = {}
"""Dialect → its document; making one takes half a second."""


def _make(dialect: Dialect) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate Operation ID")  # HEAD's, which is taken out again below
        made = get_openapi(
            title=dialect.title,
            version=__version__,
            description=dialect.about,
            routes=dialect.router.routes,
        )
    components = made.setdefault("components", {}).setdefault("schemas", {})
    components["HttpProblem"] = dialect.problem
    made["components"]["securitySchemes"] = schemes = _schemes(dialect)
    made["security"] = [{name: []} for name in schemes] + ([{}] if dialect.key_in_body else [])
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    shown = {sample["call"]: sample for sample in samples(dialect.name)}
    for path, methods in made["paths"].items():
        methods.pop("head", None)  # it goes with every GET
        for method, operation in methods.items():
            call = f"{method.upper()} {path}"
            operation["operationId"] = re.sub(r"\W+", "_", f"{method}{path}").strip("_")
            _in_words(operation)
            if call in dialect.forms:
                operation["requestBody"] = _body(dialect.forms[call], components)
            _answers(operation, dialect.codes)
            if call in shown:
                _example(operation, shown[call])
    return made


def _schemes(dialect: Dialect) -> dict[str, Any]:
    """Return how a key may be shown."""
    found: dict[str, Any] = {}
    for header in dialect.keys:
        if header == "authorization":
            found["bearer"] = {
                "type": "http",
                "scheme": "bearer",
                "description": "`Authorization: Bearer KEY`",
            }
        else:
            name = "-".join(part.capitalize() for part in header.split("-"))
            found[header] = {"type": "apiKey", "in": "header", "name": name}
    return found


def _in_words(operation: dict[str, Any]) -> None:
    """Head an operation with the first sentence of its description, and say what its parameters are."""
    said = operation.get("description", "").strip()
    operation["summary"] = re.split(r"[.;:](?:\s|$)", said, maxsplit=1)[0] or operation.get("summary", "")
    for parameter in operation.get("parameters", []):
        if parameter["name"] in _PARAMETERS:
            parameter.setdefault("description", _PARAMETERS[parameter["name"]])


def _plainly(schema: Any) -> Any:
    """Return a schema without what FastAPI writes of the endpoint's `dict` beside what it answers."""
    if isinstance(schema, list):
        return [_plainly(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {"$ref": schema["$ref"]}
    if "anyOf" in schema:
        return {"anyOf": _plainly(schema["anyOf"])}
    return {name: _plainly(value) for name, value in schema.items() if name != "title"}


def _answers(operation: dict[str, Any], codes: tuple[int, ...]) -> None:
    answers = operation["responses"]
    answers.pop("422", None)
    for answer in answers.values():
        for content in answer.get("content", {}).values():
            content["schema"] = _plainly(content.get("schema", {}))
    for code in codes:
        content = {"application/json": {"schema": {"$ref": _SCHEMAS + "HttpProblem"}}}
        answers[str(code)] = {"description": _SAID[code], "content": content}


def _example(operation: dict[str, Any], sample: dict[str, Any]) -> None:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body is not None and "request" in sample:
        body["example"] = sample["request"]
    answer = operation["responses"].get(str(sample.get("status", 200)), {}).get("content", {})
    if "application/json" in answer and "answer" in sample:
        answer["application/json"]["example"] = sample["answer"]


def _body(form: Form, components: dict[str, Any]) -> dict[str, Any]:
    """Return a request body that is taken as JSON and as both kinds of form."""
    fields: dict[str, Any] = {"type": "object", "properties": {}}
    if form.model is not None:
        fields = _schema(form.model, components)
    wrapped = {"type": "object", "properties": {form.wrapper: fields}, "required": [form.wrapper]}
    flat: dict[str, Any] = {}
    for name, field in (_resolved(fields, components).get("properties") or {}).items():
        flat[f"{form.wrapper}[{name}]" if form.wrapper else name] = _plain(field)
    for name in form.files:
        flat[name] = {"type": "array", "items": {"type": "string", "format": "binary"}}
    content: dict[str, Any] = {"multipart/form-data": {"schema": {"type": "object", "properties": flat}}}
    if form.wrapper or form.model is not None:
        content = {"application/json": {"schema": wrapped if form.wrapper else fields}, **content}
        words = {name: kind for name, kind in flat.items() if name not in form.files}
        content["application/x-www-form-urlencoded"] = {"schema": {"type": "object", "properties": words}}
    return {"required": False, "content": content}


def _schema(model: type[BaseModel], components: dict[str, Any]) -> dict[str, Any]:
    found = model.model_json_schema(ref_template=_SCHEMAS + "{model}")
    components.update(found.pop("$defs", {}))
    components[model.__name__] = found
    return {"$ref": _SCHEMAS + model.__name__}


def _resolved(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").removeprefix(_SCHEMAS)
    return components.get(name, schema)


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    """Return how a field of a form looks, where everything is text."""
    kinds = [one.get("type") for one in field.get("anyOf", [field])]
    if "array" in kinds:
        return {"type": "array", "items": {"type": "string"}}
    return {"type": "string"}
