"""`van evaluate --cluster`: every figure, to the last bit, that of one process."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.cluster.pictures import write_digits
from van_classification_tensorflow.cluster.evaluate import run as run_on_cluster
from van_classification_tensorflow.evaluate.evaluate import run
from van_classification_tensorflow.evaluate.request import EvaluateRequest
from van_classification_tensorflow.inference.request import ClassifierOptions
from van_classification_tensorflow.support.cluster import ClusterOptions


def asked(folder, output, where=None, **options):
    return EvaluateRequest(
        data=str(folder),
        classifier=ClassifierOptions(weights="digits", engine="numpy", batch_size=8),
        output=output,
        where=where or ClusterOptions(),
        **options,
    )


def figures(output: Path):
    """All that was written, but how long it took."""
    found = json.loads((output / "results.json").read_text())
    assert found.pop("seconds") > 0
    assert found.pop("images_per_second") > 0
    tables = {one.name: one.read_bytes() for one in output.glob("*.csv")}
    # timm's columns have the rate as well.
    del tables["results.csv"]
    pictures = {one.name: one.read_bytes() for one in output.glob("*.png")}
    assert {"per_class.csv", "failed.csv"} <= set(tables)
    assert "mistakes.png" in pictures
    return found, tables, pictures


@pytest.mark.slow
def test_figures_are_those_of_one_process(nodes, tmp_path, capsys, thorough):
    (tmp_path / "data").mkdir()
    folder = write_digits(tmp_path / "data", 700)
    (folder / "7" / "00000.png").write_bytes(b"\x89PNG no")
    console = Console(quiet=True)
    assert run(asked(folder, tmp_path / "alone"), console) == 1
    alone = figures(tmp_path / "alone")

    def check(workers):
        where = ClusterOptions(cluster=nodes.address, cluster_workers=workers)
        output = tmp_path / workers
        assert run_on_cluster(asked(folder, output, where), console) == 1
        assert f"Work shared by {workers} processes" in capsys.readouterr().err
        assert figures(output) == alone

    check("3")
    if not thorough:
        return
    check("2")
    nodes.add()
    nodes.add()
    try:
        check("7")
    finally:
        nodes.kill()
        nodes.kill()


def test_the_original_is_compared_in_one_process_only(tmp_path):
    where = ClusterOptions(cluster="local")
    with pytest.raises(ValueError, match="`against_original` compares within this process"):
        EvaluateRequest(data="digits", where=where, against_original=True)
