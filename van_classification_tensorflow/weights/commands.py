"""`van weights list`, `download`, `verify` and `path`: what each is asked with, and does."""

from __future__ import annotations

from dataclasses import dataclass

from ..support.interrupt import Interrupted
from ..support.options import option

_NAME = "as in `van weights list`; van_b0 means van_b0.in1k"


@dataclass(frozen=True)
class ListRequest:
    """The options of `van weights list`: none."""


@dataclass(frozen=True, kw_only=True)
class DownloadRequest:
    """The options of `van weights download`."""

    names: tuple[str, ...] = option(_NAME, flag="name")
    force: bool = option("download again what is cached, damaged or not", False)


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """The options of `van weights verify`; no names: all that are cached."""

    names: tuple[str, ...] = option(
        f"{_NAME}; by default all that are cached", (), flag="name", nargs="*"
    )


@dataclass(frozen=True, kw_only=True)
class PathRequest:
    """The options of `van weights path`."""

    name: str = option(_NAME, flag="name")


def run_list(request: ListRequest) -> None:
    """Prints the catalogue."""
    from rich.table import Table

    from ..support.console import results, say
    from .cache import cache_dir, cached_path
    from .catalogue import CLASSIFICATION, SEGMENTATION, of_task

    table = Table("Name", title="Published weights", min_width=64)
    table.columns[0].no_wrap = True
    for column in ("Classes", "MB", "Top-1", "Top-5", "SHA-256", "Here"):
        table.add_column(column, justify="right", no_wrap=True)
    for record in of_task(CLASSIFICATION):
        size = record.expected_bytes
        here = "cached" if cached_path(record) else ""
        table.add_row(
            record.name,
            f"{record.num_classes:,}" if record.num_classes else "no head",
            f"{size / 1e6:.0f}" if size else "1",
            f"{record.top1:.2f}" if record.top1 else "",
            f"{record.top5:.2f}" if record.top5 else "",
            record.sources[0].sha256[:8] if record.sources else "",
            here if record.sources else "bundled",
        )
    segmenters = Table("Name", title="Published segmenters, ADE20K", min_width=64)
    segmenters.columns[0].no_wrap = True
    for column in ("Decoder", "Classes", "MB", "mIoU", "Here"):
        segmenters.add_column(column, justify="right", no_wrap=True)
    for record in of_task(SEGMENTATION):
        segmenters.add_row(
            record.name,
            record.decoder.kind if record.decoder else "",
            f"{record.num_classes:,}",
            f"{(record.expected_bytes or 0) / 1e6:.0f}",
            f"{record.miou:.1f}" if record.miou else "",
            "cached" if cached_path(record) else "",
        )
    console = results()
    console.print(table)
    console.print(segmenters)
    console.print(
        "in1k: ImageNet-1k. in22k: ImageNet-22k; preprocessing and order of the classes "
        "unverified. backbone: of a segmentation model, without a head; names of the tensors "
        "unverified.\nMB: the weights in float32. Top-1, top-5: percent on ImageNet-1k at "
        "224, as published, not measured here. mIoU: percent at several scales, as published; no "
        "SHA-256 is.\nSHA-256: the published first digits.\nLicence: "
        "Apache-2.0; the authors add: for commercial use, please contact the authors. "
        "digits: MIT.",
        highlight=False,
    )
    say(console, f"Cache: {cache_dir()}")


def run_download(request: DownloadRequest) -> None:
    """Downloads what is not cached, and prints where everything is."""
    from .catalogue import find
    from .pretrained import local_file

    try:
        for record in [find(name, argument="names", task=None) for name in request.names]:
            print(local_file(record, force=request.force))
    except KeyboardInterrupt:
        raise (KeyboardInterrupt if request.force else Interrupted)() from None


def run_verify(request: VerifyRequest) -> int:
    """Prints the state of each file; 1 if one is damaged or missing."""
    from .cache import cache_dir, cached_path, verify
    from .catalogue import CATALOGUE, find

    cached = (r for r in CATALOGUE.values() if r.sources and cached_path(r))
    records = [find(name, argument="names", task=None) for name in request.names] or list(cached)
    if not records:
        print(f"nothing is cached in {cache_dir()}")
    states = {record.name: verify(record) for record in records}
    for name, status in states.items():
        where = f"  {status.path}" if status.path else ""
        print(f"{status.state:10}  {name}{where}  {status.detail}")
    return int(any(status.state in ("damaged", "missing") for status in states.values()))


def run_path(request: PathRequest) -> None:
    """Prints where the file is.

    Raises:
        ValueError: It is not here, or there are no such weights.
    """
    from .cache import cached_path
    from .catalogue import find

    record = find(request.name, argument="name", task=None)
    path = cached_path(record)
    if path is None:
        raise ValueError(
            f"{record.name} is not here; to get it: van weights download {request.name}"
        )
    print(path)
