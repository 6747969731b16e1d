"""What can be wrong with a request, once for all dialects; each dialect words it in its own error form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.validation import WRONG
from tunes_dagster.registry.accepting import TakenOver

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
# pydantic's errors about values that are not even of the right kind, beside those that end in these words.
_MALFORMED = ("missing", "json_invalid", "int_from_float")
_OF_KIND = ("_parsing", "_type")


@dataclass(eq=False)
class HttpProblem(Exception):
    """A request that is refused.

    Attributes:
        status: HTTP status, before a dialect has its say.
        message: One sentence.
        fields: Field → what is wrong with it.
        headers: Sent with the answer.
        code: Word for machines.
        missing: Names of the fields that should be there and are not.
        malformed: Some value is not of the right kind, or is missing.
    """

    status: int
    message: str
    fields: dict[str, list[str]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    code: str = ""
    missing: frozenset[str] = frozenset()
    malformed: bool = False

    def __str__(self) -> str:
        return self.message


def not_found(what: str) -> HttpProblem:
    """Return the answer for what is not there, or is somebody else's: the two cannot be told apart."""
    return HttpProblem(404, f"{what} not found", code="not_found")


def invalid(name: str, why: str, status: int = 422) -> HttpProblem:
    """Return the answer for one bad field."""
    return HttpProblem(status, f"{name} {why}", {name: [why]}, code="invalid")


def of_failure(failure: Failure) -> HttpProblem:
    """Return how a failure of the library answers a request."""
    status = _STATUS.get(failure.code, 422)
    if (
        failure.code == FailureCode.STORE_UNAVAILABLE
    ):  # which database or store it is, and why, is the operator's
        said = "The service cannot reach its storage right now; please try again."
        return HttpProblem(503, said, headers={"Retry-After": _RETRY_AFTER}, code=failure.code.value)
    if isinstance(failure, TakenOver):
        return HttpProblem(
            409, failure.message, headers={"Retry-After": _RETRY_AFTER}, code="idempotency_busy"
        )
    text = f"{failure.message} {failure.remedy}".strip()
    fields: dict[str, list[str]] = {}
    for one in failure.problems:
        if one.field:
            fields.setdefault(one.field, []).append(one.message)
    if fields:  # what is wrong is a word in a body, not the address or the server
        status = 422
    headers = {"Retry-After": "5"} if failure.code == FailureCode.TIMED_OUT else {}
    return HttpProblem(status, text, fields, headers, code=failure.code.value)


def of_pydantic(errors: list[dict[str, Any]]) -> HttpProblem:
    """Return how pydantic's complaints answer a request: every field with its sentence."""
    fields: dict[str, list[str]] = {}
    missing = set()
    for error in errors:
        place = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]
        said = str(error["msg"]).removeprefix("Value error, ")
        if error["type"] == WRONG:
            place, said = [*place, error["ctx"]["option"]], error["ctx"]["said"]
        name = ".".join(place) or "body"
        if error["type"] == "missing":
            missing.add(name)
        fields.setdefault(name, []).append("is required" if error["type"] == "missing" else said)
    kinds = [str(error["type"]) for error in errors]
    sentences = [f"{name}: {'; '.join(said)}" for name, said in fields.items()]
    return HttpProblem(
        400 if "json_invalid" in kinds else 422,
        ", ".join(sentences) or "The request is not valid.",
        fields,
        code="invalid",
        missing=frozenset(missing),
        malformed=any(kind in _MALFORMED or kind.endswith(_OF_KIND) for kind in kinds),
    )
