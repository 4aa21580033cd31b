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
from ..support.text import one_line, printable
from ..weights.download import DownloadError, StatusError
from ..weights.file_names import INDEX, KERAS_HUB_FILES, PREPROCESSOR_CONFIG, PYTORCH, SAFETENSORS
from ..weights.hub import HubFolder, fetch_folder
from ..weights.hub_name import HubName, endpoint, token
from ..weights.pretrained import Pretrained, open_pretrained
from .card import Facts, datasets_of, licence_stated, model_card, taken_apart
from .folder import README, write_model
from .measured import Measured, read_measured
from .request import FILES, PushRequest

if TYPE_CHECKING:
    from rich.console import Console

# Of an earlier push, or of another model: beside the new weights they would be wrong.
_STALE = (
    *KERAS_HUB_FILES,
    PYTORCH,
    SAFETENSORS + INDEX,
    PYTORCH + INDEX,
    PREPROCESSOR_CONFIG,
)


def run(request: PushRequest) -> None:
    """Makes the folder and sends it; prints what was done.

    Raises:
        ValueError: The weights, what was measured, or the card that is there are refused.
        OSError: A file cannot be read or written, or the hub says no.
    """
    console = messages()
    opened, notes = _opened(request)
    measured = _measured(request, opened)
    if request.output is not None:
        made: list[str] = []

        def write(folder: Path) -> None:
            made.extend(_write(folder, request, opened, measured, None))

        write_folder(request.output, FILES, "push", request.overwrite, write)
        print_report([f"note     {one}" for one in (*notes, *made)])
        print_report([f"written  {request.output}: nothing was sent"])
        return
    with tempfile.TemporaryDirectory(prefix="van-push-") as work:
        folder = Path(work)
        there = _there(request.name, console)
        made = _write(folder, request, opened, measured, _card_there(there))
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
    return replace(opened, weights=weights), notes


def _measured(request: PushRequest, opened: Pretrained) -> Measured | None:
    """What was measured, if it can be of these weights."""
    if request.metrics is None:
        return None
    found, classes = read_measured(request.metrics), opened.weights.architecture.num_classes
    # One output decides between two classes.
    if classes is None or found.classes > max(classes, 2):
        has = "have no head" if classes is None else f"have {classes:,} classes"
        raise ValueError(
            f"`metrics` must be of these weights, which {has}. Received: "
            f"metrics={printable(request.metrics)}, measured among {found.classes:,}"
        )
    return found


def _write(
    folder: Path,
    request: PushRequest,
    opened: Pretrained,
    measured: Measured | None,
    before: str | None,
) -> list[str]:
    """Fills `folder`; what is to be said of it."""
    notes = write_model(folder, opened)
    card, sizes = opened.card, opened.weights.architecture
    facts = Facts(
        name=request.name,
        card=card,
        sizes=sizes,
        preprocessing=card.preprocessing or Preprocessing().with_channels(sizes.in_chans),
        licence=request.licence or "",
        datasets=request.datasets or datasets_of(card),
        measured=measured,
        with_keras_hub=(folder / "task.json").is_file(),
        version=__version__,
    )
    text = model_card(facts, before)
    (folder / README).write_bytes(text.encode())  # line ends as they are
    if not licence_stated(facts, before):
        notes.append("the model card states no licence: --licence")
    return notes


def _there(name: HubName, console: Console) -> HubFolder | None:
    """What the hub has of that name, with its card; None where there is nothing yet.

    Of a branch that is still to be made, what it will begin with: the branch "main".
    """
    try:
        return fetch_folder(name, lambda listing: listing.only(README), console=console)
    except DownloadError as error:
        said = error.__cause__
        if not isinstance(said, StatusError) or said.status not in (401, 404):
            raise
        if said.reason == "EntryNotFound":  # a file that it has itself listed
            raise
        if name.revision is not None:
            return _there(replace(name, revision=None), console)
        if said.reason == "RevisionNotFound":
            raise
        return None  # it answers so of what does not exist; whether one may make it, it says


def _card_there(there: HubFolder | None) -> str | None:
    """The model card that is there.

    Raises:
        ValueError: It cannot be kept as it is.
    """
    if there is None or README not in there.listing.files:
        return None
    try:
        text = (there.path / README).read_bytes().decode()
        taken_apart(text)
    except UnicodeDecodeError:
        raise ValueError(f"{there.name}: its {README} is no UTF-8: mend it first") from None
    except ValueError as error:
        raise ValueError(f"{there.name}: {error}") from error
    return text


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
    before = None if there is None else there.listing.commit
    if there is None:
        taken = "it is there by now, or the token may not read it: push again, or set HF_TOKEN"
        with _said(name, taken):
            # Not private: what is usual for its owner. It must be new: what it held was not read.
            api.create_repo(name.repository, private=request.private or None, exist_ok=False)
    with _said(name):
        if name.revision is not None and (there is None or there.name != name):
            api.create_branch(name.repository, branch=name.revision, revision=before, exist_ok=True)
        done = api.create_commit(
            name.repository,
            operations,
            commit_message=request.message,
            revision=name.revision,
            parent_commit=before,
        )
    if done.oid == before:
        say(console, f"{name}: nothing had changed")
    return str(done.commit_url)


@contextmanager
def _said(
    name: HubName, taken: str = "somebody else has changed it meanwhile: push again"
) -> Iterator[None]:
    """What the client raises, in one line that says what to do; never with the token."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        text, secret = str(error), token()
        if secret:  # before it is shortened, which could leave a part of it
            text = text.replace(secret, "***")
        status = getattr(getattr(error, "response", None), "status_code", None)
        what = {
            401: "the token was not accepted: set HF_TOKEN to one that may write",
            403: f"the token may not write to {name.repository}: set HF_TOKEN to one that may",
            404: "there is no such user, organisation or branch",
            409: taken,
            412: taken,
            413: "the hub finds it too large",
            429: "the hub asks to come back later",
        }.get(status or 0, one_line(Exception(text or type(error).__name__)))
        number = f" ({status})" if status else ""
        raise OSError(f"{name} was not pushed{number}: {what}") from None
