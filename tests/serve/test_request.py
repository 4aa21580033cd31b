"""The options of `van serve`."""

import pytest

from van_classification_tensorflow.serve.request import ServeRequest, is_local


def asked(**options):
    return ServeRequest(**{"weights": ("digits",), **options})


def test_names_of_models(tmp_path):
    (tmp_path / "a=b.onnx").touch()
    weights = ("digits", "mine=van_b0", "van_b1.in1k", f"{tmp_path}/a=b.onnx")
    assert asked(weights=weights).by_name == {
        "digits": "digits",
        "mine": "van_b0",
        "van_b1.in1k": "van_b1.in1k",
        "a-b": f"{tmp_path}/a=b.onnx",
    }
    with pytest.raises(ValueError, match="`weights` has two models of the name digits"):
        asked(weights=("digits", "digits=van_b0"))


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("192.168.1.5", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_who_can_reach_it(host, local):
    assert is_local(host) == local


def test_a_public_host_needs_a_token(monkeypatch, tmp_path):
    monkeypatch.delenv("VAN_TOKEN", raising=False)
    public = {"host": "0.0.0.0"}  # noqa: S104
    with pytest.raises(ValueError, match="`host` can be reached by others"):
        asked(**public)
    assert asked(**public, allow_anyone=True).secret is None
    assert asked(**public, token="t").secret == "t"
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert asked(**public, token_file=file).secret == "from-file"
    monkeypatch.setenv("VAN_TOKEN", "from-environment")
    assert asked(**public).secret == "from-environment"
    with pytest.raises(ValueError, match="say the same"):
        asked(token="t", token_file=file)


@pytest.mark.parametrize("token", ["", "two words", "ü", "x" * 1001, "a\nb"])
def test_what_is_no_token(token):
    with pytest.raises(ValueError, match="`token` must hold") as error:
        asked(token=token)
    assert not token or token not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 70_000}, "`port` must be at most"),
        ({"port": -1}, "`port` must be"),
        ({"queue": 0}, "`queue` must be"),
        ({"timeout": 0}, "`timeout` must be"),
        ({"drain": float("nan")}, "`drain` must be"),
        ({"max_wait": -1}, "`max_wait` must be"),
        ({"max_bytes": 1.5}, "`max_bytes` must be"),
        ({"max_pictures": 200}, "`max_pictures` of a request must fit"),
        ({"weights": ()}, "`weights` must name"),
        ({"engine": "fast"}, "`engine` must be"),
        ({"precision": "int8"}, "`calibration` must name"),
        ({"max_pixels": 0}, "`max_pixels` must be"),
    ],
)
def test_what_is_not_allowed(options, words):
    with pytest.raises(ValueError, match=words):
        asked(**options)


def test_a_token_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        asked(token_file=tmp_path / "no")
