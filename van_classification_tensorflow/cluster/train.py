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
from ..train.folder import check_batch
from ..train.request import TrainRequest
from ..train.snapshots import Snapshots
from .connect import connected
from .news import news_here
from .worker import Work, sharing, train_here

_TRIES = 3  # in a row without a new snapshot
_PAUSE = 2.0  # seconds before another
_MARK = ".cluster-"  # what names of hidden files begin with
_ERRORS = {"ModuleNotFoundError": ModuleNotFoundError, "OSError": OSError}
_KEPT = ("KERAS_", "TF_", "XLA_", "JAX_", "VAN_", "OMP_", "NCCL_")


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
    gpus = request.gpus_per_worker
    if workers:
        _check_workers(job, *workers, gpus)
    with connected(address, console) as ray:
        room = _room(ray, gpus)
        if not workers:
            workers = (room, room)
            _check_workers(job, *workers, gpus)
        elif room < workers[0]:
            say(console, f"There is room for {room:,} of {workers[0]:,} workers: waiting for nodes")
        group = _Group(ray, request, job, workers, console)
        with _marked(job.output, _storage(request, job)) as mark:
            try:
                group.train(mark)
            except KeyboardInterrupt:
                raise interrupted(job.output) from None


def _room(ray: Any, gpus: int) -> int:
    """One worker for each share of GPUs, or for each node: TensorFlow and JAX use all its cores.

    Raises:
        ValueError: No node has so many GPUs.
    """
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0)]
    if not gpus:
        return max(len(nodes), 1)
    there = sum(int(one.get("GPU", 0)) // gpus for one in nodes)
    if not there:
        most = max((int(one.get("GPU", 0)) for one in nodes), default=0)
        raise ValueError(
            f"`gpus_per_worker` must be at most the GPUs of a node, {most} here. "
            f"Received: gpus_per_worker={gpus}"
        )
    return there


def _check_workers(job: Job, least: int, most: int, gpus: int) -> None:
    """Whether so many can share a batch; of a range, that fewer may work than are there."""
    better = sharing(job.recipe, most, gpus)
    if least == most != better:
        raise ValueError(
            f"`batch_size` must give each of the {most} workers the same number of pictures, an "
            f"even one where they are mixed. Received: batch_size={job.recipe.batch_size}, which "
            f"{better} can share"
        )
    check_batch(job.recipe, better * max(gpus, 1))


@contextlib.contextmanager
def _marked(folder: Path, storage: Path) -> Iterator[tuple[str, str]]:
    """A hidden file in the folder of the run, by which workers know that it is the same one.

    Its name is this command's own, and that of what Ray keeps in `storage`; both go at the end, and
    once the run is done so do those of commands that were killed.
    """
    was_there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    text = secrets.token_hex(16)
    name = f"{_MARK}{text[:8]}"
    write_atomically(folder / name, lambda path: path.write_text(text, encoding="utf-8"))
    mine = f"{_MARK}*"  # and those of others, who cannot be at work in a run that is done
    try:
        yield name, text
    except BaseException:
        mine = name
        raise
    finally:
        with contextlib.suppress(OSError):
            for left in folder.glob(mine):
                shutil.rmtree(storage / left.name, ignore_errors=True)
                left.unlink()
        with contextlib.suppress(OSError):
            (folder / ".ray").rmdir()  # unless another command's is in it
        with contextlib.suppress(OSError):
            if not was_there and not (folder / "config.yaml").exists():
                (folder / ".lock").unlink(missing_ok=True)
                folder.rmdir()  # nothing has come of it


def _storage(request: TrainRequest, job: Job) -> Path:
    return request.storage or job.output / ".ray"


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
        self.stop_asked = self.done = self.heard = False
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
                if self.done:
                    return
                if self.stop_asked:
                    raise KeyboardInterrupt
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
        self.heard = False

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
            if self.stop_asked and not self.heard:
                raise KeyboardInterrupt  # there is nobody yet who could stop in good order
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
            gpus=gpus,
            width=self.console.width,
            news=self.news,
        )
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
                name=mark[0],  # which `_marked` removes
                storage_path=os.path.abspath(_storage(self.request, self.job)),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )

    def _listen(self) -> None:
        for kind, what in self.ray.get(self.news.take.remote()):
            self.heard = True
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
        self.bar.update(
            self.task,
            total=figures["total"],
            completed=figures["done"],
            epoch=f"{figures['epoch']}/{figures['epochs']}",
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
    """Variables of this process that decide what a worker runs on, and how; no secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_KEPT) and name != "TF_CONFIG" and "TOKEN" not in name
    }


def _seconds(name: str, default: float) -> float:
    return float(os.environ.get(name, default))


def _short(error: BaseException) -> str:
    """What a person needs of one of Ray's errors: which worker it was, and the last line of it."""
    of_workers = getattr(error, "worker_failures", None) or {None: error}
    rank, cause = min(of_workers.items(), key=lambda item: item[0] or 0)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    said = (lines[-1] if lines else repr(cause))[:200]
    return said if rank is None else f"worker {rank}: {said}"
