"""The caption table: what is said about each training item, editable by a person, with every version kept.

In the store under `tunes/<tune>/captions/`:

    captions.csv        the table for people; changing it by hand (or in a spreadsheet) is an edit like any other
    captions.json       what was last written, edits of pictures that are not in the set now, the versions
    captions-v<N>.csv   each version

A person's edit wins over the request's `captions`, these over sidecar files, these over the request's
`default_caption`, this over the captioner, this over the template. Of the captioner's words those that tell what
changes are kept (`varying`). Every caption holds the token and the class name.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

from PIL import Image
from pydantic import BaseModel, Field

from tunes_dagster.core import clock
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Phase, Reporter
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.store import Store
from tunes_dagster.intake.companions import asked_for
from tunes_dagster.intake.edits import read_csv
from tunes_dagster.intake.manifest import Manifest
from tunes_dagster.intake.names import PICTURE_STAGES, match
from tunes_dagster.intake.pictures import decode
from tunes_dagster.intake.sidecars import tidy
from tunes_dagster.intake.subject import is_style, template, with_subject
from tunes_dagster.intake.training_set import TrainingItem, TrainingSet
from tunes_dagster.intake.varying import what_varies

CaptionSource = Literal["edit", "request", "sidecar", "default", "captioner", "template"]
COLUMNS = ("name", "caption", "source", "hash")
CAPTIONER_BATCH = 16
_NAMED = 8
"""So many of the things that were left out are told."""


class Captioner(Protocol):
    """A model that describes pictures; its `name`, if it has one, is part of the cache key."""

    def caption(self, images: list[Image.Image]) -> list[str]:
        """Return one sentence per RGB picture."""


class CaptionRow(BaseModel):
    """One caption.

    Attributes:
        name: Name of the training item.
        caption: What it shows, with token and class.
        source: Where it comes from.
        hash: Hash of the training item.
    """

    name: str
    caption: str
    source: CaptionSource
    hash: str

    @property
    def fingerprint(self) -> str:
        """Hash of item and caption; what depends on this row is redone when it changes."""
        return hashlib.sha256(f"{self.hash}\n{self.caption}".encode()).hexdigest()


class CaptionVersion(BaseModel):
    """One version: its number, the SHA-256 of its CSV, when, and why."""

    number: int
    sha256: str
    at: str
    why: str


class CaptionTable(BaseModel):
    """The captions of a tune.

    Attributes:
        tune_id: Whose.
        token: Stands in every caption.
        class_name: Stands in every caption.
        rows: One per training item, in its order.
        parked: Edits of items that are not in the set at present, by item hash; they come back with the item.
        versions: Oldest first.
    """

    tune_id: str
    token: str
    class_name: str
    rows: list[CaptionRow] = Field(default_factory=list)
    parked: dict[str, str] = Field(default_factory=dict)
    versions: list[CaptionVersion] = Field(default_factory=list)

    @property
    def prefix(self) -> str:
        """Where the files lie in the store."""
        return f"tunes/{self.tune_id}/captions/"

    @property
    def key(self) -> str:
        """Where the table for people lies in the store."""
        return f"{self.prefix}captions.csv"

    @property
    def version(self) -> int:
        """Number of the last version that was saved; 0 before the first."""
        return self.versions[-1].number if self.versions else 0

    @property
    def hash(self) -> str:
        """Hash of all items and their captions."""
        return hashlib.sha256("\n".join(row.fingerprint for row in self.rows).encode()).hexdigest()

    def texts(self) -> dict[str, str]:
        """Return item hash → caption."""
        return {row.hash: row.caption for row in self.rows}

    def names(self) -> dict[str, str]:
        """Return item hash → name."""
        return {row.hash: row.name for row in self.rows}

    def find(self, picture: str) -> list[CaptionRow]:
        """Return the rows that a person means by a file name, a hash, or the start (6 or more) of a hash.

        Raises:
            Failure: `INVALID_REQUEST`, naming pictures there are.
        """
        exact = [row for row in self.rows if picture in (row.hash, row.name)]
        if exact:
            return exact
        by_start = [row for row in self.rows if len(picture) >= 6 and row.hash.startswith(picture.lower())]
        means = match([picture], [row.name for row in self.rows], PICTURE_STAGES)
        by_file = [self.rows[index] for index in means.found]
        for found in (by_start, by_file):
            if len(found) == 1:
                return found
        names = ", ".join(row.name for row in self.rows[:8])
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"No picture of {self.tune_id} is called {picture!r}"
            + (", or more than one is." if by_start or means.ambiguous else "."),
            f"There are: {names}{' …' if len(self.rows) > 8 else ''}.",
        )

    def to_csv(self) -> str:
        """Return the table for people."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([getattr(row, column) for column in COLUMNS] for row in self.rows)
        return text.getvalue()

    def save(self, store: Store, why: str) -> CaptionTable:
        """Write the table, as a new version when anything changed, and return it with that version."""
        text = self.to_csv()
        digest = hashlib.sha256(text.encode()).hexdigest()
        saved = self
        if not self.versions or self.versions[-1].sha256 != digest:
            version = CaptionVersion(
                number=self.version + 1, sha256=digest, at=clock.iso(clock.now()) or "", why=why
            )
            saved = self.model_copy(update={"versions": [*self.versions, version]})
            store.write_text(f"{self.prefix}captions-v{version.number}.csv", text)
        store.write_text(f"{self.prefix}captions.json", saved.model_dump_json(indent=1) + "\n")
        store.write_text(self.key, text)
        return saved

    @classmethod
    def load(cls, store: Store, tune_id: str) -> CaptionTable:
        """Read the captions of a tune; what a person changed in `captions.csv` counts as edited.

        A row that was deleted or emptied by hand keeps its last caption.

        Raises:
            FileNotFoundError: When there are none yet.
            Failure: `INVALID_REQUEST` when what was changed by hand cannot be read.
        """
        prefix = f"tunes/{tune_id}/captions/"
        table = store.read_model(f"{prefix}captions.json", cls, "The table of captions")
        try:
            data = store.read_bytes(f"{prefix}captions.csv")
        except FileNotFoundError:
            return table
        return table if data == table.to_csv().encode() else table.edited(read_csv(data, table.names()))

    def edited(self, captions: Mapping[str, str]) -> CaptionTable:
        """Return the table with other captions for some items (by hash); unchanged ones keep their source."""
        rows = []
        for row in self.rows:
            text = tidy(captions.get(row.hash, ""))
            if text and text != row.caption:
                caption = with_subject(text, self.token, self.class_name)
                row = row.model_copy(update={"caption": caption, "source": "edit"})
            rows.append(row)
        return self.model_copy(update={"rows": rows})


def write_captions(
    tune_id: str,
    training_set: TrainingSet,
    manifest: Manifest,
    request: TuneRequest,
    store: Store,
    captioner: Captioner | None,
    report: Reporter,
) -> CaptionTable:
    """Give every training item a caption and save the table.

    Running it again keeps a person's edits and asks the captioner only about pictures it has not seen.

    Args:
        tune_id: Whose.
        training_set: The items.
        manifest: Names files whose edits the request may mean although they were rejected.
        request: Token, class name, and the captions that came with the request.
        store: Holds pictures, takes the table.
        captioner: Asked where no caption came along; None leaves the template.
        report: Is told of progress, and of request captions that match no picture.
    """
    report.phase(Phase.CAPTIONING, "Writing captions.")
    old = _previous(store, tune_id)
    edits = dict(old.parked) if old else {}
    edits |= {row.hash: row.caption for row in old.rows if row.source == "edit"} if old else {}
    asked, unmatched = asked_for(request.captions, training_set.items, manifest)
    for sentence in unmatched:
        report.finding(sentence)
    chosen: dict[str, tuple[CaptionSource, str]] = {}
    for item in training_set.items:
        for source, text in (
            ("edit", edits.get(item.hash)),
            ("request", asked.get(item.hash)),
            ("sidecar", item.caption if item.kind == "full" else None),
            ("default", request.default_caption),
        ):
            if text and tidy(text):
                chosen[item.hash] = (source, tidy(text))  # type: ignore[assignment]
                break
    silent = [item for item in training_set.items if item.hash not in chosen]
    if captioner is not None and silent:
        texts = _described(silent, captioner, store, report)
        texts = _without_subject(texts, silent, request.class_name, report)
        for item, text in zip(silent, texts, strict=True):
            if text:
                chosen[item.hash] = ("captioner", text)
    rows = [_row(item, chosen.get(item.hash), request) for item in training_set.items]
    here = {item.hash for item in training_set.items}
    table = CaptionTable(
        tune_id=tune_id,
        token=request.token,
        class_name=request.class_name,
        rows=rows,
        parked={key: text for key, text in edits.items() if key not in here},
        versions=old.versions if old else [],
    )
    return table.save(store, "written while preparing")


def _previous(store: Store, tune_id: str) -> CaptionTable | None:
    try:
        return CaptionTable.load(store, tune_id)
    except FileNotFoundError:
        return None


def _row(item: TrainingItem, chosen: tuple[CaptionSource, str] | None, request: TuneRequest) -> CaptionRow:
    if chosen is None:
        caption = template(request.token, request.class_name, close_up=item.kind == "face")
        return CaptionRow(name=item.name, caption=caption, source="template", hash=item.hash)
    source, text = chosen
    caption = with_subject(text, request.token, request.class_name)
    return CaptionRow(name=item.name, caption=caption, source=source, hash=item.hash)


def _cached(store: Store, key: str) -> str | None:
    try:
        return store.read_text(key)
    except FileNotFoundError:  # it may go at any time
        return None


def _described(
    items: Sequence[TrainingItem], captioner: Captioner, store: Store, report: Reporter
) -> list[str]:
    """Return what the captioner says about each item, from the cache where it was asked before."""
    name = str(getattr(captioner, "name", type(captioner).__name__)).replace("/", "--")
    keys = [f"cache/captions/{name}/{item.hash}.txt" for item in items]
    texts = [_cached(store, key) for key in keys]
    open_items = [i for i, text in enumerate(texts) if text is None]
    for start in range(0, len(open_items), CAPTIONER_BATCH):
        report.check_cancelled()
        batch = open_items[start : start + CAPTIONER_BATCH]
        said = captioner.caption([_cropped(items[i], store) for i in batch])
        for i, text in zip(batch, said, strict=True):
            texts[i] = tidy(text)
            store.write_text(keys[i], texts[i] or "")
        report.step(min(start + CAPTIONER_BATCH, len(open_items)), len(open_items))
    return [text or "" for text in texts]


def _without_subject(
    texts: Sequence[str], items: Sequence[TrainingItem], class_name: str, report: Reporter
) -> list[str]:
    """Return a captioner's texts without what belongs to the subject itself; those of a style as they are."""
    if is_style(class_name):
        return list(texts)
    kept, left_out = what_varies(texts, class_name, [item.picture for item in items])
    if left_out:
        things = "1 thing was" if len(left_out) == 1 else f"{len(left_out)} things were"
        report.note(f"{things} left out of the captions, which is for the token to learn.")
    return kept


def _cropped(item: TrainingItem, store: Store) -> Image.Image:
    return decode(store.read_bytes(item.key), item.name).crop(item.crop)


def edit_caption(
    tune_id: str,
    picture: str,
    caption: str,
    store: Store,
    *,
    token: str | None = None,
    class_name: str | None = None,
) -> CaptionTable:
    """Change one caption and save the table as a new version; no other row changes.

    Args:
        tune_id: Whose.
        picture: File name, hash, or start of a hash.
        caption: The text; token and class are added when it lacks them.
        store: Holds the table.
        token: Only when it differs from the table's.
        class_name: Only when it differs from the table's.

    Raises:
        Failure: `INVALID_REQUEST` when there is no such picture or the caption is empty.
        FileNotFoundError: When the tune has no captions yet.
    """
    return set_captions(tune_id, {picture: caption}, store, token=token, class_name=class_name)


def set_captions(
    tune_id: str,
    captions: Mapping[str, str],
    store: Store,
    *,
    token: str | None = None,
    class_name: str | None = None,
) -> CaptionTable:
    """Change several captions (by name or hash) as one new version; see `edit_caption`."""
    table = CaptionTable.load(store, tune_id)
    update = {"token": token or table.token, "class_name": class_name or table.class_name}
    table = table.model_copy(update=update)
    texts: dict[str, str] = {}
    for picture, caption in captions.items():
        if not tidy(caption):
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"The caption for {picture!r} is empty.",
                "Say in a few words what the picture shows.",
            )
        texts |= {row.hash: caption for row in table.find(picture)}
    # An edit that says what is already there is still a person's word: it stays when others change.
    rows = [row.model_copy(update={"source": "edit"}) if row.hash in texts else row for row in table.rows]
    return table.model_copy(update={"rows": rows}).edited(texts).save(store, "edited")


def changed_items(old: CaptionTable | None, new: CaptionTable) -> list[str]:
    """Return the hashes of the items whose caption is new or different: what depends on them is redone."""
    before: Iterable[CaptionRow] = old.rows if old else ()
    known = {row.fingerprint for row in before}
    return [row.hash for row in new.rows if row.fingerprint not in known]
