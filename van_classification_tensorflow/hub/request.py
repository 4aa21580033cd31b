"""What `van push` and `van pull` are asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..support.extras import is_installed, missing
from ..support.options import option
from ..support.result_folder import check_folder
from ..support.text import printable, shown
from ..weights.address import address_of
from ..weights.hub_listing import Kept
from ..weights.hub_name import HubName

_ADDRESS = "hf://USER/NAME"
FILES = Kept()


@dataclass(frozen=True, kw_only=True)
class PushRequest:
    """The options of `van push`, checked before any work is done.

    Raises:
        ValueError: One is not allowed, or there is no token.
        OSError: The output is in the way, or a file cannot be read.
        ModuleNotFoundError: The extra `hub` is missing.
    """

    address: str = option(f"{_ADDRESS}, or {_ADDRESS}@BRANCH", flag="address")
    weights: str = option("a weight file, or a name of `van weights list`")
    metrics: Path | None = option(
        "results.json of `van evaluate --output`: accuracy for the model card", None
    )
    licence: str | None = option(
        "of the weights, as the hub writes it, such as apache-2.0 (default: what the weights say)",
        None,
    )
    datasets: tuple[str, ...] = option(
        "what they were trained on, as the hub calls it (default: what the weights say)", ()
    )
    private: bool = option("where the folder is new: for its owner only", False)
    message: str = option("of the commit (default: {default})", "van push")
    output: Path | None = option(
        "folder to make instead, to look at: nothing is sent, and no token is needed", None
    )
    overwrite: bool = option("replace an earlier output", False)

    def __post_init__(self) -> None:
        name = self.name
        if name.is_commit:
            raise ValueError(
                "`address` must be without a commit, or name a branch: what a commit holds never "
                f"changes. Received: address={shown(self.address)}"
            )
        kind = address_of(self.weights).kind
        if kind == "exported":
            raise ValueError(
                f"`weights`: {printable(self.weights)} is an exported file; give the weights that "
                "it was made of"
            )
        if self.licence is not None and not re.fullmatch(
            r"[a-z0-9][a-z0-9.+-]{0,60}", self.licence
        ):
            raise ValueError(
                "`licence` must be as the hub writes it: apache-2.0, mit, cc-by-4.0, other. "
                f"Received: licence={shown(self.licence)}"
            )
        for one in self.datasets:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,95}", one):
                raise ValueError(
                    "`datasets` must be names of the hub, USER/NAME or NAME. Received: "
                    f"{shown(one)}"
                )
        if not self.message.strip() or len(self.message) > 200 or not self.message.isprintable():
            raise ValueError(
                "`message` must be one line of 1 to 200 characters. Received: "
                f"message={shown(self.message)}"
            )
        for package in ("huggingface_hub", "yaml"):
            if not is_installed(package):
                raise missing("`van push`", package, "hub")
        check_folder(self.output, FILES, "push", self.overwrite)
        if self.metrics is not None:
            from .measured import read_measured

            read_measured(self.metrics)
        if self.output is None:
            self._check_access()

    @property
    def name(self) -> HubName:
        """The folder of the hub."""
        return HubName.of(self.address, "address")

    def _check_access(self) -> None:
        from ..weights.hub import is_offline
        from ..weights.hub_name import endpoint, token

        if is_offline():
            raise ValueError(
                "VAN_OFFLINE or HF_HUB_OFFLINE is set: unset it, or make the folder only: `output`"
            )
        if not token():
            raise ValueError(
                f"there is no token for {endpoint()}: set HF_TOKEN to one that may write, from the "
                "settings of your account (over https only); or make the folder only: `output`"
            )


@dataclass(frozen=True, kw_only=True)
class PullRequest:
    """The options of `van pull`, checked before any work is done.

    Raises:
        ValueError: The address is none.
        OSError: The output is in the way, or cannot be written.
    """

    address: str = option(
        f"{_ADDRESS}, or {_ADDRESS}@REVISION: a branch, a tag or a commit", flag="address"
    )
    output: Path | None = option("folder to make (default: it stays in the cache)", None)
    overwrite: bool = option("replace an earlier output", False)

    def __post_init__(self) -> None:
        HubName.of(self.address, "address")
        check_folder(self.output, FILES, "pull", self.overwrite)
