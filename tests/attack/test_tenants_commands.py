"""Every command of the application, given one account and the names of what is another's.

The commands are the application's own: one without a case below fails the test, and so does one that is said to name
nothing and takes something that could be a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.attack.tenants import ALFA, BRAVO, SECRET, Tenants, Word, populate, same, words_of
from tests.gateway.conftest import House
from tests.gateway.test_imports import file_of
from tests.support.houses import draw_pictures
from tunes_dagster.cli import app, main

# Arguments of each command that belongs to an account. WORD is a name of something of Alfa's, PHOTOS a folder of
# pictures, LORA a file of another program, ONE a tune of Bravo's; ACCOUNT stands where the account is an argument, and
# otherwise `--account` is added.
_TRAIN = ["PHOTOS", "--name", "woman", "--no-wait", "--base", "fast"]
CASES: dict[str, list[list[str]]] = {
    "train": [
        [*_TRAIN, "--base-tune-id", "WORD"],
        [*_TRAIN, "--prompt", "x <lora:WORD:1>"],
        [*_TRAIN, "--set", "training.base_tune_id=WORD"],
    ],
    "render": [
        ["ohwx woman", "--tune", "WORD", "--no-wait"],
        ["x <lora:WORD:1>", "--base", "fast", "--no-wait"],
        ["x <lora:WORD:1>", "another", "--base", "fast", "--no-wait"],
        ["x <faceid:WORD:1>", "--base", "fast", "--no-wait"],
        ["x", "--base", "fast", "--no-wait", "--negative-prompt", "<lora:WORD:1>"],
        ["x", "--base", "WORD", "--no-wait"],
        ["x", "--base", "fast", "--no-wait", "--input-image", "PICTURE"],
    ],
    "resume": [["WORD"]],
    "rerun": [["WORD", "--no-wait"]],
    "list": [["--prompts", "--tune", "WORD"], []],
    "status": [["WORD"], ["WORD", "--json"]],
    "diff": [["WORD", "ONE"], ["ONE", "WORD"]],
    "cancel": [["WORD"], ["WORD", "--keep"]],
    "import": [["LORA", "--base", "sdxl", "--name", "woman", "--no-wait", "--prompt", "x <lora:WORD:1>"]],
    "forget": [["--person", "WORD", "--yes"]],
    "delete": [["WORD", "--yes"], ["--person", "WORD", "--yes"]],
    "export": [["WORD"], ["WORD", "--format", "kohya"]],
    "keep": [["WORD", "--for", "30d"]],
    "captions show": [["WORD"]],
    "captions set": [["WORD", "a.png", "mine"]],
    "captions edit": [["WORD"]],
    "retention set": [["ACCOUNT", "--tunes", "WORD"]],
    "retention log": [[]],
    "keys list": [["ACCOUNT"]],
}
# Commands of operators that look no word of a person up, with what they take instead.
OTHERS: dict[str, str] = {
    "demo": "makes the operator's own tune",
    "serve": "a server",
    "dev": "a server",
    "doctor": "looks at the whole installation",
    "backup": "of the whole installation",
    "restore": "of the whole installation",
    "registry upgrade": "of the whole installation",
    "check": "looks at pictures; no tune is looked up",
    "devices": "all",
    "session": "holds a device for the whole installation",
    "plan": "reckons with options; no tune is looked up",
    "bases list": "bases",
    "bases pull": "a base",
    "campaign check": "files: see the fields of campaigns",
    "campaign add": "files: see the fields of campaigns",
    "campaign list": "all",
    "campaign reload": "all",
    **{
        f"campaign {one}": "a name, which is one campaign's in the whole installation"
        for one in ("show", "run", "rerun", "backfill", "remove")
    },
    "retention show": "all",
    "retention run": "all",
    **{f"callbacks {one}": "exact ids" for one in ("list", "show", "replay")},
    "accounts list": "all",
    **{f"accounts {one}": "an account" for one in ("create", "grant", "set", "signing")},
    "keys create": "an account",
    "keys revoke": "an exact id",
}
# What a command that looks no tune up may not take.
NAMING = {"tune", "tunes", "first", "second", "prompt", "person", "title", "label", "input_image"}


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, set[str]]]:
    """Yield every command of the application with the names of its parameters."""
    inner = getattr(command, "commands", None)
    if not inner:
        yield " ".join(path), {one.name for one in command.params}
        return
    for name, one in inner.items():
        yield from commands(one, (*path, name))


@pytest.fixture
def both(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tenants:
    for name in ("DAGSTER_HOME", "TUNES_DAGSTER_STORAGE"):
        monkeypatch.setenv(name, str(tmp_path / "dagster"))
    (tmp_path / "dagster").mkdir()
    monkeypatch.setenv("EDITOR", "true")
    monkeypatch.delenv("VISUAL", raising=False)
    return populate(house)


@pytest.fixture
def run(both: Tenants, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a command with a name in it; returns its code and everything it said."""
    photos = str(draw_pictures(tmp_path / "photos", 2))
    theirs = tmp_path / "theirs.safetensors"
    theirs.write_bytes(file_of())

    def said(command: str, arguments: list[str], word: str, account: str) -> tuple[int, str]:
        meant = {"ACCOUNT": account or "local", "PHOTOS": photos, "ONE": both.own["tune"], "PICTURE": word}
        meant["LORA"] = str(theirs)
        given = [meant.get(one, one).replace("WORD", word) for one in arguments]
        whose = ["--account", account] if account and "ACCOUNT" not in arguments else []
        capsys.readouterr()
        code = main([*command.split(), *given, *whose])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return said


def names_in(both: Tenants, arguments: list[str]) -> Iterator[Word]:
    """Yield the names of Alfa's that a command is tried with."""
    line = " ".join(arguments)
    kind = "tune word" if "WORD" in line else "picture" if "PICTURE" in line else ""
    yield from words_of(both, kind) if kind else [Word("", "")]


def test_every_command_is_known() -> None:
    found = dict(commands(typer.main.get_command(app)))
    assert set(found) == {*CASES, *OTHERS}, "a command without a case in this test"
    for name in CASES:
        assert "account" in found[name], f"{name} names something of an account, and no account"
    for name in OTHERS:
        assert not found[name] & NAMING, f"{name} takes a name: give it a case"


@pytest.mark.slow
def test_commands_find_nothing_of_another_account(both: Tenants, run: Callable[..., tuple[int, str]]) -> None:
    before = both.alfas()
    for command, cases in CASES.items():
        for arguments in cases:
            for account in (BRAVO, ""):
                tried = None if account else 1  # without an account a command means `local`: nobody's as well
                for word in islice(names_in(both, arguments), tried):
                    attack = (command, arguments, account, word.real)
                    code, said = run(command, arguments, word.real, account)
                    both.named |= {word.real, word.twin}
                    both.check_silent(said, attack, word.real)
                    if word.real:
                        nobody, silence = run(command, arguments, word.twin, account)
                        looks_up = "--negative-prompt" not in arguments  # no tags are read in one
                        assert code == nobody == (2 if looks_up else 0), (attack, said, silence)
                        assert not looks_up or same(said, word.real) == same(silence, word.twin), attack
                    else:
                        assert code == 0, (attack, said)
            both.check(before, (command, arguments))


@pytest.mark.slow
def test_words_that_both_have_mean_the_account_that_was_named(
    both: Tenants, run: Callable[..., tuple[int, str]]
) -> None:
    before = both.alfas()
    for word in both.words["colliding"]:
        own = both.house.registry.objects.tune_named(BRAVO, word.real)
        assert run("render", ["ohwx woman", "--tune", "WORD", "--no-wait"], word.real, BRAVO)[0] == 0
        (newest,) = both.house.registry.prompts.rows(account_id=BRAVO, limit=1)
        assert newest.tune_id == own.id
        assert run("keep", ["WORD", "--for", "30d"], word.real, BRAVO)[0] == 0
        assert both.house.registry.tunes.get(own.id).kept_until is not None
    both.check(before, "rendering and keeping")
    for word in both.words["colliding"]:
        assert run("delete", ["WORD", "--yes"], word.real, BRAVO)[0] == 0
    both.check(before, "deleting")
    assert run("status", ["WORD"], f"zoe {SECRET}", ALFA)[0] == 0
