"""`van train --cluster`: the workers of Ray Train, and what is done when one of them is lost.

Whatever takes a worker or a node away, the run goes on from its newest snapshot with a new group,
bit for bit as if nothing had been: so nothing of Ray's own checkpoints is needed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from ..support.console import messages, progress_bar, results, say
from ..support.files import write_atomically
from ..train.command import Job, interrupted, job_of
from ..train.request import TrainRequest
from ..train.snapshots import Snapshots
from .connect import connected
from .news import news_here
from .worker import Work, sharing, train_here

_TRIES = 3  # in a row without a new snapshot
_PAUSE = 2.0  # seconds before another
_ERRORS = {"ModuleNotFoundError": ModuleNotFoundError, "OSError": OSError}
_KEPT = ("KERAS_", "TF_", "XLA_", "JAX_", "VAN_", "OMP_", "NCCL_", "HF_", "HTTP", "http")


def run(request: TrainRequest) -> None:
    """Trains on a cluster, or prints the recipe that is meant.

    Raises:
        ValueError: As `train.train.train`, on this machine or on a worker.
        OSError: As `train.train.train`; the cluster cannot be had, or fails again and again.
        ModuleNotFoundError: The extra `train` or `cluster` is missing.
        Interrupted: Ctrl-C or SIGTERM; says by what the run goes on.
    """
    job = job_of(request)
    if job is None:
        return
    console, address, workers = messages(), request.where.cluster, request.where.workers
    assert address is not None  # noqa: S101 - the command line has seen to it
    if workers:
        _check_workers(job, *workers)
    with connected(address, console) as ray:
        if not workers:
            workers = (_devices(ray, request.gpus_per_worker),) * 2
            _check_workers(job, *workers)
        group = _Group(ray, request, job, workers, console)
        with _marked(job.output) as mark:
            try:
                group.train(mark)
            except KeyboardInterrupt:
                raise interrupted(job.output) from None


def _devices(ray: Any, gpus: int) -> int:
    """One worker for each share of GPUs, or for each node: TensorFlow and JAX use all its cores."""
    if gpus:
        return max(int(ray.cluster_resources().get("GPU", 0)) // gpus, 1)
    return max(sum(n["Alive"] and n["Resources"].get("CPU", 0) >= 1 for n in ray.nodes()), 1)


def _check_workers(job: Job, least: int, most: int) -> None:
    """Whether so many can share a batch; of a range, that fewer may work than are there."""
    if least == most and sharing(job.recipe, most) != most:
        better = sharing(job.recipe, most)
        raise ValueError(
            f"`batch_size` must give each of the {most} workers the same number of pictures, an "
            f"even one where they are mixed. Received: batch_size={job.recipe.batch_size}, which "
            f"{better} can share"
        )


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[tuple[str, str]]:
    """A hidden file in the folder of the run, by which workers know that it is the same one."""
    was_there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    name, text = ".cluster", secrets.token_hex(16)
    write_atomically(folder / name, lambda path: path.write_text(text, encoding="utf-8"))
    try:
        yield name, text
    finally:
        shutil.rmtree(folder / ".ray", ignore_errors=True)
        with contextlib.suppress(OSError):
            (folder / name).unlink()
            if not was_there and not (folder / "config.yaml").exists():
                (folder / ".lock").unlink(missing_ok=True)
                folder.rmdir()  # nothing has come of it


class _Group:
    """Groups of workers, one after another until the run is done."""

    def __init__(
        self,
        ray: Any,
        request: TrainRequest,
        job: Job,
        workers: tuple[int, int],
        console: Console,
    ):
        self.ray, self.request, self.job, self.console = ray, request, job, console
        self.workers = workers
        self.news = news_here(ray)
        self.store = Snapshots(job.output / "snapshots")
        self.stop_asked = self.done = False
        self.errors: list[tuple[int, str, str]] = []
        self.bar = progress_bar(
            console,
            TextColumn("[bold]Epoch {task.fields[epoch]}"),
            BarColumn(40),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self.task = self.bar.add_task("", total=None, epoch="", figures="starting workers")

    def train(self, mark: tuple[str, str]) -> None:
        """Starts groups until one has finished.

        Raises:
            ValueError: A worker says that the run cannot go on, or `OSError`, or the like.
            ConnectionError: Several groups in a row have come to nothing.
            KeyboardInterrupt: It was asked to stop.
        """
        failures = 0
        with self._signals(), self.bar:
            while not self.done:
                before = self._newest()
                why = self._one_group(mark)
                if self.errors:
                    raise self._error()
                if self.stop_asked:
                    raise KeyboardInterrupt
                if self.done:
                    return
                newest = self._newest()
                failures = 0 if newest != before else failures + 1
                if failures == _TRIES:
                    raise ConnectionError(
                        f"{_TRIES} groups of workers in a row have come to nothing; the last one: "
                        f"{why}"
                    )
                after = "from the beginning" if newest is None else f"after step {newest:,}"
                say(self.console, f"A worker is lost; going on {after} ({why})", "yellow")
                time.sleep(_PAUSE)

    def _newest(self) -> int | None:
        return max(self.store.steps(), default=None)

    def _one_group(self, mark: tuple[str, str]) -> str:
        """Runs one group to its end; why it ended, if it was lost."""
        trainer, ended = self._trainer(mark), []

        def fit() -> None:
            try:
                trainer.fit()
            except Exception as error:  # Ray's are of many kinds, and all mean a new group
                ended.append(error)

        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            self._listen()
        self._listen()
        return _short(ended[0]) if ended else "it has ended without a word"

    def _trainer(self, mark: tuple[str, str]) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        from .group import GroupConfig

        least, most = self.workers
        gpus = self.request.gpus_per_worker
        resume = self.job.resume or (self.job.output / "config.yaml").is_file()
        work = Work(
            data=self.job.data,
            output=os.path.abspath(self.job.output),
            recipe=self.job.recipe.to_dict(),
            resume=resume,
            force=self.request.force and self.job.resume,
            mark=mark,
            width=self.console.width,
            news=self.news,
        )
        storage = self.request.storage or self.job.output / ".ray"  # which `_marked` removes
        return DataParallelTrainer(
            train_here,
            train_loop_config=work,
            backend_config=GroupConfig(environment=_environment()),
            scaling_config=ScalingConfig(
                num_workers=most if least == most else (least, most),
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus else {})},
                placement_strategy="SPREAD",
                elastic_resize_monitor_interval_s=_seconds("VAN_ELASTIC_SECONDS", 60),
            ),
            run_config=RunConfig(
                name="train",
                storage_path=os.path.abspath(storage),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )

    def _listen(self) -> None:
        for kind, what in self.ray.get(self.news.take.remote()):
            if kind == "message":
                say(self.console, what)
            elif kind == "result":
                say(results(), what)
            elif kind == "figures":
                self._show(what)
            elif kind == "error":
                self.errors.append(what)
            elif kind == "done":
                self.done = True

    def _show(self, figures: dict[str, Any]) -> None:
        epoch, batches = figures["epoch"], figures["batches"]
        self.bar.update(
            self.task,
            total=figures["epochs"] * batches,
            completed=(epoch - 1) * batches + figures["batch"],
            epoch=f"{epoch}/{figures['epochs']}",
            figures=f"loss {figures['loss']:.4f}",
        )

    def _error(self) -> Exception:
        """The error of the worker that met it, not of those that heard of it."""
        first = min(self.errors, key=lambda one: (one[2].startswith("worker "), one[0]))
        return _ERRORS.get(first[1], ValueError)(first[2])

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def asked(number: int, frame: Any) -> None:
            if self.stop_asked:
                raise KeyboardInterrupt
            self.stop_asked = True
            self.news.ask_to_stop.remote()
            say(self.console, "Stopping after this step; once more: at once.")

        both = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, asked) for number in both}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _environment() -> dict[str, str]:
    """Variables of this process that decide what a worker runs on, and how."""
    return {n: v for n, v in os.environ.items() if n.startswith(_KEPT) and n != "TF_CONFIG"}


def _seconds(name: str, default: float) -> float:
    return float(os.environ.get(name, default))


def _short(error: BaseException) -> str:
    """What a person needs of one of Ray's errors: which worker it was, and the last line of it."""
    of_workers = getattr(error, "worker_failures", None) or {None: error}
    rank, cause = min(of_workers.items(), key=lambda item: item[0] or 0)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    said = (lines[-1] if lines else repr(cause))[:200]
    return said if rank is None else f"worker {rank}: {said}"
