"""Damaged files of every format: each is refused, or read as a whole; nothing else happens.

A failure names the seed; `Mutants(path, member).write(seed, target)` makes that file again.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hostile_reader import Mutants
from tests.parity import GOLDEN
from tests.weights.test_hostile_files import ask
from van_classification_tensorflow.export.convert import convert

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits")

# (file, its member that is damaged with a checksum that fits, whether checksums guard the rest)
FORMATS = {
    "torch": ("micro_official.pth.tar", None, True),
    "torch's pickle": ("micro_official.pth.tar", "data.pkl", False),
    "torch before 1.6": ("micro_official_legacy.pth.tar", None, False),
    "safetensors": ("micro.safetensors", None, False),
    "earlier port": ("micro_seed.h5", None, False),
    "Keras weights": ("micro.weights.h5", None, False),
    "Keras": ("micro.keras", None, True),
    "Keras's HDF5": ("micro.keras", ".h5", False),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the files that are made here."""
    folder = tmp_path_factory.mktemp("keras")
    for name in ("micro.weights.h5", "micro.keras"):
        convert(GOLDEN / "micro_official.pth.tar", folder / name)
    return folder


def _path(made: Path, name: str) -> str:
    return str((made if (made / name).exists() else GOLDEN) / name)


def _fuzz(made: Path, kind: str, first: int, count: int) -> None:
    name, member, checksums = FORMATS[kind]
    path = _path(made, name)
    jobs = min(os.cpu_count() or 1, 4)
    starts = [first + count * i // jobs for i in range(jobs + 1)]

    def part(i: int) -> tuple[list[dict], str]:
        span = {"first": starts[i], "count": starts[i + 1] - starts[i]}
        return ask("fuzz", path=path, member=member, checksums=checksums, **span)

    with ThreadPoolExecutor(jobs) as pool:
        answers = list(pool.map(part, range(jobs)))
    assert not any(died for _, died in answers), answers
    told = [result for results, _ in answers for result in results]
    faults = [result for result in told if "fault" in result]
    assert not faults, faults[:10]
    counts = Counter()
    for result in told:
        counts.update(result["counts"])
    assert counts.total() == count
    # Neither all too much nor too little damage.
    assert min(counts["read"], counts["refused"]) > count / 100, counts


@pytest.mark.parametrize("kind", FORMATS)
def test_mutants(made, kind):
    _fuzz(made, kind, 0, 100)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_more_mutants(made, kind):
    _fuzz(made, kind, 100, 200)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_thousands_of_mutants(made, kind, thorough):
    _fuzz(made, kind, 300, 10_000 if thorough else 3_000)


@pytest.mark.slow
def test_a_model_gets_all_or_nothing(made):
    sources = [(_path(made, name), member) for name, member, _ in FORMATS.values()]
    told, died = ask("load", sources=sources, first=500, count=40)
    assert not died, (told[-1:], died)
    faults = [result for result in told if "fault" in result]
    assert not faults, faults[:10]
    counts = [result["counts"] for result in told if "counts" in result]
    assert len(counts) == len(FORMATS)
    assert all(sum(one.values()) == 40 for one in counts)
    # Where checksums guard everything, none of a few may be read.
    for outcome in ("read", "refused"):
        assert sum(one[outcome] for one in counts) > len(FORMATS), counts


def test_a_mutant_is_its_seed(made, tmp_path):
    for name, member, _ in FORMATS.values():
        mutants = [Mutants(Path(_path(made, name)), member) for _ in range(2)]
        for seed in range(3):
            for i in (0, 1):
                mutants[i].write(seed, tmp_path / str(i))
            found = (tmp_path / "0").read_bytes()
            assert found == (tmp_path / "1").read_bytes()
            assert found != mutants[0].data
