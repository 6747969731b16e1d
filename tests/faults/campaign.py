"""A campaign of faults: one fault at one moment of one stage in a copy of a home, and then it is made whole again.

    python -m tests.faults.campaign --cases 300 --seed 7

Everything must end, once, with the same bytes as without the fault. What does not is named with what repeats it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.faults import FAULTS, ended, in_a_child
from tests.faults.home import INSTEAD, STAGES, begin, copied, doing, outcome
from tunes_dagster.registry.holders import writer_of


@dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        stage: In which it happens.
        fault: Which.
        share: At which part of the stage's moments, 0 to 1.
    """

    stage: str
    fault: str
    share: float


@dataclass
class Reference:
    """A home that no fault happened to, as it was before each stage and after the last one.

    Attributes:
        folder: Its copies, by the name of the stage that comes next.
        outcomes: What had come of it after each stage.
        moments: How many there were in each stage.
    """

    folder: Path
    outcomes: dict[str, Any] = field(default_factory=dict)
    moments: dict[str, int] = field(default_factory=dict)


def _told(folder: Path) -> Any:
    """Return the outcome of a home, looked at by a process of its own."""
    child = in_a_child(folder, lambda home: _write(folder, outcome(home)))
    if ended(child) != "0":
        return {"cannot be looked at": _traces(folder)}
    return json.loads((folder / "outcome.json").read_text())


def _write(folder: Path, found: Any) -> None:
    (folder / "outcome.json").write_text(json.dumps(found))


def _traces(folder: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("trace-*")))


# Those that load no model: seconds each.
LIGHT = ("prepare", "plan", "delete")


# Who dies in a cohort is alone in the next one, and a cohort of another size rounds in another order: for the same bits
# each tune trains alone.
ALONE = {"TUNES_MAX_COHORT": "1"}


def load_everything() -> None:
    """Load what the stages need, once and for all processes that are forked later."""
    import diffusers
    import transformers

    import tunes_dagster.definitions  # noqa: F401
    from tunes_dagster.evaluation import scoring  # noqa: F401
    from tunes_dagster.rendering import renderer  # noqa: F401
    from tunes_dagster.training import loop, samples, verify  # noqa: F401

    for module, names in (
        (diffusers, ("StableDiffusionXLPipeline", "AutoencoderKL", "UNet2DConditionModel")),
        (transformers, ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPTokenizer")),
    ):
        for name in names:
            getattr(module, name)


def reference(folder: Path, base: Path, stages: Sequence[str] = tuple(STAGES)) -> Reference:
    """Let a home go through stages undisturbed."""
    found = Reference(folder)
    home = folder / "home-now"
    home.mkdir(parents=True)
    child = os.fork()
    if not child:
        begin(home, base)
        os._exit(0)
    os.waitpid(child, 0)
    for stage in stages:
        copied(home, folder / stage)
        how = ended(in_a_child(home, STAGES[stage]))
        if how != "0":
            raise AssertionError(f"{stage} without a fault ended as {how}: {_traces(home)}")
        found.moments[stage] = int((home / "moments").read_text())
        found.outcomes[stage] = _told(home)
    for other, (stage, _) in INSTEAD.items():
        if stage in stages:
            copied(folder / stage, folder / other)
            again = copied(folder / stage, folder / f"{other}-now")
            how = ended(in_a_child(again, doing(other)))
            if how != "0":
                raise AssertionError(f"{other} without a fault ended as {how}: {_traces(again)}")
            found.moments[other] = int((again / "moments").read_text())
            found.outcomes[other] = found.outcomes[stage]
    return found


def _holds_the_lock(folder: Path, pid: int) -> bool:
    holder = writer_of(folder / "home" / "registry.db")
    return holder is not None and holder.pid == pid and holder.stopped


def try_case(known: Reference, case: Case, folder: Path) -> str:
    """Let a fault happen and make the home whole again; returns what is wrong, empty when nothing is."""
    copied(known.folder / case.stage, folder)
    do, at = doing(case.stage), max(1, round(case.share * known.moments[case.stage]))
    first = in_a_child(folder, do, at, case.fault)
    how = ended(first)
    if how == "hung":
        return "it never ended"
    # Somebody else goes on while a stopped process does not even know that it was stopped; unless it holds the lock
    # of SQLite's file, which nobody can take from it. Whoever waits says for whom, and a person does as is said.
    second = in_a_child(folder, do)
    if how == "stopped" and _holds_the_lock(folder, first):
        os.kill(first, signal.SIGCONT)
    again = ended(second)
    if how == "stopped":
        os.kill(first, signal.SIGCONT)
        ended(first)
    if again != "0":
        return f"it does not go on ({again}): {_traces(folder)}"
    if not (folder / "home" / "store").exists():
        (folder / "home" / "store-aside").rename(folder / "home" / "store")
    found = _told(folder)
    wanted = known.outcomes[case.stage]
    wrong = [
        f"{name}: {found.get(name)} instead of {wanted[name]}"
        for name in wanted
        if found.get(name) != wanted[name]
    ]
    return "; ".join(wrong) or (str(found) if "cannot be looked at" in found else "")


def cases(
    count: int, seed: int, stages: Sequence[str] = tuple(STAGES), faults: Sequence[str] = tuple(FAULTS)
) -> Iterator[Case]:
    """Yield faults at random moments, every pair of stage and fault before any comes again."""
    chance, pairs = random.Random(seed), [(stage, fault) for stage in stages for fault in faults]
    for number in range(count):
        if number % len(pairs) == 0:
            chance.shuffle(pairs)
        yield Case(*pairs[number % len(pairs)], round(chance.random(), 3))


def main() -> int:
    """Run a campaign; returns how many cases went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=42)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--light", action="store_true", help="only the stages that load no model")
    parser.add_argument("--session", action="store_true", help="kill a device session, again and again")
    asked = parser.parse_args()
    stages = LIGHT if asked.light else ("prepare", "make") if asked.session else tuple(STAGES)
    from tests.support.tiny_bases import make_random_sdxl

    if asked.session:
        os.environ |= ALONE
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="tunes-faults-") as kept:
        folder = Path(kept)
        base = make_random_sdxl(folder / "random-sdxl")
        load_everything()
        known = reference(folder / "reference", base, stages)
        chosen = cases(asked.cases, asked.seed, stages)
        if asked.session:
            chosen = cases(asked.cases, asked.seed, ("session",), ("kill",))
        for number, case in enumerate(chosen, 1):
            said = try_case(known, case, folder / "case")
            shutil.rmtree(folder / "case")
            wrong += bool(said)
            print(f"{number}/{asked.cases} {case}: {said or 'whole again'}", flush=True)
    print(f"{wrong} of {asked.cases} went wrong.")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main()))
