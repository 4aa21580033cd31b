"""The connection to a cluster: which one, with which packages, and what is said where not."""

import os
import socket
import sys

import pytest
from rich.console import Console

from van_classification_tensorflow.cluster import connect
from van_classification_tensorflow.support.cluster import ClusterOptions


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"cluster": "auto"}, r"`cluster` must be HOST:PORT .* Received: cluster='auto'"),
        ({"cluster": "ray://head:10001"}, "`cluster` must be HOST:PORT"),
        ({"cluster": "head"}, "`cluster` must be HOST:PORT"),
        ({"cluster": "head:0"}, "`cluster` must be HOST:PORT"),
        ({"cluster": "head:70000"}, "`cluster` must be HOST:PORT"),
        ({"cluster": ""}, "`cluster` must be HOST:PORT"),
        ({"cluster": "local", "cluster_workers": "0"}, "`cluster_workers` must be a number"),
        ({"cluster": "local", "cluster_workers": "4:2"}, "`cluster_workers` must be a number"),
        ({"cluster": "local", "cluster_workers": "many"}, "cluster_workers='many'"),
        ({"cluster_workers": "2"}, "`cluster_workers` are of a `cluster`, which is not named"),
    ],
)
def test_wrong_options(given, says):
    with pytest.raises(ValueError, match=says):
        ClusterOptions(**given)


def test_options():
    assert ClusterOptions().workers is None
    assert ClusterOptions(cluster="local", cluster_workers="3").workers == (3, 3)
    assert ClusterOptions(cluster="[::1]:6379", cluster_workers="2:8").workers == (2, 8)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    says = r"A cluster needs ray: pip install 'van-classification-tensorflow\[cluster\]'"
    with pytest.raises(ModuleNotFoundError, match=says):
        connect.import_ray()


@pytest.mark.slow
def test_no_such_address():
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    with socket.socket() as held:  # bound, and listening to nobody
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        says = f"no Ray cluster at {address}: Connection refused. `ray start --head`"
        with (
            pytest.raises(ConnectionError, match=says),
            connect.connected(address, Console(quiet=True)),
        ):
            pass


@pytest.mark.slow
def test_connected(nodes, capsys):
    console = Console(width=200)
    with connect.connected(nodes.address, console) as ray:
        assert connect.cpus(ray) == 4
        with (
            pytest.raises(ValueError, match="Ray is connected in this process already"),
            connect.connected(nodes.address, console),
        ):
            pass
    assert not ray.is_initialized()
    assert f"at {nodes.address}: 3 nodes, 4 CPUs, 0 GPUs" in capsys.readouterr().out


@pytest.mark.slow
def test_other_versions_on_a_node(nodes, monkeypatch):
    here = os.getpid()
    monkeypatch.setattr(
        connect, "versions", lambda: {"numpy": "2.0" if os.getpid() == here else "1.0"}
    )
    says = r"all nodes must have the same numpy\. Received: 1\.0 on .*, 2\.0 here"
    with (
        pytest.raises(ValueError, match=says),
        connect.connected(nodes.address, Console(quiet=True)),
    ):
        pass


def alive(ray):
    return sum(node["Alive"] for node in ray.nodes())


@pytest.mark.slow
def test_a_node_that_has_just_gone_is_passed_over(nodes):
    try:
        with connect.connected(nodes.address, Console(quiet=True)) as ray:
            there, answers = alive(ray), len(connect.on_every_node(ray, connect.versions))
            nodes.kill()
            assert alive(ray) == there  # nobody has noticed
            assert len(connect.on_every_node(ray, connect.versions)) == answers - 1
    finally:
        nodes.add()
