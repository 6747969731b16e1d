"""Where things are kept and how the machine may be used; every value can be set as `TUNES_…` in the environment."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from tunes_dagster.core.environment import (
    Database,
    Device,
    FilePlace,
    FromEnvironment,
    WebAddress,
    read_environment,
)
from tunes_dagster.core.failures import Failure, FailureCode, detail_of
from tunes_dagster.core.launching import sessions_suit

# What pydantic takes for a switch.
_ON, _OFF = frozenset({"on", "true", "t", "yes", "y", "1"}), frozenset({"off", "false", "f", "no", "n", "0"})

# Waits between attempts; there is at least one.
Backoff = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]


def check_database_folder(folder: Path, setting: str) -> Path:
    """Return a folder in which SQLite databases of ours and of Dagster's can lie.

    SQLAlchemy's addresses, which Dagster writes as we do, end at a question mark and have no way to escape it: the
    database would be a file of the shorter name, outside, where another installation would find it.

    Raises:
        Failure: `INVALID_REQUEST`.
    """
    if "?" in str(folder):
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"There is a question mark in the path that {setting} leads to, below which databases cannot lie.",
            f"Let {setting} name a folder without one.",
            str(folder),
        )
    return folder


class Settings(FromEnvironment):
    """The operator's settings. All state lives under `home` unless a URL says otherwise."""

    model_config = SettingsConfigDict(env_prefix="TUNES_")

    home: Path = Path(".tunes")
    """Folder of everything this installation keeps; nothing is written outside it."""
    registry_url: Database = ""
    """SQLAlchemy URL; empty means `sqlite:///{home}/registry.db`."""
    store_url: FilePlace = ""
    """Folder or fsspec URL (`s3://bucket/prefix`); empty means `{home}/store`."""
    store_options: dict[str, Any] = Field(default_factory=dict)
    """Keyword options of the store's filesystem (`{"endpoint_url": …}`) as JSON."""
    operator_url: WebAddress = "http://127.0.0.1:8000"
    """Where operators reach the HTTP server; Dagster's UI loads its pictures from there."""
    drop_folder: FilePlace = ""
    """Folder or S3 prefix that the `new_datasets` sensor watches; empty means `{home}/inbox`."""
    drop_settle_seconds: float = Field(default=30.0, ge=0)
    """A dropped folder without `tune.yaml` is complete after this long without change."""
    profile: Literal["embedded", "production"] = "embedded"
    """`embedded` maps every base onto the shipped tiny ones; `production` loads real ones."""
    device: Device = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is float32 on CPU and bfloat16 on GPUs."""
    allow_hosts: list[str] = Field(default_factory=list)
    """Hosts by name that URLs may lead to although their address is private."""
    allow_folders: list[str] = Field(default_factory=list)
    """Folders whose pictures a request may name by path (besides the drop folder); the command line adds the folder it
    was given.
    """
    max_cohort: int = Field(default=8, ge=1)
    """Most tunes that one training run takes."""
    cohort_wait_seconds: float = Field(default=2.0, ge=0)
    """How long a prepared tune waits for others to share its run."""
    batch_wait_seconds: float = Field(default=2.0, ge=0)
    """How long a queued prompt waits for others to share its run."""
    max_batch_prompts: int = Field(default=64, ge=1)
    """Most prompts of one render run."""
    content_rules: str = "shipped"
    """File of rules over the words of prompts (docs/rendering.md); `shipped` is the package's own, empty lets every
    prompt through.
    """
    face_detector: str = ""
    """YuNet's ONNX file, which finds faces in photos; empty means the detectors that are shipped."""
    captioner: str = "profile"
    """Writes captions where none came along: `profile` is the shipped one of the drawn world (`tiny`) under `embedded`
    and `blip-base` under `production`; `none` leaves the template.
    """
    safety_checker: bool = True
    """Check pictures with the catalog's safety checker when it is installed."""
    unmet_wishes: Literal["warn", "refuse"] = "warn"
    """What becomes of a request with a wish that cannot be met here (`super_resolution` without the model, a negative
    prompt on FLUX): `warn` goes on without it and says so, `refuse` ends the request (docs/rendering.md).
    """
    open_processes: int = Field(default=0, ge=0, le=64)
    """Pictures and archives of strangers that a process opens at a time, each in a child process of its own
    (docs/production.md); 0 means one per core, four at most.
    """
    open_seconds: float = Field(default=4.0, gt=0)
    """CPU time that opening a small file may take; each megabyte of the file adds a second."""
    open_memory_mb: int = Field(default=360, ge=64)
    """Memory that opening a small file may take; each megabyte of the file adds 24."""
    import_max_mb: int = Field(default=4096, ge=1)
    """Size of a file of weights that is taken in (`tunes import`)."""
    max_batch_pictures: int = Field(default=128, ge=1)
    """Most pictures of one render run, so that whoever comes next never waits for hundreds."""
    render_memory_gb: float = Field(default=0.0, ge=0)
    """Memory of the device that renders, by which runs are sized; 0 takes the last run's."""
    campaign_turn_seconds: float = Field(default=20.0, ge=0)
    """After so long a run of campaigns alone gives way to whoever waits for a single prompt."""
    sessions: Literal["auto", "on", "off"] = "auto"
    """Have device sessions do what needs a device, and not a process per run (docs/architecture.md): `on`, `off`, or
    `auto`, which is on where Dagster's runs are processes of this machine, and off where Ray or Kubernetes places them
    (docs/dagster.md).
    """
    keep_warm_seconds: float | None = Field(default=None, ge=0)
    """How long a session that has nothing to do keeps its bases loaded; then it gives its memory back. Unset: an hour
    on a GPU, which is there to be warm; two minutes where the memory is the machine's.
    """
    render_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of a device's time that pictures get while training waits for it, too."""
    heartbeat_seconds: float = Field(default=5.0, gt=0)
    """How often running work says that it is alive."""
    lost_after_seconds: float = Field(default=60.0, gt=0)
    """Silence after which running work counts as lost."""
    registry_patience_seconds: float = Field(default=600.0, ge=0)
    """How long running work waits for a registry that is away before it gives up."""
    longest_prepare_seconds: float = Field(default=3_600.0, gt=0)
    """The longest that preparing one tune may take (docs/production.md); then the attempt counts as lost, whatever it
    says of itself, and its run is ended.
    """
    longest_train_seconds: float = Field(default=86_400.0, gt=0)
    """The same for training one tune."""
    longest_embed_seconds: float = Field(default=1_800.0, gt=0)
    """The same for a tune that trains nothing (faceid)."""
    longest_finish_seconds: float = Field(default=7_200.0, gt=0)
    """The same for scoring and packaging one tune."""
    longest_render_seconds: float = Field(default=14_400.0, gt=0)
    """The same for one batch."""
    longest_campaign_seconds: float = Field(default=3_600.0, gt=0)
    """The same for planning a date of a campaign, and for reporting on it."""
    longest_housekeeping_seconds: float = Field(default=7_200.0, gt=0)
    """The same for housekeeping."""
    shown_tunes: int = Field(default=20_000, ge=1)
    """Tunes that Dagster's pages show; of more, the oldest that have ended leave them with their runs, and come back
    when they are run again. The pages are quick up to some ten thousands (docs/dagster.md).
    """
    shown_batches: int = Field(default=5_000, ge=1)
    """The same for render batches, at which hardly anybody looks again."""
    shown_days: float = Field(default=0.0, ge=0)
    """What ended longer ago leaves them as well, however few there are; 0 goes by their number alone."""
    ui_url: WebAddress = "http://127.0.0.1:3000"
    """Address of the Dagster UI, which is asked to reload when campaigns change; empty asks nobody."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts of one piece of work before it fails for good."""
    retry_backoff: Backoff = (5.0, 30.0, 120.0)
    """Seconds before attempt 2, 3, …; the last one repeats."""
    store_patience_seconds: float = Field(default=86_400.0, ge=0)
    """How long work is put off in all while the store is full or away; none of its attempts is used up meanwhile."""
    store_reserve_mb: int = Field(default=64, ge=0)
    """Space that must be free in the store's folder before a piece of work begins."""
    report_checkpoints: int = Field(default=3, ge=0, le=20)
    """Checkpoints that a report card scores; 0 scores nothing."""
    report_renders: int = Field(default=12, ge=2, le=200)
    """Pictures per checkpoint that it looks at."""
    report_seconds: float = Field(default=300.0, gt=0)
    """Scoring, and before it the wait for a device, end after this long each."""
    log_format: Literal["off", "json", "text"] = "off"
    """Structured lines of runs on standard error, beside Dagster's own log (docs/gateway.md)."""
    gateway_prices: str = ""
    """Price list that replaces the shipped one (`tunes_dagster/core/prices.yaml`); the same for every road by which
    work comes.
    """
    callback_backoff: Backoff = (5.0, 30.0, 120.0, 600.0, 3600.0, 21_600.0, 86_400.0)
    """Seconds before delivery 2, 3, …; after the last one a callback is given up."""

    @field_validator("home", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        """Take the default for an empty one, which would be the folder in which somebody happens to stand."""
        return value or cls.model_fields["home"].default

    @field_validator("sessions", mode="before")
    @classmethod
    def _a_switch_has_two_sides(cls, value: Any) -> Any:
        """Take what a switch takes, too: true and false, yes and no, 1 and 0."""
        said = str(value).strip().lower()
        return "on" if said in _ON else "off" if said in _OFF else value

    @property
    def uses_sessions(self) -> bool:
        """Whether device sessions do what needs a device."""
        return self.sessions == "on" or (self.sessions == "auto" and sessions_suit().sessions)

    @cached_property
    def resolved_home(self) -> Path:
        """The absolute home folder, created when missing.

        Raises:
            Failure: `INVALID_REQUEST` for a path that the addresses of SQLite databases cannot hold, or where no folder
                can be.
        """
        home = check_database_folder(self.home.expanduser().resolve(), "TUNES_HOME")
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"TUNES_HOME is {str(self.home)!r}, but should be a folder that can be made and written.",
                "Let TUNES_HOME name another folder, or mend its rights.",
                detail_of(error, home),
            ) from None
        return home

    def longest(self, kind: str) -> float:
        """Return the longest time in seconds that a piece of work of a kind may take."""
        return float(getattr(self, f"longest_{kind}_seconds"))

    @property
    def bases_folder(self) -> Path:
        """Where pulled base models lie."""
        return self.resolved_home / "bases"

    @property
    def resolved_registry_url(self) -> str:
        """The registry's SQLAlchemy URL."""
        return self.registry_url or f"sqlite:///{self.resolved_home / 'registry.db'}"

    @property
    def resolved_store_url(self) -> str:
        """The store's folder or URL."""
        return self.store_url or str(self.resolved_home / "store")

    @property
    def resolved_drop_folder(self) -> str:
        """The watched folder or URL."""
        return self.drop_folder or str(self.resolved_home / "inbox")


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the settings of this process, read from the environment once.

    Raises:
        Failure: `INVALID_REQUEST`, naming each variable that is wrong.
    """
    return read_environment(Settings, "docs/configuration.md")
