"""What a dialect may ask for, on behalf of one account: the canonical requests, and nothing of anybody else's.

Every lookup goes through the account, so that what belongs to another tenant answers like what does not exist.
Whatever is accepted becomes its row, its price and its view for the caller in one transaction.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import IO, NoReturn

from starlette.datastructures import UploadFile

from tunes_dagster.core.ids import new_id
from tunes_dagster.core.wishes import Wishes
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.gateway.accepting import Accepting
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.files import file_url
from tunes_dagster.gateway.problems import invalid, not_found
from tunes_dagster.gateway.service import Caller, Service
from tunes_dagster.gateway.uploads import refuse_empty
from tunes_dagster.intake.payloads import Base64File
from tunes_dagster.registry import ApiObject, Prompt, Tune, Wallet
from tunes_dagster.registry.accepting import NewGroup
from tunes_dagster.rendering.wishes import upscaling_model

# Why something was deleted, for its record.
_ASKED = "asked over HTTP"
# Beginnings of keys of the store that a prompt may name; a caller may not.
_KEYS = ("uploads/", "blobs/", "batches/", "tunes/")


class Desk(Accepting):
    """The account's door to the registry and the store."""

    def __init__(self, service: Service, caller: Caller, base_url: str, request: Body | None = None) -> None:
        self.service = service
        self.caller = caller
        self.account_id = caller.account_id
        self.base_url = base_url
        self.registry = service.registry
        self.request = request
        self.headers: dict[str, str] = {}
        """What the answer carries beside its body, also that of a rehearsal."""
        self.wishes = Wishes(service.settings.unmet_wishes)
        """What a dialect has a word for and nobody here can do; the row does not know of it."""
        self.unclaimed: list[str] = []
        """Keys of pictures that were kept for what is not accepted yet."""

    def drop_unclaimed(self) -> None:
        """Delete pictures of what was not accepted."""
        while self.unclaimed:
            self.service.store.delete(self.unclaimed.pop())

    def is_long(self, text: str) -> bool:
        """Whether a text stands for one that is too long to be kept in memory: a picture or an archive."""
        return self.request is not None and text in self.request.long_texts

    def picture(self, name: str, value: str | None) -> str | None:
        """Return a picture that a caller named in a text field: a URL, base64 or a data URI; a long one by its key.

        Raises:
            HttpProblem: 422 for a key of the store: those lead to files that may be somebody else's.
        """
        if value is not None and self.request is not None and value in self.request.long_texts:
            return self._kept(Base64File(self.request.long_texts[value], name))
        if value and value.startswith(_KEYS):
            raise invalid(name, "is neither an http(s) URL, nor a data URI, nor base64")
        return value or None

    def keep_picture(self, file: UploadFile) -> str:
        """Copy an uploaded picture into the store and return its key, for a prompt to start from."""
        refuse_empty(file, "input_image")
        file.file.seek(0)
        return self._kept(file.file)

    def _kept(self, content: IO[bytes] | Base64File) -> str:
        key = f"uploads/{new_id('up')}.picture"
        self.unclaimed.append(key)
        return self.service.store.write_stream(key, content)

    def new_group(self, dialect: str, callback_url: str) -> NewGroup:
        """Return a group of prompts, which is kept with the work that it is accepted with."""
        return NewGroup(new_id("group"), dialect, callback_url)

    # Looking

    def tune(self, key: str | int, what: str = "Tune") -> tuple[Tune, ApiObject | None]:
        """Return one of the account's tunes.

        Raises:
            HttpProblem: 404.
        """
        found = self.registry.objects.find_tune(self.account_id, key)
        if found is None:
            raise not_found(what)
        return found

    def prompt(self, key: str | int, what: str = "Prompt") -> tuple[Prompt, ApiObject | None]:
        """Return one of the account's prompts.

        Raises:
            HttpProblem: 404.
        """
        found = self.registry.objects.find_prompt(self.account_id, key)
        if found is None:
            raise not_found(what)
        return found

    def wallet(self) -> Wallet:
        """Return what the account may spend."""
        return self.registry.ledger.wallet(self.account_id)

    def price_of(self, subject_id: str) -> int:
        """Return what was held for a tune or prompt when it was accepted, in micro-dollars."""
        held = self.registry.ledger.prices_of([subject_id]).get(subject_id)
        return held.amount if held is not None else 0

    def training_price(self, base: str, kind: str = "lora") -> int:
        """Return the price of a tune in micro-dollars."""
        entry = self.entry(base)
        return self.service.prices.training(entry.base_id, entry.family, kind)

    def picture_price(self, base: str, *, tuned: bool, enlarged: bool = False) -> int:
        """Return the price of one picture in micro-dollars."""
        entry, service = self.entry(base), self.service
        by_model = enlarged and upscaling_model(service.catalog, service.settings.bases_folder) is not None
        return service.prices.picture(entry.base_id, entry.family, tuned=tuned, enlarged=by_model)

    def public_id(self, subject_id: str) -> str:
        """Return the id by which the caller knows a tune or prompt."""
        seen = self.registry.objects.get(subject_id)
        return (seen.public_id if seen else None) or subject_id

    def entry(self, base: str) -> BaseModelEntry:
        """Return the catalog's entry that a word means."""
        return self.service.catalog.resolve(base)

    def url(
        self, key: str, since: datetime | None, hours: float | None = None, suffix: str | None = None
    ) -> str:
        """Return a signed URL of a file, which leads there until so many hours after a moment; see `file_url`."""
        life = timedelta(hours=self.service.options.picture_url_hours if hours is None else hours)
        ends = (since or self.registry.now()) + life
        return file_url(self.service.secret, self.base_url, key, ends, suffix)

    def images(self, prompt: Prompt, hours: float | None = None) -> list[str]:
        """Return the URLs of a prompt's pictures, which lead to JPEGs where the account wants these."""
        suffix = ".jpg" if self.caller.options.get("picture_format") == "jpeg" else None
        return [
            self.url(key, prompt.done_at, hours, suffix if key.endswith(".png") else None)
            for key in prompt.images or []
        ]

    def progress(self, prompt: Prompt) -> float:
        """Return how far a prompt is, in percent."""
        return self.registry.groups.progress_of([prompt])[prompt.id]

    # Ending

    def delete_tune(self, tune: Tune) -> None:
        """Delete a tune with everything that was made of its pictures; prompts that wait for it are cancelled.

        It is gone for its owner at once; the files follow behind the answer, and what a dying server leaves is removed
        by whoever comes next.
        """
        from tunes_dagster.service.erase import drive_subjects

        self.registry.work.delete_tune(tune.id, by_caller=True, rule=_ASKED)
        self.service.later(drive_subjects, self.service.installation, [tune.id])

    def delete_prompt(self, prompt: Prompt) -> None:
        """Cancel a prompt that is open, and take its pictures and words away; see `delete_tune`."""
        from tunes_dagster.service.erase import drive_subjects

        self.registry.work.delete_prompt(prompt.id, by_caller=True, rule=_ASKED)
        self.service.later(drive_subjects, self.service.installation, [prompt.id])


def refuse(name: str, why: str) -> NoReturn:
    """Refuse a field by name."""
    raise invalid(name, why)


def desk_for(service: Service, account_id: str, base_url: str) -> Desk:
    """Return the desk of an account without a request: for callbacks, and for bearers of an upload token."""
    return Desk(service, Caller(account_id, "", 0, service.registry.ledger.options_of(account_id)), base_url)
