"""Words a person mistypes: each is refused before anything is started or written, with what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Tunes
from tests.cli.test_commands import hand_in
from tunes_dagster.cli.installation import Installation


@pytest.mark.parametrize(
    "arguments", [("dev", "--port", "99999"), ("dev", "--port", "0"), ("serve", "--port", "-1")]
)
def test_a_port_that_does_not_exist_is_refused(tunes: Tunes, arguments: tuple[str, ...]) -> None:
    said = tunes(*arguments)
    assert said.code == 2 and "--port" in said.err


@pytest.mark.parametrize("name", ["", "  ", "ann\n"])
def test_an_account_needs_an_id_that_can_be_read(tunes: Tunes, installation: Installation, name: str) -> None:
    said = tunes("accounts", "create", name)
    assert said.code == 2 and "id of an account" in said.err
    assert installation.registry.keys.rows() == []


def test_times_that_no_calendar_holds_are_refused(tunes: Tunes, photos: Path) -> None:
    hand_in(tunes, photos)
    for command in (("keep", "1", "--for"), ("retention", "set", "local", "--tunes")):
        said = tunes(*command, "99999999999d")
        assert said.code == 2 and "Write never" in said.err


@pytest.mark.parametrize("command", [("list",), ("callbacks", "list"), ("retention", "log")])
def test_a_list_shows_at_least_one(tunes: Tunes, command: tuple[str, ...]) -> None:
    for limit in ("0", "-3"):
        assert tunes(*command, "--limit", limit).code == 2


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["list", "--account", "nobody"], "tunes accounts create"),
        (["accounts", "grant", "nobody", "5"], "tunes accounts create"),
        (["callbacks", "show", "x"], "tunes callbacks list"),
    ],
)
def test_what_is_not_there_is_answered_with_what_to_do(tunes: Tunes, words: list[str], remedy: str) -> None:
    said = tunes(*words)
    assert said.code == 2
    assert remedy in " ".join(said.err.split())
