"""A machine that makes up histories of one installation and sees whether its books survive them.

Each rule lets somebody do one thing: a caller, the operator, a sensor, a run on some host, a sender of callbacks, the
clock. With it comes what may befall the call (`seam.Trouble`) and what another host does inside of it
(`seam.Meanwhile`). After each step everything of `invariants.check` holds; at the end of each history everybody is
healthy for a while, and then all has ended.

A history that fails is printed as a program and as a blob for `@reproduce_failure`, and is kept in Hypothesis'
database, from which the next run begins. `pytest -m proof tests/machine` makes up
thousands.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine

from tests.machine import hosts, invariants
from tests.machine.deeds import BESIDES, Deeds
from tests.machine.hosts import TICKS
from tests.machine.house import make_house
from tests.machine.seam import Meanwhile, Trouble
from tests.machine.senders import ANSWERS, Senders
from tests.machine.world import ACCOUNTS, House, World
from tests.support.databases import new_database
from tunes_dagster.registry import Registry

NUMBERS = st.integers(0, 5)
TROUBLES = (
    st.none()
    | st.none()
    | st.none()
    | st.builds(
        Trouble,
        st.sampled_from(("dies", "away", "gone")),
        st.sampled_from(("answer", "commit", "statement")),
        st.integers(0, 12),
    )
)
MEANWHILES = st.none() | st.none() | st.tuples(st.integers(0, 3), st.sampled_from(sorted(BESIDES)), NUMBERS)
WHO = st.sampled_from(ACCOUNTS)
STEPS = (
    "finish", "progress", "picture", "no picture", "fail", "fail for good", "cancelled", "give back", "part",
)  # fmt: skip


class Histories(RuleBasedStateMachine):
    """See above."""

    house: ClassVar[House]

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.house)
        self.senders = Senders(self.world)
        self.deeds = Deeds(self.world, self.senders)
        self.seen = -1

    def act(self, deed: Any, trouble: Trouble | None, meanwhile: tuple[int, str, int] | None = None) -> Any:
        beside = None
        if meanwhile is not None:
            number, name, which = meanwhile
            beside = Meanwhile(number, self.world.beside(lambda: BESIDES[name](self.deeds, which)))
        return self.world.act(deed, trouble, beside)

    @initialize(stages=st.lists(st.integers(0, 4), min_size=1, max_size=3))
    def work_has_begun(self, stages: list[int]) -> None:
        """Begin with tunes that are some stages old, Ann's and Bob's in turns."""
        for number, stage in enumerate(stages):
            self.act(lambda number=number: self.deeds.ask_for_tune(ACCOUNTS[number % 2], number, 0), None)
            for kind in TICKS[:stage]:
                self.all_goes_well(kind)

    @rule(kind=st.sampled_from(TICKS))
    def all_goes_well(self, kind: str) -> None:
        """Let work of a kind be launched, begun and done."""
        self.act(lambda: self.deeds.all_of(kind), None)

    # Callers

    @rule(who=WHO, kind=st.integers(0, 7), key=st.integers(0, 4), trouble=TROUBLES, meanwhile=MEANWHILES)
    def asks_for_a_tune(self, who: str, kind: int, key: int, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: self.deeds.ask_for_tune(who, kind, key), trouble, meanwhile)

    @rule(
        who=WHO,
        tune=NUMBERS,
        kind=st.integers(0, 7),
        key=st.integers(0, 4),
        trouble=TROUBLES,
        meanwhile=MEANWHILES,
    )
    def asks_for_prompts(
        self, who: str, tune: int, kind: int, key: int, trouble: Any, meanwhile: Any
    ) -> None:
        self.act(lambda: self.deeds.ask_for_prompts(who, tune, kind, key), trouble, meanwhile)

    @rule(who=WHO, tune=NUMBERS, trouble=TROUBLES)
    def sends_pictures(self, who: str, tune: int, trouble: Any) -> None:
        self.act(lambda: self.deeds.send_pictures(who, tune), trouble)

    @rule(who=WHO, tune=NUMBERS, keep=st.booleans(), trouble=TROUBLES, meanwhile=MEANWHILES)
    def cancels_a_tune(self, who: str, tune: int, keep: bool, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: self.deeds.cancel_tune(who, tune, keep), trouble, meanwhile)

    @rule(who=WHO, prompt=NUMBERS, trouble=TROUBLES, meanwhile=MEANWHILES)
    def cancels_a_prompt(self, who: str, prompt: int, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: self.deeds.cancel_prompt(who, prompt), trouble, meanwhile)

    @rule(who=WHO, tune=NUMBERS, trouble=TROUBLES, meanwhile=MEANWHILES)
    def deletes_a_tune(self, who: str, tune: int, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: self.deeds.delete_tune(who, tune), trouble, meanwhile)

    @rule(who=WHO, prompt=NUMBERS, trouble=TROUBLES, meanwhile=MEANWHILES)
    def deletes_a_prompt(self, who: str, prompt: int, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: self.deeds.delete_prompt(who, prompt), trouble, meanwhile)

    @rule(trouble=TROUBLES, meanwhile=MEANWHILES)
    def deletions_are_driven(self, trouble: Any, meanwhile: Any) -> None:
        self.act(self.deeds.drive_deletions, trouble, meanwhile)

    # The operator

    @rule(kind=st.sampled_from(TICKS), which=NUMBERS, trouble=TROUBLES, meanwhile=MEANWHILES)
    def starts_a_run_by_hand(self, kind: str, which: int, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: self.deeds.start_by_hand(kind, which), trouble, meanwhile)

    @rule(what=st.sampled_from(("stop tune", "keep tune", "stop prompt", "mend", "again", "replay", "uploads", "holds",
                                "plan", "grant")), which=NUMBERS, trouble=TROUBLES, meanwhile=MEANWHILES)  # fmt: skip
    def operates(self, what: str, which: int, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: self.deeds.operate(what, which), trouble, meanwhile)

    @rule(what=st.sampled_from(("add", "plan", "change", "look", "remove", "report")), which=NUMBERS, trouble=TROUBLES,
          meanwhile=MEANWHILES)  # fmt: skip
    def sees_to_campaigns(self, what: str, which: int, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: self.deeds.campaign(what, which), trouble, meanwhile)

    @rule(
        what=st.sampled_from(("rules", "retain", "extend")),
        which=NUMBERS,
        trouble=TROUBLES,
        meanwhile=MEANWHILES,
    )
    def sees_to_retention(self, what: str, which: int, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: self.deeds.keep(what, which), trouble, meanwhile)

    @rule(back=st.booleans())
    def a_backup_is_taken_or_put_back(self, back: bool) -> None:
        self.act(self.world.put_back if back else self.world.back_up, None)

    # Hosts

    @rule(kind=st.sampled_from(TICKS), trouble=TROUBLES, meanwhile=MEANWHILES)
    def a_sensor_ticks(self, kind: str, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: hosts.tick(self.world, kind), trouble, meanwhile)

    @rule(trouble=TROUBLES, meanwhile=MEANWHILES)
    def stuck_work_is_looked_for(self, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: hosts.look_for_stuck(self.world), trouble, meanwhile)

    @precondition(lambda self: self.world.launches)
    @rule(which=NUMBERS, again=st.booleans(), trouble=TROUBLES, meanwhile=MEANWHILES)
    def a_run_starts(self, which: int, again: bool, trouble: Any, meanwhile: Any) -> None:
        launch = self.world.launches[which % len(self.world.launches)]
        self.act(lambda: hosts.start(self.world, which), trouble, meanwhile)
        if again:  # a launch that Dagster makes a run of once more
            self.world.launches.append(launch)

    @precondition(lambda self: self.world.launches)
    @rule()
    def launches_are_lost(self) -> None:
        self.world.launches.clear()

    @precondition(lambda self: self.deeds.claims())
    @rule(which=NUMBERS, what=st.sampled_from(STEPS), number=NUMBERS, trouble=TROUBLES, meanwhile=MEANWHILES)
    def a_run_works(self, which: int, what: str, number: int, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: self.deeds.work(which, what, number), trouble, meanwhile)

    @precondition(lambda self: self.deeds.claims())
    @rule(which=NUMBERS, trouble=TROUBLES, meanwhile=MEANWHILES)
    def a_run_does_everything(self, which: int, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: self.deeds.do_all(which), trouble, meanwhile)

    @precondition(lambda self: self.deeds.claims())
    @rule(which=NUMBERS, trouble=TROUBLES, meanwhile=MEANWHILES)
    def a_run_takes_others_in(self, which: int, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: self.deeds.join(which), trouble, meanwhile)

    @precondition(lambda self: self.deeds.claims())
    @rule(which=NUMBERS, seen=st.booleans())
    def a_host_dies(self, which: int, seen: bool) -> None:
        self.deeds.die(which, seen)

    # Senders

    @rule(trouble=TROUBLES, meanwhile=MEANWHILES)
    def a_sender_takes_what_is_due(self, trouble: Any, meanwhile: Any) -> None:
        self.act(self.senders.lease, trouble, meanwhile)

    @precondition(lambda self: self.senders.leases)
    @rule(which=NUMBERS, trouble=TROUBLES, meanwhile=MEANWHILES)
    def a_sender_begins(self, which: int, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: self.senders.begin(which), trouble, meanwhile)

    @precondition(lambda self: self.senders.flights)
    @rule(which=NUMBERS, answer=st.sampled_from(ANSWERS))
    def a_sender_sends(self, which: int, answer: str) -> None:
        self.act(lambda: self.senders.send(which, answer), None)

    @precondition(lambda self: self.senders.flights)
    @rule(which=NUMBERS, late=st.booleans(), trouble=TROUBLES, meanwhile=MEANWHILES)
    def a_sender_records(self, which: int, late: bool, trouble: Any, meanwhile: Any) -> None:
        self.act(lambda: (self.senders.give_up if late else self.senders.record)(which), trouble, meanwhile)

    @precondition(lambda self: self.senders.flights or self.senders.leases)
    @rule()
    def senders_die(self) -> None:
        self.senders.die()

    # Time

    @rule(seconds=st.sampled_from((1.0, 3.0, 10.0, 61.0, 130.0, 700.0, 7300.0, 90_000.0, 2_700_000.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.forward(seconds)

    @invariant()
    def everything_holds(self) -> None:
        if self.world.seam.commits != self.seen:  # nothing changes without one
            invariants.check(self.world, self.senders)
            self.seen = self.world.seam.commits

    def teardown(self) -> None:
        try:
            self.deeds.quiet_end()
            invariants.check(self.world, self.senders)
            invariants.check_apart(self.world)
            invariants.check_end(self.world, self.senders)
        finally:
            self.world.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """What histories on SQLite share."""
    with make_house(tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="module")
def postgres_house(tmp_path_factory: pytest.TempPathFactory, postgres: Engine) -> Iterator[House]:
    """What histories on PostgreSQL share."""
    url = new_database(postgres)
    Registry(url).close()
    with make_house(tmp_path_factory, url) as made:
        yield made


def make_up(house: House, examples: int, steps: int) -> None:
    """Make up so many histories of so many steps; `TUNES_HISTORIES` asks for another number."""
    Histories.house = house
    chosen = settings(
        max_examples=int(os.environ.get("TUNES_HISTORIES", examples)),
        stateful_step_count=steps,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    )
    run_state_machine_as_test(Histories, settings=chosen)


def test_histories_on_sqlite(house: House) -> None:
    make_up(house, 15, 15)


@pytest.mark.slow
def test_histories_on_postgres(postgres_house: House) -> None:
    make_up(postgres_house, 8, 12)


@pytest.mark.proof
@pytest.mark.timeout(0)
def test_thousands_of_histories_on_sqlite(house: House) -> None:
    make_up(house, 5_000, 40)


@pytest.mark.proof
@pytest.mark.timeout(0)
def test_hundreds_of_histories_on_postgres(postgres_house: House) -> None:
    make_up(postgres_house, 500, 40)
