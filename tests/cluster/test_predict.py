"""`van predict --cluster`: one record each, that of one process, whatever dies meanwhile."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pyarrow.dataset
import pytest
from rich.console import Console

from tests.cluster.fatal import DiesOfPoison
from tests.cluster.pictures import write_digits
from van_classification_tensorflow.cluster import classify, parquet_folder
from van_classification_tensorflow.cluster.pool import Pool
from van_classification_tensorflow.cluster.predict import run as run_on_cluster
from van_classification_tensorflow.inference.predict import run
from van_classification_tensorflow.inference.request import ClassifierOptions, PredictRequest
from van_classification_tensorflow.support.cluster import ClusterOptions

OPTIONS = {"weights": "digits", "engine": "numpy", "batch_size": 16}


def asked(folder, output, where=None, **options):
    return PredictRequest(
        paths=(str(folder),),
        classifier=ClassifierOptions(**OPTIONS),
        output=output,
        where=where or ClusterOptions(),
        **options,
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """2,000 pictures, one of which cannot be read; and what one process makes of them."""
    folder = write_digits(tmp_path_factory.mktemp("pictures"), 1999)
    (folder / "3" / "broken.png").write_bytes(b"\x89PNG no")
    output = folder.parent / "alone.jsonl"
    assert run(asked(folder, output), console=Console(quiet=True)) == 1
    return folder, output


def lines(path):
    return path.read_bytes().splitlines() if path.exists() else []


def when(path, count, act):
    """A thread that acts when a file has so many lines."""

    def wait():
        end = time.monotonic() + 60
        while len(lines(path)) < count and time.monotonic() < end:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_node_is_killed_and_a_picture_kills(nodes, pictures, tmp_path, monkeypatch):
    folder, alone = pictures
    replaced, replace = [], Pool._replace
    monkeypatch.setattr(Pool, "_replace", lambda pool, actor: replaced.append(replace(pool, actor)))
    poison = folder / "4" / "00000-poison.png"
    poison.write_bytes((folder / "0" / "00000.png").read_bytes())
    output, console = tmp_path / "x.jsonl", Console(file=io.StringIO(), width=200)
    killer = when(output.with_name("x.jsonl.partial"), 300, nodes.kill)
    try:
        where = ClusterOptions(cluster=nodes.address)
        assert run_on_cluster(asked(folder, output, where), None, console, DiesOfPoison) == 2
    finally:
        killer.join()
        deaths = [one.name.split(".")[-2] for one in folder.glob("4/*.died")]
        for one in [poison, *folder.glob("4/*.died")]:
            one.unlink()
        nodes.add()
    found = lines(output)
    mine = [line for line in found if b"poison" in line]
    record = json.loads(mine[0])
    assert record == {
        "path": str(poison),
        "error": f"{poison}: the process that read it died, twice alone",
        "predictions": [],
    }
    # Twice alone, and before that with its block, perhaps once only: then the node was killed.
    assert deaths.count("1") == 2
    assert len(deaths) in (3, 4)
    assert len(replaced) > len(deaths)
    assert [line for line in found if line not in mine] == lines(alone)
    assert "2 of 2,001 failed" in console.file.getvalue()


@pytest.mark.slow
def test_the_driver_is_killed_and_goes_on(nodes, pictures, tmp_path):
    folder, alone = pictures
    output = tmp_path / "x.jsonl"
    command = [sys.executable, "-m", "van_classification_tensorflow", "predict", str(folder)]
    command += ["--weights", "digits", "--engine", "numpy", "--batch-size", "16"]
    command += ["--cluster", nodes.address, "--output", str(output)]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    journal = output.with_name("x.jsonl.partial")
    when(journal, 100, lambda: os.kill(killed.pid, signal.SIGKILL)).join()
    assert killed.wait() == -signal.SIGKILL
    there = len(lines(journal)) - 1
    assert 99 <= there < 2000
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr  # one cannot be read
    assert f"{there // 16 * 16:,} of 2,000 were there; going on" in done.stderr
    assert "Traceback" not in done.stderr
    assert output.read_bytes() == alone.read_bytes()
    assert not journal.exists()


@pytest.mark.slow
def test_a_node_does_not_see_the_pictures(nodes, pictures, tmp_path, monkeypatch):
    folder, _ = pictures
    output = tmp_path / "x.csv"
    where = ClusterOptions(cluster=nodes.address)
    for files, says in (
        ({"/nowhere/x.png": 3}, r"node .* does not see /nowhere/x.png: No such file"),
        ({str(folder / "0" / "00000.png"): 3}, r"node .* has another file as .*, not 3"),
    ):
        monkeypatch.setattr(classify, "some_files", lambda *_, files=files: files)
        with pytest.raises(ValueError, match=says + ".*on storage that all nodes mount"):
            run_on_cluster(asked(folder, output, where), None, Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folder_that_the_processes_write(nodes, pictures, tmp_path, monkeypatch):
    folder, alone = pictures
    poison = folder / "4" / "00000-poison.png"
    poison.write_bytes((folder / "0" / "00000.png").read_bytes())
    output, journal = tmp_path / "x.parquet", tmp_path / "x.parquet.partial"
    where = ClusterOptions(cluster=nodes.address)

    def predict(**options):
        said = Console(file=io.StringIO(), width=200)
        request = asked(folder, output, where, rows_per_file=250, **options)
        return run_on_cluster(request, None, said, DiesOfPoison), said.file.getvalue()

    def killed(*_):
        raise OSError("killed before the last step")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(parquet_folder, "put_in_place", killed)
            with pytest.raises(OSError, match="before the last step"):
                predict()
        assert not output.exists()
        assert len(list(journal.glob("part-*"))) == 8  # of 256 rows, which are whole batches
        for number in (3, 7):
            (journal / f"part-{number:08}.parquet").unlink()
        (journal / ".tmp-0123-part-00000009.parquet").write_bytes(b"of a process that was killed")
        failed, said = predict(resume=True)
        assert failed == 2
        assert "1,536 of 2,001 were there; going on" in said
        assert "256 rows a file, not 250" in said
        assert predict(resume=True)[0] == 2  # finished, and says so
    finally:
        for one in [poison, *folder.glob("4/*.died")]:
            one.unlink()
    assert not journal.exists()
    assert {one.name for one in output.iterdir()} == {f"part-{n:08}.parquet" for n in range(8)}
    rows = pyarrow.dataset.dataset(output).to_table().to_pylist()
    mine = [row for row in rows if "poison" in row["path"]]
    assert [row["error"] for row in mine] == [
        f"{poison}: the process that read it died, twice alone"
    ]
    assert [row for row in rows if row not in mine] == [json.loads(line) for line in lines(alone)]
    with pytest.raises(FileExistsError, match="already there; to replace it: --overwrite"):
        predict()
    (output / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"holds what no .* wrote \(notes.txt\)"):
        predict(overwrite=True)
