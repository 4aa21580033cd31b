"""The command in a process of its own: signals, and what they do to requests."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from van_classification_tensorflow.support.files import asset

from .conftest import picture

HEADERS = {"Content-Type": "image/png"}


class Process:
    """`van serve` at a free port."""

    def __init__(self, *options, **environment):
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "van_classification_tensorflow",
                "serve",
                "--port",
                "0",
                *options,
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.said = []
        self.listening = threading.Event()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        assert self.listening.wait(60), self.said
        found = re.search(r"http://127.0.0.1:(\d+)", "".join(self.said))
        assert found, self.said
        self.port = int(found[1])

    def _read(self):
        for line in self.process.stderr:
            self.said.append(line)
            if "Serving at" in line:
                self.listening.set()
        self.listening.set()

    def hears(self, word, seconds=30):
        end = time.monotonic() + seconds
        while not any(word in line for line in self.said):
            assert time.monotonic() < end, self.said
            time.sleep(0.02)

    def signal(self, number):
        self.process.send_signal(number)

    def ends(self, seconds=30):
        code = self.process.wait(seconds)
        self.reader.join(10)
        self.process.stderr.close()
        return code

    def get(self, path, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body


@contextmanager
def served(*options, **environment):
    one = Process(*options, **environment)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
            one.ends()


class Load(threading.Thread):
    """A client that asks again and again on connections that it keeps, until nobody listens.

    Attributes:
        answers: (status, body) of each request that was answered.
        broken: Requests that were begun and got no whole answer.
    """

    def __init__(self, port):
        super().__init__()
        self.port, self.answers, self.broken = port, [], []
        self.stop = threading.Event()
        self.start()

    def run(self):
        body, connection = picture(), None
        while not self.stop.is_set():
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                try:
                    connection.connect()
                except OSError:
                    return  # nobody listens any more: no request was begun
            try:
                connection.request("POST", "/predict", body, HEADERS)
                answer = connection.getresponse()
                self.answers.append((answer.status, answer.read()))
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(repr(error))
                connection.close()
                connection = None
                continue
            if answer.will_close:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()


def test_sigterm_under_load_breaks_nothing():
    with served("--weights", "digits", "--drain", "0.5") as server:
        clients = [Load(server.port) for _ in range(6)]
        idle = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        idle.request("GET", "/v2/health/ready")
        assert idle.getresponse().read()
        time.sleep(0.5)
        assert server.get("/v2/health/ready")[0] == 200
        server.signal(signal.SIGTERM)
        server.hears("Ending")
        status, body = server.get("/v2/health/ready")
        assert (status, b"about to end" in body) == (503, True)
        assert server.get("/v2/health/live")[0] == 200
        assert server.ends() == 0
        for one in clients:
            one.join(30)
        idle.close()
    assert [one.broken for one in clients] == [[]] * 6
    assert all(status == 200 for one in clients for status, _ in one.answers)
    assert all(len(one.answers) > 5 for one in clients)


def starting():
    """A server that handles signals and does not serve yet."""
    command = ["-m", "van_classification_tensorflow", "serve", "--port", "0", "--weights", "digits"]
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    status = Path(f"/proc/{process.pid}/status")
    caught = 0
    while not caught >> (signal.SIGHUP - 1) & 1:  # the last that is set
        caught = int(re.search(r"SigCgt:\s+(\w+)", status.read_text())[1], 16)
        assert process.poll() is None
    return process


def test_told_to_end_before_it_serves():
    """As the first process of a container, which would not hear it."""
    process = starting()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert "Serving at" not in process.stderr.read()
    process.stderr.close()


def test_told_to_reload_before_it_serves():
    process = starting()
    process.send_signal(signal.SIGHUP)
    said = iter(process.stderr.readline, "")
    assert any("digits: the same file" in line for line in said)
    process.terminate()
    assert process.wait(30) == 0
    process.stderr.close()


def test_few_open_files_are_few_connections():
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (130, 130))\n"
            "from van_classification_tensorflow.cli import main\n"
            "main(['serve', '--weights', 'digits', '--port', '0'])",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    said = ""
    while "Serving at" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    assert "Takes 30 connections: this process may open 130 files" in said
    address = "127.0.0.1", int(re.search(r"127.0.0.1:(\d+)", said)[1])
    made = []
    for _ in range(60):  # each idle one makes room for the next
        one = http.client.HTTPConnection(*address, timeout=20)
        one.request("GET", "/v2/health/live")
        assert one.getresponse().read() == b'{"live":true}'
        made.append(one)
        time.sleep(0.02)
    process.terminate()
    assert process.wait(30) == 0
    process.stderr.close()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


def test_a_second_signal_ends_at_once():
    with served("--weights", "digits", "--drain", "60") as server:
        server.signal(signal.SIGINT)
        server.hears("Ending")
        time.sleep(0.3)
        server.signal(signal.SIGTERM)
        assert server.ends(10) == 1


def test_reload_by_signal_and_by_request(tmp_path):
    path = tmp_path / "mine.safetensors"
    digits = asset("digits.safetensors").read_bytes()
    path.write_bytes(digits)
    with served(f"--weights=a={path}", VAN_TOKEN="secret") as server:
        assert server.get("/labels")[0] == 401
        path.write_bytes(digits[: len(digits) // 2])
        server.signal(signal.SIGHUP)
        server.hears("a: not reloaded, the old model serves on: ")
        path.write_bytes(digits)
        server.signal(signal.SIGHUP)
        server.hears("a: taken over")
        assert server.get("/labels", Authorization="Bearer secret")[0] == 200


def test_a_port_that_is_taken_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "van_classification_tensorflow", "serve", "--port", port]
        done = subprocess.run(
            [*command, "--weights", "digits"], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 1
    assert re.search(rf"van: error: cannot listen on 127.0.0.1, port {port}: ", done.stderr)
