"""Folders of a hub in the cache: only what the hub says they hold ever gets its final name."""

import errno
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.parity import GOLDEN
from tests.stand_in_hub import Hub, blob_id, sha256
from van_classification_tensorflow.weights import hub as module
from van_classification_tensorflow.weights.address import address_of
from van_classification_tensorflow.weights.checkpoint import read_weights
from van_classification_tensorflow.weights.download import DownloadError, Limits, shown
from van_classification_tensorflow.weights.hub import fetch_folder, local, place_of
from van_classification_tensorflow.weights.hub_listing import Listing, left_out
from van_classification_tensorflow.weights.hub_name import HUB, HubName, endpoint, token
from van_classification_tensorflow.weights.pretrained import open_local, open_pretrained

MICRO = (GOLDEN / "micro.safetensors").read_bytes()
OFFICIAL = read_weights(GOLDEN / "micro.safetensors")
FILES = {"model.safetensors": MICRO, "README.md": b"<!-- a card -->\n", ".gitattributes": b"x\n"}
NAME = HubName.of("hf://me/micro")
FAST = Limits(connect=2, read=0.5, answer=1, window=0.3, attempts=2, backoff=0.01, redirects=3)
COMMIT = "a" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in (
        *("VAN_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_HOME", "HF_TOKEN_PATH", "HF_ENDPOINT"),
        *("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("VAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(cache, monkeypatch):
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        hub.put("me/micro", FILES)
        yield hub


def get(name=NAME, choose=Listing.to_read, **options):
    options = {"limits": FAST, "console": Console(file=io.StringIO(), width=400)} | options
    return fetch_folder(HubName.of(name) if isinstance(name, str) else name, choose, **options)


def refusal(name=NAME, kind=DownloadError, **options):
    """The error's text, one line; nothing unverified is in the cache."""
    with pytest.raises(kind) as error:
        get(name, **options)
    text = str(error.value)
    assert "\n" not in text
    assert "hf_secret" not in text
    assert len(text) < 700
    for path in place_of(NAME).rglob("model.safetensors"):
        assert path.read_bytes() == MICRO
    return text


# --- Names ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://me/micro", ("me", "micro", None)),
        ("hf://My-Org_1/van.b0@v1.0", ("My-Org_1", "van.b0", "v1.0")),
        ("hf://a/b@feature/x", ("a", "b", "feature/x")),
        (f"hf://a/b@{COMMIT}", ("a", "b", COMMIT)),
    ],
)
def test_names(text, expected):
    name = HubName.of(text)
    assert (name.user, name.name, name.revision) == expected
    assert str(name) == text
    assert name.is_commit == text.endswith(COMMIT)
    assert address_of(text).kind == "hub"
    assert not address_of(text).is_path


@pytest.mark.parametrize(
    "text",
    [
        "hf://",
        "hf://micro",
        "hf://me/",
        "hf:///micro",
        "hf://me/micro/file.bin",
        "hf://me/../x",
        "hf://../me",
        "hf://me/..",
        "hf://me/a b",
        "hf://me/-x",
        "hf://me/x.",
        "hf://me/x--y",
        "hf://me/x.git",
        "hf://me/ä",
        "hf://me/x?y=1",
        "hf://user:pw@host/x",
        "hf://me/" + "x" * 100,
        "hf://me/x@",
        "hf://me/x@../y",
        "hf://me/x@a//b",
        "hf://me/x@a/",
        "hf://me/x@a b",
        "hf://me/x@a\nb",
        "hf://me/x\n",
    ],
)
def test_wrong_names_are_refused_before_anything_is_asked(text, cache):
    for use in (HubName.of, open_pretrained, open_local, local):
        with pytest.raises(ValueError, match=r"must (be hf://USER/NAME|name a branch)") as error:
            use(text)
        assert "\n" not in str(error.value)
    assert not cache.exists()


def test_the_token_is_for_the_hub_alone(cache, monkeypatch, tmp_path):
    assert (endpoint(), token()) == (HUB, "")
    monkeypatch.setenv("HF_TOKEN", " hf_mine\n")
    assert token() == "hf_mine"
    for address, expected in (
        ("http://localhost:1", "hf_mine"),
        ("https://mirror.example", "hf_mine"),
        ("http://mirror.example", ""),  # in the clear
    ):
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert token() == expected
    monkeypatch.delenv("HF_TOKEN")
    kept = tmp_path / "kept"
    kept.write_text("hf_kept\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(kept))
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert (endpoint(), token()) == ("https://mirror.example", "")
    monkeypatch.delenv("HF_ENDPOINT")
    assert token() == "hf_kept"
    for wrong in ("two words", "x" * 1001, "hf_ä"):
        monkeypatch.setenv("HF_TOKEN", wrong)
        with pytest.raises(ValueError, match="`HF_TOKEN` must be one word") as error:
            token()
        assert wrong not in str(error.value)
    monkeypatch.delenv("HF_TOKEN")
    kept.write_text("two words")
    with pytest.raises(ValueError, match="must be one word") as error:
        token()
    assert str(error.value).startswith(f"the token in {kept} ")
    assert "two words" not in str(error.value)


def test_a_user_without_a_home_has_no_token_and_no_cache_in_it(cache, monkeypatch):
    monkeypatch.setenv("HF_TOKEN_PATH", "~nobody-of-this-name/token")
    assert token() == ""
    monkeypatch.setenv("VAN_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(ValueError, match=r"`VAN_CACHE` must be a folder.* Received: VAN_CACHE='~n"):
        place_of(NAME)


@pytest.mark.parametrize(
    "address",
    ["ftp://x", "x", "https://", "https://a:b@x", "https://x?y=1", "https://x:port", "file:///x"],
)
def test_a_wrong_endpoint_is_said(address, cache, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(ValueError, match="`HF_ENDPOINT` must be an http or https address") as error:
        get()
    assert "a:b" not in str(error.value)


# --- What the hub says ---


def listing(*entries, sha=COMMIT):
    return json.dumps({"sha": sha, "siblings": list(entries)}).encode()


def entry(name, size=3, **others):
    return {"rfilename": name, "size": size, "blobId": "b" * 40, **others}


def test_only_plain_names_at_the_top_are_known():
    names = ["model.safetensors", "../x", "a/b.bin", "/etc/passwd", ".hidden", "a\\b", "x\n", ""]
    found = Listing.from_json(listing(*map(entry, names), {"rfilename": 3}, 4))
    assert list(found.files) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no list"),
        (b'{"siblings": 3}', "no list"),
        (listing(*[{}] * 10_001), "no list of at most 10,000"),
        (listing(sha="../../x"), "names no commit"),
        (listing(sha=None), "names no commit"),
        (listing(entry("x", None)), "how large x is"),
        (listing(entry("x", -1)), "how large x is"),
        (listing(entry("x", True)), "how large x is"),
        (listing(entry("x", blobId=3)), "no hash of x"),
        (listing(entry("x", lfs={"sha256": "c" * 63})), "no SHA-256 of x"),
        (listing(entry("x", lfs=[])), "no SHA-256 of x"),
        (listing(entry("x"), entry("x")), "a file twice"),
    ],
)
def test_senseless_answers_are_refused(text, says):
    with pytest.raises(ValueError, match=says):
        Listing.from_json(text)


def test_what_is_taken_of_a_folder():
    def read(*names, size=3):
        found = Listing.from_json(listing(*(entry(name, size) for name in names)))
        return [one.name for one in found.to_read()]

    assert read("config.json", "model.safetensors", "pytorch_model.bin", "x.py") == [
        "model.safetensors",
        "config.json",
    ]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = "model.safetensors.index.json"
    assert read(index, *shards, "model-x.safetensors") == [index, *shards]
    assert read("pytorch_model.bin", "preprocessor_config.json", "config.json") == [
        "pytorch_model.bin",
        "config.json",
        "preprocessor_config.json",
    ]
    assert read("model.weights.h5", "config.json", "task.json") == [
        "model.weights.h5",
        "config.json",
    ]
    for names in ([], ["README.md"], ["model.weights.h5"], ["weights.pkl"]):
        with pytest.raises(ValueError, match=r"there is no model\.safetensors"):
            read(*names)
    with pytest.raises(ValueError, match=r"model\.safetensors has 5,000,000,000 bytes; allowed"):
        read("model.safetensors", size=5_000_000_000)
    with pytest.raises(ValueError, match=r"config\.json has 9,000,000 bytes; allowed"):
        read("model.safetensors", "config.json", size=9_000_000)
    many = [f"model-{i:05}-of-00005.safetensors" for i in range(5)]
    with pytest.raises(ValueError, match="more than 17,179,869,184 bytes together"):
        Listing.from_json(listing(entry(index), *(entry(one, 4 << 30) for one in many))).to_read()


def test_what_is_kept_and_what_is_left():
    names = ["model.safetensors", "task.json", "README.md", "evil.py", "x.pkl", "LICENSE"]
    found = Listing.from_json(listing(*map(entry, names)))
    kept = found.to_keep()
    assert [one.name for one in kept] == ["model.safetensors", "task.json", "README.md", "LICENSE"]
    assert left_out(found, kept) == ["evil.py", "x.pkl"]
    assert Listing.from_json(found.to_json().encode()) == found


# --- Download and cache ---


def test_a_folder_is_fetched_once_and_verified_on_every_load(hub, cache):
    folder = get()
    assert [path.name for path in folder.path.iterdir()] == ["model.safetensors"]
    assert folder.path == place_of(NAME) / hub.repositories["me/micro"].branches["main"]
    assert folder.title == f"hf://me/micro@{folder.path.name[:7]}"
    asked = len(hub.cdn.asked)
    assert get() == folder
    assert len(hub.cdn.asked) == asked == 1
    everything = get(choose=Listing.to_keep)
    assert (everything.path / "README.md").read_bytes() == FILES["README.md"]
    assert len(hub.cdn.asked) == 1
    file = folder.path / "model.safetensors"
    file.write_bytes(MICRO[:-1] + b"x")
    assert "is damaged: expected SHA-256" in (text := refusal_without_check())
    assert str(file) in text


def refusal_without_check():
    with pytest.raises(DownloadError) as error:
        get()
    return str(error.value)


def test_weights_are_taken_from_a_hub_wherever_they_are_taken(hub):
    opened = open_pretrained("hf://me/micro")
    assert opened.card.name.startswith("hf://me/micro@")
    assert opened.weights.tensors.keys() == OFFICIAL.tensors.keys()
    for name, array in OFFICIAL.tensors.items():
        np.testing.assert_array_equal(opened.weights.tensors[name], array)
    assert local("hf://me/micro") == get().path
    assert local(Path("x")) == Path("x")


@pytest.mark.parametrize("kind", ["transformers", "pytorch", "official"])
def test_folders_of_others(kind, hub):
    files = {
        "transformers": {p.name: p.read_bytes() for p in (GOLDEN / "micro_hf").iterdir()},
        "pytorch": {"pytorch_model.bin": (GOLDEN / "micro_hf/pytorch_model.bin").read_bytes()},
        "official": {"model.safetensors": MICRO, "preprocessor.json": b"of KerasHub"},
    }[kind]
    hub.put("me/other", files)
    opened = open_pretrained("hf://me/other")
    for name, array in OFFICIAL.tensors.items():
        np.testing.assert_array_equal(opened.weights.tensors[name], array)


def test_a_branch_moves_and_a_commit_stays(hub):
    first = get()
    pinned = f"hf://me/micro@{first.path.name}"
    hub.put("me/micro", {**FILES, "config.json": b"{}"})
    second = get()
    assert second.path != first.path
    before = len(hub.asked)
    assert get(pinned).path == first.path
    assert len(hub.asked) == before  # nothing to be asked
    hub.put("me/micro", FILES, branch="v1")
    assert get("hf://me/micro@v1").path.name == hub.repositories["me/micro"].branches["v1"]
    assert "no such branch" in refusal("hf://me/micro@v2")
    assert "no such branch" in refusal(f"hf://me/micro@{COMMIT}")


def test_offline_takes_the_last_known(hub, monkeypatch):
    assert "not in the cache: run `van pull hf://me/micro`" in offline(monkeypatch)
    folder = get()
    hub.put("me/micro", {"model.safetensors": b"other"})
    asked = len(hub.asked)
    for variable in ("VAN_OFFLINE", "HF_HUB_OFFLINE"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "1")
            assert get() == folder
            with pytest.raises(DownloadError, match=r"README\.md of hf://me/micro is not in the"):
                get(choose=Listing.to_keep)
    assert len(hub.asked) == asked


def offline(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("VAN_OFFLINE", "1")
        return refusal()


def test_a_hub_that_does_not_answer_leaves_what_is_here(hub, monkeypatch):
    folder = get()
    hub.shutdown()
    hub.server_close()
    out = io.StringIO()
    assert get(console=Console(file=out, width=400)) == folder
    assert "taken from the cache, commit " in out.getvalue()
    shutil.rmtree(place_of(NAME))
    assert "failed 2 times" in refusal()


@pytest.mark.parametrize("offline", [True, False])
def test_a_read_only_cache_works(offline, hub, reader_only, monkeypatch):
    folder, without_rights = reader_only
    monkeypatch.setenv("VAN_CACHE", str(folder))
    found = get()
    pinned = f"hf://me/micro@{found.path.name}"
    if offline:
        monkeypatch.setenv("VAN_OFFLINE", "1")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with without_rights():
        assert get() == found
        assert get(pinned).path == found.path
        with pytest.raises(DownloadError, match=r"not in the cache|cannot use the cache"):
            get(choose=Listing.to_keep)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_what_is_here_is_verified_without_a_lock(hub, monkeypatch):
    folder = get()
    monkeypatch.setattr(module, "locked", None)
    assert get() == folder


def test_what_ended_runs_left_is_removed_by_the_next_download(hub):
    place = get().path.parent
    old = place / COMMIT
    old.mkdir()
    dead = [old / ".x.part", old / ".x.part.json", place / ".tmp-1-x", place / "refs" / ".tmp-1-x"]
    for path in dead:
        path.write_text("x")
    dead.append(place / ".van-1")
    dead[-1].mkdir()
    (dead[-1] / "listing.json").write_text("x")
    for path in dead[2:]:
        os.utime(path, (0, 0))
    alive = place / ".tmp-2-x"  # of a process that is at work
    alive.write_text("x")
    get()
    assert all(path.exists() for path in dead)
    get(choose=Listing.to_keep)
    assert not any(path.exists() for path in dead)
    assert alive.exists()


def test_hubs_of_one_server_have_places_of_their_own(cache, monkeypatch):
    places = set()
    for address in ("https://x", "http://x", "https://x/one", "https://x/two", "https://x:1"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        places.add(place_of(NAME))
    assert len(places) == 5
    assert cache / "hub" / "x" / "me--micro" in places


# --- Who may ---


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, monkeypatch):
    hub.repositories["me/micro"].private = True
    assert "(401), and no token was given" in refusal()
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "(401), and the token was not accepted" in refusal()
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.asked.clear()
    get()
    assert {given for _, _, given in hub.asked} == {"Bearer hf_secret"}
    assert [given for _, _, given in hub.cdn.asked] == [None]


def test_a_gated_folder_says_where_to_ask(hub):
    hub.repositories["me/micro"].gated = True
    text = refusal()
    assert f"is gated: ask for access at {hub.address}/me/micro" in text


def test_what_is_not_there(hub, monkeypatch):
    assert "is not there, or private (401)" in refusal("hf://me/nothing")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert "is not there (404): check the name" in refusal("hf://me/nothing")
    hub.put("me/empty", {"README.md": b"x"})
    assert "hf://me/empty: there is no model.safetensors" in refusal("hf://me/empty")


# --- Servers that do wrong ---


def test_other_bytes_than_the_hub_says(hub):
    oid = sha256(MICRO)
    for wrong in (MICRO[:-1] + b"x", MICRO + b"x", b"<html>", b""):
        hub.cdn.change[oid] = wrong
        text = refusal()
        assert "expected SHA-256" in text or "bytes" in text
    hub.cdn.change.clear()
    get()


def test_a_small_file_that_is_another(hub):
    hub.faults["resolve"] = lambda h: h.send(200, b"<!-- A card -->\n")
    with pytest.raises(DownloadError, match="expected git's hash"):
        get(choose=lambda listing: [listing.files["README.md"]])
    assert not list(place_of(NAME).rglob("README.md"))


def test_a_transfer_that_breaks_goes_on(hub):
    def cut(h):
        h.send_response(200)
        h.send_header("Content-Length", str(len(MICRO)))
        h.send_header("ETag", f'"{sha256(MICRO)}"')
        h.end_headers()
        h.wfile.write(MICRO[:1000])
        h.close_connection = True

    hub.cdn.faults["large"] = cut
    folder = get()
    assert (folder.path / "model.safetensors").read_bytes() == MICRO
    assert len(hub.cdn.asked) == 2


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda h: h.send(200, b"x" * (17 << 20)), "sends 17,825,792 bytes"),
        (lambda h: h.send(200, b"<html></html>"), "a web page"),
        (lambda h: h.send(302, Location="file:///etc/passwd"), "another scheme"),
        (lambda h: h.error(418), "status 418"),
        (lambda h: h.json({"sha": COMMIT, "siblings": []}), "there is no model.safetensors"),
        (lambda h: h.json([]), "no list"),
    ],
)
def test_answers_that_are_none(fault, says, hub):
    hub.faults["revision"] = fault
    assert says in refusal()


def test_a_full_disk_and_a_cache_that_cannot_be(hub, monkeypatch):
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
        assert "no space for hf://me/micro in " in refusal()
    with monkeypatch.context() as patch:

        def full(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(module, "write_atomically", full)
        assert "no space for hf://me/micro in " in refusal()
    place = place_of(NAME)
    shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("a file")
    with pytest.raises(DownloadError, match="cannot use the cache folder"):
        get()


def test_a_link_in_the_cache_is_not_followed(hub, tmp_path):
    path = get().path / "model.safetensors"
    other = tmp_path / "other"
    path.replace(other)
    path.symlink_to(other)
    assert "is no regular file: remove it" in refusal_without_check()


def test_hashes_are_git_s_and_sha256(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"hello\n")
    found = Listing.from_json(
        listing(
            entry("x", 6, blobId="ce013625030ba8dba906f756967f9e9ca394464a"),
            entry("y", 6, lfs={"sha256": sha256(b"hello\n")}),
            entry("z", 7, blobId=blob_id(b"hello\n")),
        )
    )
    assert found.files["x"].mismatch(file) == ""
    assert found.files["y"].mismatch(file) == ""
    assert found.files["z"].mismatch(file) == "expected 7 bytes, found 6"
    assert "git's hash" in replace(found.files["x"], blob="0" * 40).mismatch(file)


def test_addresses_are_shown_without_what_is_secret():
    assert shown("https://a:b@x/y") == "https://x/y"
    assert shown("https://a:b@c@x/y@z") == "https://x/y@z"
    assert shown("https://x/y@z") == "https://x/y@z"
    assert shown("https://a:b@x, https://c:d@y") == "https://x, https://y"
    assert shown("a:b@c@x:80", bare=True) == "x:80"
    assert shown("http://a:b@c@x:80", bare=True) == "http://x:80"
