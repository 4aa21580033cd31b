"""The cache that a damaged, wrong or half file never gets into."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from rich.console import Console

from tests import fault_server as faults
from tests.fault_server import FaultServer
from van_classification_tensorflow.weights import cache as module
from van_classification_tensorflow.weights.cache import cached_path, fetch, verify
from van_classification_tensorflow.weights.catalogue import CATALOGUE, Source
from van_classification_tensorflow.weights.download import DownloadError, Limits, shown

BODY = random.Random(0).randbytes(300_000)  # noqa: S311
SHA = hashlib.sha256(BODY).hexdigest()
OTHER = random.Random(1).randbytes(300_000)  # noqa: S311
FAST = Limits(
    connect=2,
    read=0.5,
    answer=1,
    window=0.3,
    min_speed=20_000,
    attempts=3,
    backoff=0.01,
    redirects=3,
)
HASTY = replace(FAST, read=0.2, answer=0.3)  # where nothing is answered that is in time
WAITED_FOR = (
    faults.stalled,
    faults.silent,
    faults.dripping_headers,
    faults.dripping_chunk_header,
)


# --- Download and cache ---


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("VAN_OFFLINE", "VAN_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server():
    with FaultServer(BODY) as server:
        yield server


def record(*urls, sha256=SHA):
    """A checkpoint with the smallest size cap, 16 MiB, and the same body at each address."""
    sources = tuple(Source(url, sha256) for url in urls)
    return replace(CATALOGUE["digits"], name="test.in1k", sources=sources)


def one(server, sha256=SHA):
    return record(f"{server.address}/model.bin", sha256=sha256)


@contextmanager
def watched(cache):
    """A thread that looks all the time whether a file under its final name is another one."""
    seen, stop = [], threading.Event()
    final = cache / "test.in1k" / "model.bin"

    def watch():
        while not stop.is_set():
            try:
                if final.read_bytes() != BODY:
                    seen.append("wrong bytes")
                elif SHA not in final.with_name("model.bin.sha256").read_text():
                    seen.append("no pin")
            except FileNotFoundError:
                pass
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not seen


def quiet():
    return Console(file=io.StringIO(), width=400)


def get(weights, cache, **options):
    with watched(cache):
        return fetch(weights, **({"limits": FAST, "console": quiet()} | options))


def refusal(weights, cache, kind=DownloadError, **options):
    """The error's text: one sentence, and nothing unverified is in the cache."""
    with pytest.raises(kind) as error:
        get(weights, cache, **options)
    text = str(error.value)
    assert "\n" not in text
    assert 20 < len(text) < 1000
    return text


def files_in(cache):
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.name != ".lock")


@pytest.mark.parametrize(
    "first",
    [
        [],
        [faults.unavailable] * 2,
        [faults.too_many],
        [faults.truncated],
        [faults.stalled],
        [faults.silent],
        [faults.dripping],
        [faults.dripping_headers],
        pytest.param([faults.dripping_chunk_header], marks=pytest.mark.slow),
        [faults.overstated],
        [faults.truncated, faults.other_range],
        [faults.truncated, faults.other_file],
        [faults.redirect("/elsewhere/model.bin")],
    ],
    ids=lambda first: "+".join(f.__name__ for f in first) or "good",
)
def test_what_may_pass_is_recovered_from(first, server, cache):
    server.faults = list(first)
    path = get(one(server), cache)
    assert path == cache / "test.in1k" / "model.bin"
    assert path.read_bytes() == BODY
    assert files_in(cache) == ["model.bin", "model.bin.sha256"]
    command = ["sha256sum", "-c", "model.bin.sha256"]
    assert (
        subprocess.run(command, cwd=path.parent, check=False, capture_output=True).returncode == 0
    )


@pytest.mark.parametrize(
    ("fault", "says", "requests", "left"),
    [
        (faults.missing, "status 404", 1, []),
        (faults.unavailable, "3 times, at last: status 503", 3, []),
        (faults.endless, "these weights have at most 16,777,216", 1, []),
        (faults.too_large, "sends 1,099,511,627,776 bytes", 1, []),
        (faults.nonsense_length, "Content-Length 'many'", 1, []),
        (faults.encoded, "Content-Encoding gzip", 1, []),
        (faults.page, "a web page instead of the file", 1, []),
        (faults.page_by_type, "a web page instead of the file", 1, []),
        (faults.unasked_part, "status 206", 1, []),
        (faults.redirect("/model.bin"), "more than 3 times", 4, []),
        (faults.redirect("file:///etc/passwd"), "another scheme", 1, []),
        (faults.redirect("ftp://127.0.0.1/model.bin"), "another scheme", 1, []),
        (faults.redirect("https://127.0.0.1/model.bin"), "another scheme", 1, []),
        (faults.redirect("http://[/model.bin"), "another scheme", 1, []),
        (faults.redirect_with_endless_body, "more than 3 times", 4, []),
        (faults.stalled, "no answer in time", 3, ["model.bin.part", "model.bin.part.json"]),
        (faults.silent, "no answer in time", 3, []),
        (faults.dripping, "bytes per second", 3, ["model.bin.part", "model.bin.part.json"]),
        (faults.dripping_headers, "no answer in time", 3, []),
        (faults.dripping_chunk_header, "no answer in time", 3, []),
        # Recognised by the hash alone, at once.
        (faults.wrong, "nothing was kept", 1, []),
        (faults.understated, "nothing was kept", 1, []),
    ],
)
def test_what_does_not_pass_is_one_clear_error(fault, says, requests, left, server, cache):
    server.always = fault
    limits = HASTY if fault in WAITED_FOR else FAST
    assert says in refusal(one(server), cache, limits=limits)
    assert len(server.asked) == requests
    assert files_in(cache) == left
    assert server.sent < 32 << 20  # `endless` was cut off, not judged at its end
    assert cached_path(one(server)) is None
    server.always = faults.good
    assert get(one(server), cache).read_bytes() == BODY


def test_no_server_at_all(server, cache):
    weights = one(server)
    server.__exit__()
    text = refusal(weights, cache)
    assert "Connection refused" in text
    assert f"put model.bin into {cache / 'test.in1k'}" in text


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/passwd"])
def test_other_schemes_are_not_even_asked(url, cache):
    assert "only http and https" in refusal(record(url), cache)


def test_a_transfer_goes_on_where_it_stopped(server, cache):
    server.faults = [faults.truncated]
    refusal(one(server), cache, limits=replace(FAST, attempts=1))
    get(one(server), cache)
    assert [asked for _, asked in server.asked] == [None, f"bytes={len(BODY) // 2}-"]


def test_a_file_that_changed_meanwhile_is_fetched_from_zero(server, cache):
    server.body, server.etag, server.faults = OTHER, '"v0"', [faults.truncated]
    refusal(one(server), cache, limits=replace(FAST, attempts=1))
    server.body, server.etag = BODY, '"v1"'
    assert get(one(server), cache).read_bytes() == BODY
    assert len(server.asked) == 2  # the 200 that follows from If-Range was enough


@pytest.mark.parametrize(
    "second", [faults.other_range, faults.other_file, faults.short_continuation]
)
def test_a_wrong_continuation_is_recognised_without_any_hash(second, server, cache):
    server.faults = [faults.truncated, second]
    weights = one(server, sha256="")
    assert get(weights, cache, check=lambda *_: None).read_bytes() == BODY
    assert len(server.asked) == 3


def test_what_one_address_began_another_does_not_go_on_with(server, cache, monkeypatch):
    server.faults = [faults.truncated]
    refusal(one(server), cache, limits=replace(FAST, attempts=1))
    monkeypatch.setenv("VAN_MIRROR", f"{server.address}/mirror")
    get(one(server), cache)
    assert server.asked == [("/model.bin", None), ("/mirror/model.bin", None)]


def test_a_complete_part_file_is_not_fetched_again(server, cache):
    def stopped(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(one(server), cache, check=stopped)
    assert files_in(cache) == ["model.bin.part", "model.bin.part.json"]
    assert get(one(server), cache).read_bytes() == BODY
    assert len(server.asked) == 1


def test_force_starts_from_zero(server, cache):
    server.faults = [faults.truncated]
    refusal(one(server), cache, limits=replace(FAST, attempts=1))
    get(one(server), cache, force=True)
    assert [asked for _, asked in server.asked] == [None, None]


def test_force_never_leaves_an_old_file_with_a_new_pin(server, cache, monkeypatch):
    weights = one(server, sha256="")
    path = get(weights, cache, check=lambda *_: None)
    server.body, move = OTHER, os.replace

    def killed(source, target):
        if target == path:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        get(weights, cache, check=lambda *_: None, force=True)
    assert verify(weights).state == "missing"


def test_without_a_strong_validator_nothing_is_resumed(server, cache):
    server.etag, server.faults = 'W/"weak"', [faults.truncated]
    get(one(server), cache)
    assert [asked for _, asked in server.asked] == [None, None]


def test_a_bad_hash_after_resuming_restarts_once_from_zero(server, cache):
    """The same ETag for other bytes: only the hash can tell."""
    server.body, server.faults = OTHER, [faults.truncated]
    refusal(one(server), cache, limits=replace(FAST, attempts=1))
    server.body = BODY
    console = quiet()
    assert get(one(server), cache, console=console).read_bytes() == BODY
    assert "again from zero" in console.file.getvalue()

    # A server that breaks off each time and mixes each time does not keep it busy for ever.
    get(one(server), cache)
    shutil.rmtree(cache)
    server.asked.clear()
    server.body, server.faults = OTHER, [faults.truncated, faults.good] * 3
    console = quiet()
    assert "nothing was kept" in refusal(one(server), cache, console=console)
    assert console.file.getvalue().count("again from zero") == 1
    assert len(server.asked) == 4
    assert files_in(cache) == []


def test_the_next_source_is_asked_and_that_is_said(server, cache):
    server.faults = [faults.missing]
    weights = record(f"{server.address}/first.bin", f"{server.address}/model.bin")
    console = quiet()
    assert get(weights, cache, console=console).name == "model.bin"
    said = console.file.getvalue().splitlines()
    assert "status 404; trying the next source" in said[0]
    assert "300,000 bytes from" in said[1]
    assert SHA in said[1]
    assert len(said) == 2


def test_a_beginning_from_one_source_goes_when_another_gave_the_file(server, cache):
    server.faults = [faults.truncated]
    weights = record(f"{server.address}/first.bin", f"{server.address}/model.bin")
    get(weights, cache, limits=replace(FAST, attempts=1))
    assert [path for path, _ in server.asked] == ["/first.bin", "/model.bin"]
    assert files_in(cache) == ["model.bin", "model.bin.sha256"]


def test_a_terminal_shows_a_bar(server, cache):
    server.pause = 0.02
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    get(one(server), cache, console=console)
    drawn = console.file.getvalue()
    assert "test.in1k" in drawn
    assert "300.0/300.0 kB" in drawn


def test_a_bad_hash_is_an_error_at_once_not_a_reason_to_ask_elsewhere(server, cache):
    server.faults = [faults.wrong]
    weights = record(f"{server.address}/first.bin", f"{server.address}/model.bin")
    assert f"published {SHA}" in refusal(weights, cache)
    assert len(server.asked) == 1
    assert files_in(cache) == []


def test_check_judges_the_part_file_before_it_gets_its_name(server, cache):
    seen = []

    def refuse(path, weights):
        seen.append((path.name, weights.name, path.read_bytes() == BODY))
        raise KeyError("head.weight")

    text = refusal(one(server), cache, check=refuse)
    assert "not the weights of test.in1k: 'head.weight'" in text
    assert seen == [("model.bin.part", "test.in1k", True)]
    assert files_in(cache) == []
    # Nothing vouches for a file without a published hash and without a check.
    unhashed = one(server, sha256="")
    assert "no published hash" in refusal(unhashed, cache)
    assert get(unhashed, cache, check=lambda *_: None).read_bytes() == BODY


def test_a_cached_file_is_read_again_each_time(server, cache):
    weights = one(server, sha256=SHA[:8])
    path = get(weights, cache)
    assert get(weights, cache) == path
    assert len(server.asked) == 1
    assert verify(weights).state == "ok"
    # `watched` is not used: these files are damaged on purpose.
    damaged = bytearray(BODY)
    damaged[150_000] ^= 1
    path.write_bytes(damaged)
    found = hashlib.sha256(damaged).hexdigest()
    with pytest.raises(DownloadError, match="damaged") as error:
        fetch(weights, console=quiet())
    for words in (SHA, found, f"delete {path}", "van weights download test.in1k --force"):
        assert words in str(error.value)
    assert verify(weights).state == "damaged"
    assert len(server.asked) == 1
    assert fetch(weights, console=quiet(), force=True).read_bytes() == BODY
    assert verify(weights) == ("ok", path, f"SHA-256 {SHA}")


def test_the_pin_is_judged_where_the_published_hash_is_short_or_missing(server, cache):
    weights = one(server, sha256="")
    path = get(weights, cache, check=lambda *_: None)
    pin = path.with_name("model.bin.sha256")
    assert pin.read_text() == f"{SHA}  model.bin\n"
    pin.write_text(f"{hashlib.sha256(OTHER).hexdigest()}  model.bin\n")
    for says in ("expected SHA-256 pinned", "unreadable"):
        with pytest.raises(DownloadError, match=says):
            fetch(weights, check=lambda *_: None, console=quiet())
        assert verify(weights).state == "damaged"
        pin.write_text("")
    # A file fetched again has to be the one that was pinned, unless it is forced.
    pin.write_text(f"{SHA}  model.bin\n")
    path.unlink()
    server.body = OTHER
    assert f"pinned {SHA}" in refusal(weights, cache, check=lambda *_: None)
    assert fetch(weights, check=lambda *_: None, console=quiet(), force=True) == path
    assert path.read_bytes() == OTHER


def test_a_file_put_there_by_hand(server, cache):
    weights, unhashed = one(server, sha256=SHA[:8]), one(server, sha256="")
    path = cache / "test.in1k" / "model.bin"
    pin = path.with_name("model.bin.sha256")
    path.parent.mkdir(parents=True)
    path.write_bytes(OTHER)
    with pytest.raises(DownloadError, match=f"published {SHA[:8]}"):
        fetch(weights)
    assert not pin.exists()
    path.write_bytes(BODY)
    assert verify(unhashed).state == "unverified"
    with pytest.raises(DownloadError, match="cannot be verified"):
        fetch(unhashed)

    def refuse(path, weights):
        raise ValueError("half a head")

    with pytest.raises(DownloadError, match="half a head"):
        fetch(unhashed, check=refuse)
    assert path.exists()  # theirs, not ours to delete
    assert fetch(unhashed, check=lambda *_: None) == path
    pin.unlink()
    assert fetch(weights) == path
    assert SHA in pin.read_text()
    assert server.asked == []


def test_a_read_only_cache_works(server, cache, reader_only, monkeypatch):
    folder, without_rights = reader_only
    monkeypatch.setenv("VAN_CACHE", str(folder))
    weights = one(server)
    get(weights, folder)  # imports what is imported on first use
    (folder / "test.in1k" / "model.bin.sha256").unlink()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with without_rights():
        assert fetch(weights, console=quiet()).read_bytes() == BODY
    assert {
        p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()
    }.items() <= before.items()
    shutil.rmtree(folder / "test.in1k")
    with without_rights(), pytest.raises(DownloadError, match="Permission denied") as error:
        fetch(weights, console=quiet())
    assert "set VAN_CACHE" in str(error.value)


def test_offline_says_what_is_missing_and_where_it_goes(server, cache, monkeypatch):
    weights = one(server)
    monkeypatch.setenv("VAN_OFFLINE", "1")
    text = refusal(weights, cache)
    assert f"get {server.address}/model.bin, put it at {cache}/test.in1k/model.bin" in text
    assert not cache.exists()
    monkeypatch.setenv("VAN_OFFLINE", "0")
    path = get(weights, cache)
    monkeypatch.setenv("VAN_OFFLINE", "1")
    assert get(weights, cache) == path
    assert "cannot be downloaded again" in refusal(weights, cache, force=True)
    assert len(server.asked) == 1
    monkeypatch.setenv("VAN_OFFLINE", "yes")
    assert "`VAN_OFFLINE` must be 1 or 0" in refusal(weights, cache, ValueError, force=True)


def test_a_mirror_is_the_only_address_and_needs_the_same_hashes(server, cache, monkeypatch):
    weights = record("https://nowhere.invalid/deep/first.bin", "https://nowhere.invalid/model.bin")
    monkeypatch.setenv("VAN_MIRROR", f"{server.address}/van/")
    server.faults = [faults.missing]
    assert get(weights, cache).read_bytes() == BODY
    assert [path for path, _ in server.asked] == ["/van/first.bin", "/van/model.bin"]
    shutil.rmtree(cache)
    server.body = OTHER
    assert "expected SHA-256" in refusal(weights, cache)
    for wrong in ("file:///srv", "/srv/mirror", "ftp://mirror"):
        monkeypatch.setenv("VAN_MIRROR", wrong)
        assert "`VAN_MIRROR`" in refusal(weights, cache, ValueError)


def test_a_password_in_an_address_is_not_shown_or_stored(server, cache, monkeypatch):
    monkeypatch.setenv("VAN_MIRROR", server.address.replace("//", "//me:secret@"))
    assert shown("https://me:secret@host/a@b") == "https://host/a@b"
    server.always = faults.stalled
    weights, console = one(server), quiet()
    assert "secret" not in refusal(weights, cache, console=console, limits=HASTY)
    for path in (p for p in cache.rglob("*") if p.is_file()):
        assert b"secret" not in path.read_bytes()
    assert len(files_in(cache)) == 2
    assert "secret" not in console.file.getvalue()


# --- Disks, signals, processes ---


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_at_the_end(code, server, cache, monkeypatch):
    def full(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    text = refusal(one(server), cache)
    assert os.strerror(code) in text
    assert "set VAN_CACHE" in text
    assert files_in(cache) == []


def test_a_disk_that_is_too_small_is_seen_before(server, cache, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=299_999))
    assert "300,000 bytes are needed and 299,999 are free" in refusal(one(server), cache)
    assert files_in(cache) == []


@pytest.mark.parametrize("known", [True, False], ids=["seen before", "in the middle"])
def test_a_small_disk(known, server, tmp_path, cache, monkeypatch):
    cache.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(cache)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        if not known:
            usage = shutil.disk_usage("/")
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 40))
        text = refusal(one(server), cache)
        assert "no space for test.in1k" in text
        assert ("No space left on device" in text) == (not known)
        assert files_in(cache) == []
    finally:
        subprocess.run(["umount", str(cache)], check=True)


def test_ctrl_c_keeps_what_came(server, cache):
    server.pause = 0.02

    def interrupt():
        while not any(part.stat().st_size for part in cache.rglob("*.part")):
            time.sleep(0.005)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    timer = threading.Thread(target=interrupt, daemon=True)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        get(one(server), cache)
    timer.join()
    assert files_in(cache) == ["model.bin.part", "model.bin.part.json"]
    assert get(one(server), cache).read_bytes() == BODY
    assert server.asked[1][1] is not None


SCRIPT = """
import io, os, sys
from dataclasses import replace
import requests, filelock, platformdirs, rich.progress
from rich.console import Console
from van_classification_tensorflow.weights.cache import Limits, fetch
from van_classification_tensorflow.weights.catalogue import CATALOGUE, Source
url, sha256 = sys.argv[1:3]
weights = replace(CATALOGUE["digits"], name="test.in1k", sources=(Source(url, sha256),))

def run(cache):
    os.environ["VAN_CACHE"] = cache
    return fetch(weights, console=Console(file=io.StringIO()), limits=Limits(backoff=0.01))
"""

TOGETHER = SCRIPT + "print(run(sys.argv[3]))"

# Forks children that are killed: before the n-th touch of the cache (counted by an audit hook),
# or after some time. Forking saves 50 starts of Python; the kill is as hard.
KILLED = (
    SCRIPT
    + """
import json, random, signal, time

def child(cache, touch=0):
    if pid := os.fork():
        return pid
    touches = 0
    def hook(event, arguments):
        nonlocal touches
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "fcntl.flock") and (
            event == "fcntl.flock" or cache in str(arguments[0])
        ):
            touches += 1
            if touches == touch:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    run(cache)
    if not touch:
        print(json.dumps(touches), flush=True)
    os._exit(0)

def look(cache):
    state = {}
    for folder, _, names in os.walk(cache):
        state |= {n: open(os.path.join(folder, n), "rb").read().hex() for n in names}
    return state

os.waitpid(child(sys.argv[3] + "/count"), 0)
touches = int(sys.stdin.readline())
seconds = float(sys.argv[4])
for n in range(50):
    cache = f"{sys.argv[3]}/{n}"
    if n < touches:
        pid = child(cache, n + 1)
    else:
        pid = child(cache, 10**9)
        time.sleep(seconds * (n - touches + 0.5) / (50 - touches))
        os.kill(pid, signal.SIGKILL)
    killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    after = look(cache)
    os.waitpid(child(cache, 10**9), 0)
    print(json.dumps([killed, after, look(cache)]), flush=True)
"""
)


def judge(files):
    """Nothing visible, or the whole file with its pin."""
    if "model.bin" in files:
        assert bytes.fromhex(files["model.bin"]) == BODY
        assert bytes.fromhex(files["model.bin.sha256"]).startswith(SHA.encode())
        return True
    return False


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_kill_9_at_50_moments(server, cache, tmp_path):
    server.pause = 0.004
    command = [sys.executable, "-c", KILLED, one(server).sources[0].url, SHA, str(tmp_path), "0.15"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    watchdog = threading.Timer(90, process.kill)
    watchdog.start()
    with process:
        touches = json.loads(process.stdout.readline())
        process.stdin.write(f"{touches}\n")
        process.stdin.flush()
        runs = [json.loads(line) for line in process.stdout]
        watchdog.cancel()
    assert process.returncode == 0
    assert len(runs) == 50
    assert 8 <= touches <= 30
    visible = 0
    for _, after, then in runs:
        visible += judge(after)
        assert judge(then)
        assert set(then) - {".lock"} == {"model.bin", "model.bin.sha256"}
    # All that die at a touch of the folder; of the others a slow machine kills some too late.
    assert sum(killed for killed, *_ in runs) >= touches
    assert visible < 25
    assert any("model.bin.part" in after for _, after, _ in runs)
    assert any(asked for _, asked in server.asked)  # and some went on where they stopped


def test_eight_processes_fetch_it_once(server, cache):
    server.pause = 0.05
    command = [sys.executable, "-c", TOGETHER, one(server).sources[0].url, SHA, str(cache)]
    with watched(cache):
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
        answers = {process.communicate(timeout=60)[0] for process in processes}
    assert answers == {f"{cache / 'test.in1k' / 'model.bin'}\n"}
    assert len(server.asked) == 1
    assert files_in(cache) == ["model.bin", "model.bin.sha256"]


def test_a_lock_that_is_held_too_long_is_an_error(server, cache):
    from filelock import FileLock

    (cache / "test.in1k").mkdir(parents=True)
    with FileLock(cache / "test.in1k" / ".lock"):
        text = refusal(one(server), cache, limits=replace(FAST, lock=0.2))
    assert "another process holds" in text


def test_importing_it_is_light_and_reads_no_environment():
    code = (
        "import sys, van_classification_tensorflow.weights.cache;"
        "print({'keras', 'tensorflow', 'torch', 'jax', 'h5py', 'requests'} & set(sys.modules))"
    )
    environment = os.environ | {"VAN_MIRROR": "nonsense", "VAN_OFFLINE": "nonsense"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout == "set()\n"


def test_bundled_weights_need_no_cache(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "asset", lambda name: tmp_path / name)
    digits = CATALOGUE["digits"]
    assert verify(digits).state == "missing"
    with pytest.raises(DownloadError, match="reinstall"):
        fetch(digits)
    (tmp_path / "digits.safetensors").write_bytes(BODY)
    assert fetch(digits) == tmp_path / "digits.safetensors"
    assert verify(digits).state == "ok"
    assert not cache.exists()
