"""`van pull`: a folder of a hub -> one here, verified, that holds a VAN and nothing to run."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..support.console import messages, say
from ..support.result_folder import write_folder
from ..support.text import first_few
from ..weights.checkpoint import check_for_keras, read_weights
from ..weights.hub import fetch_folder
from ..weights.hub_listing import Listing, left_out
from ..weights.hub_name import HubName
from .request import FILES, PullRequest


def run(request: PullRequest) -> None:
    """Fetches what is of use, reads it as weights, and prints where it is.

    Raises:
        ValueError: It holds no VAN, or what Keras or KerasHub would make objects of others of.
        OSError: It cannot be had or written.
    """
    console = messages()
    found = fetch_folder(HubName.of(request.address, "address"), Listing.to_keep, console=console)
    weights = read_weights(found.path)
    check_for_keras(found.path, [one.name for one in found.files])
    if others := left_out(found.listing, found.files):
        say(console, f"{found.name}: left there, as nothing here reads it: {first_few(others)}")
    say(console, f"{found.title}: {weights.architecture}")
    if request.output is None:
        print(found.path)
        return

    def copy(folder: Path) -> None:
        for one in found.files:
            shutil.copyfile(found.path / one.name, folder / one.name)

    write_folder(request.output, FILES, "pull", request.overwrite, copy)
    print(request.output)
