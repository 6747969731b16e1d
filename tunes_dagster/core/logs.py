"""Structured log lines of the server and of the pipeline, with the ids that join them, and never a secret or a picture.

The server's line of a request has `request_id` and the `subject` (tune or prompt) that it led to; the pipeline's lines
have the `subject`, the Dagster `run_id`, and the `request_id` that asked for it. What a line says stands in its
`facts`, which whoever logs chooses one by one: nothing is dumped.
"""

from __future__ import annotations

import json
import logging
from typing import Literal

LogFormat = Literal["off", "json", "text"]


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        facts = {
            "at": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        facts.update(getattr(record, "facts", {}))
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts, ensure_ascii=False, default=str)


class PlainLines(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        facts = " ".join(f"{name}={value}" for name, value in getattr(record, "facts", {}).items())
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{self.formatTime(record)} {record.levelname.lower()} {record.getMessage()} {facts}{trace}"


def set_up_logging(name: str, format: LogFormat) -> None:
    """Send the lines of a logger (`tunes.gateway`, `tunes.pipeline`) to standard error; `off` leaves them out."""
    log = logging.getLogger(name)
    if format == "off":
        log.handlers[:] = [logging.NullHandler()]
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if format == "json" else PlainLines())
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
