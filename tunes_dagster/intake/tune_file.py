"""`tune.yaml`: the file that lies among dropped pictures and says what to make of them."""

from __future__ import annotations

from typing import Any

import yaml

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.validation import checked
from tunes_dagster.core.written import Loader
from tunes_dagster.intake.sidecars import decode_text

NAMES = ("tune.yaml", "tune.yml")
MAX_BYTES = 4 * 1024 * 1024


def read_tune_yaml(data: bytes, label: str = "tune.yaml") -> dict[str, Any]:
    """Return the options that a tune.yaml holds, unchecked.

    Raises:
        Failure: `INVALID_REQUEST` with line and column when it is not YAML, or not a mapping.
    """
    if len(data) > MAX_BYTES:
        raise _invalid(label, f"is larger than {MAX_BYTES // 2**20} MB", "It holds options, not pictures.")
    try:
        found = yaml.load(decode_text(data), Loader=_Plain)  # noqa: S506 - a SafeLoader without aliases
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or "it cannot be read"
        raise _invalid(
            label, f"is not YAML{where}: {what}", "See docs/datasets.md for an example."
        ) from error
    except (RecursionError, ValueError) as error:
        raise _invalid(label, "cannot be read", "See docs/datasets.md for an example.") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _invalid(label, "holds no options", "Write `name: woman` and what else you want to say.")
    return found


def parse_tune_yaml(
    data: bytes, label: str = "tune.yaml", defaults: dict[str, Any] | None = None
) -> TuneRequest:
    """Return the request of a tune.yaml.

    Args:
        data: The file.
        label: What it is called in messages.
        defaults: Options at the top level that the file may leave out.

    Raises:
        Failure: `INVALID_REQUEST`, naming every unknown key and wrong value.
    """
    return checked(TuneRequest, {**(defaults or {}), **read_tune_yaml(data, label)}, label)


def _invalid(label: str, why: str, remedy: str) -> Failure:
    return Failure(FailureCode.INVALID_REQUEST, f"{label} {why}.", remedy)


class _Plain(Loader):
    """A safe loader that refuses aliases: a few of them, nested, unfold to more than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, unless it is an alias."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)
