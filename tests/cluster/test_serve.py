"""`van serve --cluster`: the answers of `van serve`, redeployed, scaled and with a replica killed.

The tests go on from one another, in their order: a cluster has one Ray Serve.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import yaml

from tests.serve.conftest import Client, picture
from tests.serve.test_documents import manifests
from tests.train.one_worker import free_ports
from van_classification_tensorflow.serve.command import application
from van_classification_tensorflow.serve.request import ServeRequest

pytestmark = pytest.mark.slow
PNG = {"Content_Type": "image/png"}
TOKEN = {"Authorization": "Bearer t"}
# As the command, but quick to scale.
QUICK = """
import sys
from van_classification_tensorflow.cli import main
from van_classification_tensorflow.cluster import replica

replica.SCALING |= {
    "target_ongoing_requests": 1,
    "metrics_interval_s": 0.5,
    "look_back_period_s": 2.0,
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 2.0,
}
main(sys.argv[1:])
"""

# As KubeRay does with a RayService: deploys a configuration, and goes.
DECLARED = """
import json, sys
import ray
from van_classification_tensorflow.cluster.connect import stay_on_loopback

stay_on_loopback(ray)
ray.init(sys.argv[1], log_to_driver=False)
from ray import serve
from ray.serve.schema import ServeDeploySchema

config = ServeDeploySchema.model_validate(json.loads(sys.argv[2]))
http = config.http_options
serve.start(proxy_location="HeadOnly", http_options={"host": http.host, "port": http.port})
serve.context._get_global_client().deploy_apps(config)
"""
ENDED = """
import sys
import ray
from van_classification_tensorflow.cluster.connect import stay_on_loopback

stay_on_loopback(ray)
ray.init(sys.argv[1], log_to_driver=False)
from ray import serve

serve.shutdown()
"""


class Command:
    """`van serve --cluster` in a process of its own."""

    def __init__(self, nodes, port, *options, program=("-m", "van_classification_tensorflow")):
        where = ("--cluster", nodes.address, "--port", str(port), "--engine", "numpy")
        self.process = subprocess.Popen(
            [sys.executable, *program, "serve", *where, *options],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"VAN_TOKEN": "t"},
        )
        self.said = []
        self.reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr))
        self.reader.start()

    def hears(self, pattern, seconds=90):
        end = time.monotonic() + seconds
        while not any(re.search(pattern, line) for line in list(self.said)):
            assert time.monotonic() < end, self.said
            assert self.process.poll() is None, self.said
            time.sleep(0.05)

    def settles(self, pattern, seconds=60):
        """Waits until the last line about replicas is so."""
        end = time.monotonic() + seconds
        while True:
            found = [line for line in list(self.said) if "replicas:" in line]
            if found and re.search(pattern, found[-1]):
                return
            assert time.monotonic() < end, self.said
            time.sleep(0.05)

    def ends(self, seconds=60):
        code = self.process.wait(seconds)
        self.reader.join(10)
        self.process.stderr.close()
        return code


class Load:
    """Clients that ask one request after the other while this is open.

    Attributes:
        answers: (status, body) of all.
        broken: Requests without a whole answer.
    """

    def __init__(self, port, clients=4, path="/predict"):
        self.port, self.path = port, path
        self.answers, self.broken = [], []
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self):
        body = picture()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.stop.is_set():
            try:
                connection.request("POST", self.path, body, {"Content-Type": "image/png"} | TOKEN)
                answer = connection.getresponse()
                self.answers.append((answer.status, answer.read()))
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(repr(error))
                connection.close()

    def of(self, status):
        return [body for found, body in self.answers if found == status]

    def __enter__(self):
        for one in self.threads:
            one.start()
        return self

    def __exit__(self, *error):
        self.stop.set()
        for one in self.threads:
            one.join(90)


def ask(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, TOKEN | named)
    answer = connection.getresponse()
    found = answer.status, answer.read(), answer.headers
    connection.close()
    return found


def replicas(nodes):
    """Processes of this cluster's replicas, and of no other's: children of its raylets."""
    found = []
    for node in nodes.nodes:
        raylet = node.all_processes["raylet"][0].process.pid
        told = subprocess.run(
            ["pgrep", "-P", str(raylet), "-f", "ServeReplica"], capture_output=True, text=True
        )
        found += map(int, told.stdout.split())
    return found


class Running:
    """The command that serves now, and those before it."""

    def __init__(self, nodes):
        pytest.importorskip("ray.serve", reason="the extra cluster-serve is not installed")
        self.nodes, self.port = nodes, int(free_ports(1)[0])
        self.commands = []

    def start(self, *options, **more):
        self.commands.append(Command(self.nodes, self.port, *options, **more))
        return self.commands[-1]


@pytest.fixture(scope="module")
def running(nodes):
    one = Running(nodes)
    one.start("--weights", "one=digits", "--cluster-workers", "2", "--max-bytes", "50000")
    one.commands[0].hears("Serving at")
    yield one
    for command in one.commands:
        if command.process.poll() is None:
            command.process.kill()
            command.ends()


def known(body):
    """(what an answer says, its numbers): these differ by a rounding where pictures go together."""
    if body[:1] not in (b"{", b"["):
        return body, []
    numbers = []
    return json.loads(body, parse_float=lambda text: numbers.append(float(text))), numbers


def form(*pictures):
    parts = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="a"; filename="%d.png"\r\n\r\n%b\r\n' % pair
        for pair in enumerate(pictures)
    )
    return parts + b"--b--\r\n"


def test_answers_are_those_of_van_serve(running):
    plain = Client(
        application(
            ServeRequest(weights=("one=digits",), engine="numpy", token="t", max_bytes=50_000)
        )
    )
    multipart = {"Content_Type": "multipart/form-data; boundary=b"}
    tensor = {"name": "images", "shape": [1, 28, 28, 1], "datatype": "FP32", "data": [0.5] * 784}
    for status, method, path, body, headers in (
        (200, "POST", "/predict?top=3", picture(), PNG),
        (200, "POST", "/predict", form(picture(1), b"none", picture(2, kind="JPEG")), multipart),
        (200, "POST", "/predict?explain=grad-cam", picture(3), PNG),
        (200, "GET", "/labels", None, {}),
        (200, "GET", "/v2/models/one", None, {}),
        (200, "GET", "/v2/health/ready", None, {}),
        (200, "GET", "/", None, {}),
        (None, "POST", "/v2/models/one/infer", json.dumps({"inputs": [tensor]}).encode(), {}),
        (422, "POST", "/predict", b"no picture", PNG),
        (415, "POST", "/predict", picture(), {"Content_Type": "text/plain"}),
        (413, "POST", "/predict", bytes(60_000), PNG),
        (400, "POST", "/predict?top=many", picture(), PNG),
        (404, "GET", "/nowhere", None, {}),
        (405, "GET", "/predict", None, {}),
        (401, "GET", "/labels", None, {"Authorization": "Bearer wrong"}),
    ):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        wanted = plain(method, path, content=body, headers=TOKEN | named)
        found = ask(running.port, method, path, body, **headers)
        assert found[0] == wanted.status_code, path
        (said, numbers), (wanted_said, wanted_numbers) = known(found[1]), known(wanted.content)
        assert said == wanted_said, path
        assert numbers == pytest.approx(wanted_numbers, abs=1e-5), path
        assert status in (None, found[0]), (path, found[:2])
        for name in ("content-type", "cache-control", "content-security-policy"):
            assert found[2].get(name) == wanted.headers.get(name), (path, name)


def test_a_killed_replica_loses_its_own_requests_at_most(running, nodes):
    before = replicas(nodes)
    assert len(before) == 2
    with Load(running.port) as load:
        time.sleep(2)
        os.kill(before[0], signal.SIGKILL)
        end = time.monotonic() + 60
        while len(replicas(nodes)) < 2 or before[0] in replicas(nodes):
            assert time.monotonic() < end
            time.sleep(0.2)
        time.sleep(2)
    statuses = [status for status, _ in load.answers]
    assert not load.broken
    assert set(statuses) <= {200, 500}
    # A client has one request at a time, and half of the four were elsewhere.
    assert statuses.count(500) <= 4
    assert statuses.count(200) > 20
    assert statuses[-20:] == [200] * 20


def test_wrong_orders_leave_what_serves(running, nodes, tmp_path):
    missing = Command(nodes, running.port, "--weights", str(tmp_path / "none.safetensors"))
    elsewhere = Command(nodes, running.port + 1, "--weights", "digits")
    assert (missing.ends(), elsewhere.ends()) == (1, 1)
    said = missing.said[-1]
    assert said.startswith(f"van: error: node {socket.gethostname()} cannot serve it: ")
    assert "none.safetensors" in said
    assert f"listens on 127.0.0.1, port {running.port}" in elsewhere.said[-1]
    assert running.commands[0].process.poll() is None
    assert ask(running.port, "POST", "/predict", picture(), **PNG)[0] == 200


def test_a_redeploy_loses_nothing(running):
    with Load(running.port) as load:
        time.sleep(1)
        second = running.start(
            "--weights", "two=digits", "--cluster-workers", "1:3", program=("-c", QUICK)
        )
        second.hears("Serving at")
        time.sleep(1)
    assert not load.broken
    assert {status for status, _ in load.answers} == {200}
    models = [json.loads(body)["model"] for body in load.of(200)]
    assert set(models) == {"one", "two"}
    assert models[-1] == "two"
    first = running.commands[0]
    assert first.ends() == 0
    assert "Another `van serve` has taken over" in first.said[-1]


def test_scaling_loses_nothing(running):
    second = running.commands[1]
    second.settles("replicas: 1 running$")
    with Load(running.port, clients=1) as trickle:
        with Load(running.port, clients=5) as load:
            second.settles("replicas: [23] running$")
        second.settles("replicas: 1 running$")
    for one in (load, trickle):
        assert not one.broken
        assert len(one.answers) > 20
        assert {status for status, _ in one.answers} == {200}


def test_sighup_deploys_again(running, nodes, thorough):
    if not thorough:
        pytest.skip("--thorough: as `test_a_redeploy_loses_nothing`, by a signal")
    before, second = replicas(nodes), running.commands[1]
    said = len(second.said)
    with Load(running.port, clients=2) as load:
        second.process.send_signal(signal.SIGHUP)
        second.hears("Deploying again")
        end = time.monotonic() + 60
        while not any("Serving at" in one for one in second.said[said:]):
            assert time.monotonic() < end, second.said
            time.sleep(0.1)
    assert not load.broken
    assert {status for status, _ in load.answers} == {200}
    while set(before) & set(replicas(nodes)):  # a process that is told to end may take a second
        assert time.monotonic() < end
        time.sleep(0.1)


def test_ctrl_c_ends_it(running, nodes):
    second = running.commands[1]
    second.process.send_signal(signal.SIGINT)
    assert second.ends() == 0
    assert not replicas(nodes)
    with socket.socket() as tried:
        assert tried.connect_ex(("127.0.0.1", running.port)) != 0


def test_a_port_in_use_is_said(running, nodes):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        command = Command(nodes, port, "--weights", "digits")
        assert command.ends() == 1
    says = f"van: error: cannot listen on 127.0.0.1, port {port}: Address already in use"
    assert command.said[-1].strip() == says


def test_a_configuration_is_deployed(running, nodes):
    (manifest,) = (one for one in manifests() if one["kind"] == "RayService")
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    (app,) = config["applications"]
    app["args"] = {"weights": ["of=digits"], "engine": "numpy", "token": "t"}
    config["http_options"] |= {"host": "127.0.0.1", "port": running.port}
    program = [sys.executable, "-c", DECLARED, nodes.address, json.dumps(config)]
    subprocess.run(program, check=True, timeout=60, capture_output=True)
    end, status = time.monotonic() + 60, 0
    while status != 200:
        assert time.monotonic() < end
        time.sleep(0.5)
        status, body, _ = ask(running.port, "POST", "/predict", picture(), **PNG)
    assert json.loads(body)["model"] == "of"
    # Not of this machine alone, as far as it knows: so any name is answered, with the token.
    assert ask(running.port, "GET", "/labels", Host="van-serve-svc")[0] == 200
    assert ask(running.port, "GET", "/labels", Authorization="Bearer wrong")[0] == 401
    while len(replicas(nodes)) < 2:  # the least that the configuration asks for
        assert time.monotonic() < end
        time.sleep(0.2)
    subprocess.run(
        [sys.executable, "-c", ENDED, nodes.address], check=True, timeout=60, capture_output=True
    )
