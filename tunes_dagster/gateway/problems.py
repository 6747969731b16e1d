"""What can be wrong with a request, once for all dialects; each dialect words it in its own error form."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tunes_dagster.core.failures import Failure, FailureCode

_STATUS = {
    FailureCode.UNKNOWN_TUNE: 404,
    FailureCode.CONFLICT: 409,
    FailureCode.OUT_OF_CREDITS: 402,
    FailureCode.STORE_UNAVAILABLE: 503,
    FailureCode.TIMED_OUT: 503,
    FailureCode.INTERNAL: 500,
    FailureCode.BASE_NOT_INSTALLED: 422,
}
# Seconds after which a caller may ask again while the registry or store is away.
_RETRY_AFTER = "5"
# The option that a sentence of the library begins with: `training.steps is …`, `super_resolution needs …`.
_FIELD = re.compile(
    r"((?:training|dataset|settings)\.[a-z_]+|[a-z]+_[a-z0-9_]+|controlnet|style|steps|width|height)\b(?=[: ])"
)


@dataclass(eq=False)
class Problem(Exception):
    """A request that is refused.

    Attributes:
        status: HTTP status, before a dialect has its say.
        message: One sentence.
        fields: Field → what is wrong with it.
        headers: Sent with the answer.
        code: Word for machines.
    """

    status: int
    message: str
    fields: dict[str, list[str]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    code: str = ""

    def __str__(self) -> str:
        return self.message


def not_found(what: str) -> Problem:
    """Return the answer for what is not there, or is somebody else's: the two cannot be told apart."""
    return Problem(404, f"{what} not found", code="not_found")


def invalid(name: str, why: str, status: int = 422) -> Problem:
    """Return the answer for one bad field."""
    return Problem(status, f"{name} {why}", {name: [why]}, code="invalid")


def of_failure(failure: Failure) -> Problem:
    """Return how a failure of the library answers a request."""
    status = _STATUS.get(failure.code, 422)
    if (
        failure.code == FailureCode.STORE_UNAVAILABLE
    ):  # which database or store it is, and why, is the operator's
        said = "The service cannot reach its storage right now; please try again."
        return Problem(503, said, headers={"Retry-After": _RETRY_AFTER}, code=failure.code.value)
    message = failure.message
    text = f"{message} {failure.remedy}".strip()
    if named := failure.facts.get("field"):  # what is wrong is a word in a body, not the address
        return Problem(422, text, {str(named): [message]}, code=failure.code.value)
    fields: dict[str, list[str]] = {}
    told = failure.facts.get("problems") or [message]
    for sentence in told if status == 422 else ():
        if found := _FIELD.match(str(sentence)):
            fields.setdefault(found.group(1), []).append(str(sentence)[found.end() :].strip(" :"))
    headers = {"Retry-After": "5"} if failure.code == FailureCode.TIMED_OUT else {}
    return Problem(status, text, fields, headers, code=failure.code.value)


def of_pydantic(errors: list[dict]) -> Problem:
    """Return how pydantic's complaints answer a request: every field with its sentence."""
    fields: dict[str, list[str]] = {}
    for error in errors:
        place = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]
        name = ".".join(place) or "body"
        said = str(error["msg"]).removeprefix("Value error, ")
        fields.setdefault(name, []).append("is required" if error["type"] == "missing" else said)
    sentences = [f"{name}: {'; '.join(said)}" for name, said in fields.items()]
    status = 400 if any(e["type"] == "json_invalid" for e in errors) else 422
    return Problem(status, ", ".join(sentences) or "The request is not valid.", fields, code="invalid")
