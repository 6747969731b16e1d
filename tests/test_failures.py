"""What a failure tells whom: message and remedy leave the house, `detail` does not."""

from __future__ import annotations

import ast
import errno
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from tests.test_rooms import modules
from tunes_dagster.core.failures import (
    RETRYABLE,
    Failure,
    FailureCode,
    as_failure,
    is_out_of_memory,
)

# Called with sentences that leave the house, beside every function that says it returns one of them.
SAYING = {"Failure", "Problem", "HttpProblem", "Mistake", "Cancelled", "DatabaseAway", "Refused"}
# What holds a place on this machine, or the address of a part of it, when it is put into a sentence.
PLACES = {
    "url",
    "location",
    "resolved_home",
    "resolved_store_url",
    "bases_folder",
    "weights_path",
    "weights_dir",
}
PATHS = {"Path", "UPath", "str | Path", "Path | None", "Path | str", "UPath | Path"}
# Parts of a path and of an exception that say nothing of either, and calls that leave nothing of them.
NAMES_ONLY = {"st_size", "name", "stem", "suffix", "message", "remedy", "code", "status_code"}
HARMLESS = {
    "show_url",
    "isinstance",
    "len",
    "relative_to",
    "_words",
    "getattr",
}  # getattr: a parser's word on somebody's file
# Sentences of the command line are read where the command was typed.
HERE = {"cli"}


def raised(tree: ast.Module) -> set[str]:
    """Return the functions of a module that make a failure from sentences they are given."""
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.returns is not None
        and ast.unparse(node.returns) in ("Failure", "Problem", "HttpProblem", "NoReturn")
        and not any(
            of_exception(argument) or of_path(argument)
            for argument in node.args.args  # it says itself what of these may be told
        )
    }


def of_exception(argument: ast.arg) -> bool:
    said = ast.unparse(argument.annotation) if argument.annotation is not None else ""
    return said.endswith(("Error", "Exception"))


def of_path(argument: ast.arg) -> bool:
    return argument.annotation is not None and ast.unparse(argument.annotation) in PATHS


def called(node: ast.Call) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def unsafe_names(function: ast.AST) -> set[str]:
    """Return the names that hold an exception, a path or what was made of one."""
    names: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.ExceptHandler) and node.name:
            if ast.unparse(node.type or node) not in ("Failure", "Cancelled", "Problem", "HttpProblem"):
                names.add(node.name)
        elif (
            isinstance(node, ast.arg)
            and node.annotation is not None
            and ast.unparse(node.annotation) in PATHS
            or isinstance(node, ast.arg)
            and of_exception(node)
        ):
            names.add(node.arg)
    while True:
        found = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call | ast.Await)
            for target in node.targets
            if isinstance(target, ast.Name) and any(unsafe(node.value, names))
        } | {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and (
                called(node.value) in {"Path", "UPath", "expanduser", "resolve", *PLACES}
                or (called(node.value) == "str" and any(unsafe(node.value, names)))
            )
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        if found <= names:
            return names
        names |= found


def unsafe(node: ast.expr, names: set[str]) -> Iterator[str]:
    """Yield what in an expression must not be told outside."""
    if isinstance(node, ast.IfExp):  # what decides is not what is said
        yield from unsafe(node.body, names)
        yield from unsafe(node.orelse, names)
    elif (
        isinstance(node, ast.Compare)
        or (isinstance(node, ast.Attribute) and node.attr in NAMES_ONLY)
        or isinstance(node, ast.Call)
        and called(node) in HARMLESS
    ):
        return
    elif isinstance(node, ast.Name) and node.id in names:
        yield node.id
    elif isinstance(node, ast.Attribute) and node.attr in {"detail", *PLACES}:
        yield ast.unparse(node)
    else:
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.expr):
                yield from unsafe(inner, names)


def told(call: ast.Call) -> list[ast.expr]:
    """Return the arguments that are told outside."""
    plain = call.args[:3] if called(call) == "Failure" else call.args
    return [*plain, *(word.value for word in call.keywords if word.arg not in ("detail",))]


def leaks(tree: ast.Module, makers: set[str]) -> Iterator[str]:
    """Yield `line: what` for every sentence that would carry something of the inside."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    for function in functions:
        names = unsafe_names(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and called(node) in makers:
                for argument in told(node):
                    yield from (f"{node.lineno}: {what}" for what in unsafe(argument, names))


def test_no_sentence_that_leaves_the_house_quotes_an_exception_or_a_place_of_ours():
    wrong = {
        f"{path}:{found}"
        for room, path, tree in modules()
        if room not in HERE
        for found in leaks(tree, SAYING | raised(tree))
    }
    assert not wrong, "\n".join(sorted(wrong))


def from_memory() -> Exception:
    try:
        raise MemoryError
    except MemoryError as error:
        wrapped = OSError("Unable to load weights")
        wrapped.__cause__ = error
        return wrapped


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which is not loaded here."""


MEANINGS = [
    (MemoryError(), "out_of_memory"),
    (OutOfMemoryError("CUDA: tried to allocate"), "out_of_memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
    (RuntimeError("MPS backend out of memory"), "out_of_memory"),
    (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out_of_memory"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
    (from_memory(), "out_of_memory"),
    (OSError(errno.ENOSPC, "No space left on device", "/srv/x"), "store_unavailable"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "store_unavailable"),
    (PermissionError(errno.EACCES, "Permission denied", "/srv/x"), "internal"),
    (ValueError("out of memory is a word"), "internal"),
    (KeyError("/srv/x"), "internal"),
    (Failure(FailureCode.DIVERGED, "It diverged."), "diverged"),
]


@pytest.mark.parametrize(
    ("error", "code"), MEANINGS, ids=[f"{type(e).__name__}-{e}"[:40] for e, _ in MEANINGS]
)
def test_an_exception_means_the_same_wherever_it_is_caught(error: Exception, code: str) -> None:
    from tunes_dagster.assets.attempt import meant
    from tunes_dagster.rendering.records import picture_failure

    failure = as_failure(error)
    assert failure.code == code and meant(error).code == code
    own = (
        FailureCode.RENDER_FAILED if code == "internal" else failure.code
    )  # one picture, not the whole batch
    assert picture_failure(error).code == own
    if failure is not error:
        assert str(error) in failure.detail and "srv" not in str(failure)
        assert failure.code == "internal" or (failure.code in RETRYABLE) is (code == "store_unavailable")
        assert is_out_of_memory(error) is (code == "out_of_memory")


def test_a_failure_that_was_raised_for_lack_of_memory_says_so_by_its_code() -> None:
    one = Failure(FailureCode.PICTURE_UNREADABLE, "x.png takes more memory than a picture may.")
    one.__cause__ = MemoryError()
    assert as_failure(one) is one and not is_out_of_memory(one)


def test_what_is_wrong_is_handed_on_as_a_list_and_not_read_out_of_sentences() -> None:
    from tunes_dagster.core.recipe import TuneRequest
    from tunes_dagster.core.validation import checked
    from tunes_dagster.gateway.problems import of_failure, of_pydantic

    wrong = {
        "training": {"rank": 500, "rnk": 1},
        "prompts": [{"text": "x", "settings": {"mask_image": "blobs/x"}}],
    }
    with pytest.raises(Failure) as caught:
        checked(TuneRequest, {"name": "cat", **wrong})
    fields = of_failure(caught.value).fields
    assert fields == {
        "training.rank": ["is '500', but should be less than or equal to 128"],
        "training.rnk": ["is not an option (did you mean rank?)"],
        "prompts.0.settings.mask_image": ["needs an input_image"],
    }
    assert all(f"{name} {said[0]}" in caught.value.message for name, said in fields.items())

    with pytest.raises(ValidationError) as refused:
        TuneRequest.model_validate(wrong)
    problem = of_pydantic([dict(one) for one in refused.value.errors()])
    assert problem.missing == {"name"} and problem.malformed
    assert problem.fields["prompts.0.settings.mask_image"] == ["needs an input_image"]

    said = "training.rank is a word in a sentence of somebody's tune."
    assert of_failure(Failure(FailureCode.INVALID_REQUEST, said)).fields == {}
    named = of_failure(Failure(FailureCode.UNKNOWN_TUNE, "The text names a tune.").about("text"))
    assert (named.status, named.fields) == (422, {"text": ["The text names a tune."]})
