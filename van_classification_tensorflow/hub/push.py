"""`van push`: weights -> a folder of a hub, with a model card, in one commit.

The hub's own client sends the files, as only it speaks all the ways in which the hub takes large
ones. What is there is read by `weights/hub.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..export.convert import in_float32
from ..spec.preprocessing import Preprocessing
from ..support.console import messages, print_report, say
from ..support.result_folder import write_folder
from ..support.text import one_line
from ..weights.download import DownloadError
from ..weights.hub import HubFolder, fetch_folder
from ..weights.hub_listing import Entry, Listing
from ..weights.hub_name import HubName, endpoint, token
from ..weights.pretrained import Pretrained, open_pretrained
from .card import Facts, datasets_of, licence_of, model_card
from .folder import README, write_model
from .measured import read_measured
from .request import FILES, PushRequest

if TYPE_CHECKING:
    from rich.console import Console

# Of an earlier push, or of another model: beside the new weights they would be wrong.
_STALE = (
    "task.json",
    "task.weights.h5",
    "preprocessor.json",
    "image_converter.json",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "preprocessor_config.json",
)


def run(request: PushRequest) -> None:
    """Makes the folder and sends it; prints what was done.

    Raises:
        ValueError: The weights are refused.
        OSError: A file cannot be read or written, or the hub says no.
    """
    console = messages()
    opened, notes = _opened(request)
    if request.output is not None:
        made: list[str] = []

        def write(folder: Path) -> None:
            made.extend(_write(folder, request, opened, None))

        write_folder(request.output, FILES, "push", request.overwrite, write)
        print_report([f"note     {one}" for one in (*notes, *made)])
        print_report([f"written  {request.output}: nothing was sent"])
        return
    with tempfile.TemporaryDirectory(prefix="van-push-") as work:
        folder = Path(work)
        there = _there(request.name, console)
        made = _write(folder, request, opened, there)
        url = _send(request, folder, there, console)
    print_report([f"note     {one}" for one in (*notes, *made)])
    print_report([f"pushed   {url}"])


def _opened(request: PushRequest) -> tuple[Pretrained, list[str]]:
    """The weights in float32, with their card, and what is to be said of them."""
    opened = open_pretrained(request.weights, argument="weights")
    if opened is None:
        raise ValueError(f"`weights` must be a name or a path. Received: {request.weights!r}")
    opened.check()
    weights, notes = in_float32(opened.weights, request.weights)
    opened = replace(opened, weights=weights)
    if not (request.licence or licence_of(opened.card)):
        notes.append("the model card states no licence: --licence")
    return opened, notes


def _write(
    folder: Path, request: PushRequest, opened: Pretrained, there: HubFolder | None
) -> list[str]:
    """Fills `folder`; what is to be said of it."""
    notes = write_model(folder, opened)
    card, sizes = opened.card, opened.weights.architecture
    preprocessing = card.preprocessing or Preprocessing().with_channels(sizes.in_chans)
    facts = Facts(
        name=request.name,
        card=card,
        sizes=sizes,
        preprocessing=preprocessing or Preprocessing(),
        licence=request.licence or licence_of(card),
        datasets=request.datasets or datasets_of(card),
        measured=None if request.metrics is None else read_measured(request.metrics),
        with_keras_hub=(folder / "task.json").is_file(),
        version=__version__,
    )
    before = None
    if there is not None and README in there.listing.files:
        before = (there.path / README).read_bytes().decode("utf-8", "replace")
    text = model_card(facts, before)
    (folder / README).write_bytes(text.encode())  # line ends as they are
    return notes


def _there(name: HubName, console: Console) -> HubFolder | None:
    """What the hub has of that name, with its card; None where there is nothing yet."""
    try:
        return fetch_folder(name, _card_of, console=console)
    except DownloadError as error:
        if getattr(error.__cause__, "status", None) in (401, 404):
            return None  # it answers so of what does not exist; whether one may make it, it says
        raise


def _card_of(listing: Listing) -> list[Entry]:
    return [listing.files[README]] if README in listing.files else []


def _send(request: PushRequest, folder: Path, there: HubFolder | None, console: Console) -> str:
    """One commit with all files; its address."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars

    name = request.name
    if not console.is_terminal:
        disable_progress_bars()
    api = HfApi(
        endpoint=endpoint(),
        token=token(),
        library_name="van-classification-tensorflow",
        library_version=__version__,
    )
    files = sorted(path.name for path in folder.iterdir())
    stale = [] if there is None else [n for n in _STALE if n in there.listing.files]
    operations: list[Any] = [
        CommitOperationAdd(path_in_repo=one, path_or_fileobj=str(folder / one)) for one in files
    ]
    operations += [CommitOperationDelete(path_in_repo=n) for n in stale if n not in files]
    size = sum((folder / one).stat().st_size for one in files)
    say(console, f"{name}: {len(files)} files, {size:,} bytes, to {endpoint()}")
    with _said(name):
        if there is None:
            api.create_repo(name.repository, private=request.private, exist_ok=True)
            if name.revision is not None:
                api.create_branch(name.repository, branch=name.revision, exist_ok=True)
        done = api.create_commit(
            name.repository,
            operations,
            commit_message=request.message,
            revision=name.revision,
            parent_commit=None if there is None else there.listing.commit,
        )
    if there is not None and done.oid == there.listing.commit:
        say(console, f"{name}: nothing had changed")
    return str(done.commit_url)


@contextmanager
def _said(name: HubName) -> Iterator[None]:
    """What the client raises, in one line that says what to do; never with the token."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (KeyboardInterrupt, MemoryError)):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        what = {
            401: "the token was not accepted: set HF_TOKEN to one that may write",
            403: f"the token may not write to {name.repository}: set HF_TOKEN to one that may",
            404: "there is no such user, organisation or branch",
            409: "somebody else has changed it meanwhile: push again",
            412: "somebody else has changed it meanwhile: push again",
            413: "the hub finds it too large",
            429: "the hub asks to come back later",
        }.get(status or 0, one_line(error))
        if secret := token():
            what = what.replace(secret, "***")
        number = f" ({status})" if status else ""
        raise OSError(f"{name} was not pushed{number}: {what}") from None
