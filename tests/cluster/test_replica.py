"""What a replica is told, and what Ray Serve is told of it; without a cluster."""

import asyncio
import importlib
import sys

import pytest
import yaml

from tests.serve.conftest import Client, picture
from tests.serve.test_documents import manifests
from van_classification_tensorflow.cluster import replica
from van_classification_tensorflow.serve.command import application
from van_classification_tensorflow.serve.http import GONE
from van_classification_tensorflow.serve.request import ServeRequest
from van_classification_tensorflow.support.cluster import ClusterOptions


@pytest.fixture(scope="module")
def plain():
    return Client(application(ServeRequest(weights=("digits",))))


def test_for_nodes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("geheim\n")
    where = ClusterOptions(cluster="head:6379", cluster_workers="2:4")
    request = ServeRequest(
        weights=("digits", "flowers.keras", "mine=b/x.onnx"),
        token_file=tmp_path / "token",
        where=where,
    )
    made = replica.for_nodes(request)
    assert made.weights == (
        "digits=digits",
        f"flowers={tmp_path}/flowers.keras",
        f"mine={tmp_path}/b/x.onnx",
    )
    assert (made.secret, made.token, made.token_file) == ("geheim", "geheim", None)
    assert made.where.cluster is None
    assert replica.for_nodes(made) == made


@pytest.mark.parametrize(
    ("least", "most", "room", "replicas", "surge"),
    [(3, 3, 0, 3, 0), (3, 3, 1, 3, 20), (10, 10, 1, 10, 0), (1, 4, 1, (1, 4), 20)],
)
def test_what_serve_is_told(least, most, room, replicas, surge):
    pytest.importorskip("ray.serve", reason="the extra cluster-serve is not installed")
    request = ServeRequest(weights=("digits",), queue=40, upload_seconds=5, timeout=3)
    made = replica.deployment(request, least, most, room)._bound_deployment
    config = made._deployment_config
    scaling = config.autoscaling_config
    found = (scaling.min_replicas, scaling.max_replicas) if scaling else made.num_replicas
    assert found == replicas
    assert config.max_surge_percent == surge
    # The queue of the application is full before a replica is: so 429 is its own answer.
    assert config.max_ongoing_requests > request.queue
    assert config.graceful_shutdown_timeout_s == 68
    assert made.ray_actor_options["num_cpus"] == 1
    assert made.init_args == (request,)


def test_arguments_of_a_configuration():
    pytest.importorskip("ray.serve", reason="the extra cluster-serve is not installed")
    made = replica.van({"weights": ["a=digits"], "queue": 33, "token": "t"})._bound_deployment
    (request,) = made.init_args
    assert (request.weights, request.queue, request.secret) == (("a=digits",), 33, "t")
    assert request.hosts is None
    assert made.name == "van"


def test_the_configuration_in_the_documents_is_one_of_ray_serve():
    schema = pytest.importorskip("ray.serve.schema", reason="the extra cluster-serve is missing")
    (manifest,) = (one for one in manifests() if one["kind"] == "RayService")
    config = schema.ServeDeploySchema.model_validate(
        yaml.safe_load(manifest["spec"]["serveConfigV2"])
    )
    (app,) = config.applications
    module, _, name = app.import_path.partition(":")
    made = getattr(importlib.import_module(module), name)({**app.args, "token": "t"})
    (deployment,) = app.deployments
    assert deployment.name == made._bound_deployment.name
    assert made._bound_deployment.init_args[0].weights == ("van_b0=/models/van_b0.safetensors",)
    assert config.http_options.request_timeout_s == replica.seconds(ServeRequest())
    assert (
        deployment.autoscaling_config["target_ongoing_requests"]
        == (replica.SCALING["target_ongoing_requests"])
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"weights": "digits"}, "`host` can be reached by others, who then need a token"),
        ({"weights": "digits", "port": 9000}, "`args` takes allow_anyone, .* Received: 'port'"),
        ({"weights": "digits", "token": "t", "queue": 0}, "`queue` must be"),
    ],
)
def test_wrong_arguments_of_a_configuration(given, says, monkeypatch):
    monkeypatch.delenv("VAN_TOKEN", raising=False)
    with pytest.raises(ValueError, match=says):
        replica.van(given)


def test_no_reload_of_one_replica_alone():
    request = ServeRequest(weights=("digits",), token="t")
    client = Client(application(request, replica.NO_RELOAD))
    assert client.post("/reload").status_code == 401
    answer = client.post("/reload", headers={"Authorization": "Bearer t"})
    assert answer.status_code == 403
    assert "run `van serve --cluster` again" in answer.json()["error"]


def test_health_is_that_of_the_application(plain):
    one = object.__new__(replica.Replica)
    one._served = plain.app
    asyncio.run(one.check_health())
    plain.app.draining = True
    try:
        with pytest.raises(RuntimeError, match="not ready: 503"):
            asyncio.run(one.check_health())
    finally:
        plain.app.draining = False


def test_a_request_that_serve_cancels_is_gone():
    asked = []

    async def app(scope, receive, send):
        asked.append(scope[GONE])
        await asyncio.sleep(60)

    async def cancelled():
        task = asyncio.create_task(replica.Followed(app)({"type": "http"}, None, None))
        await asyncio.sleep(0)
        assert not asked[0]()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asked[0]()

    asyncio.run(cancelled())


def test_followed_answers_as_the_application_does(plain):
    followed = Client(replica.Followed(plain.app))
    options = {"content": picture(), "headers": {"Content-Type": "image/png"}}
    assert followed.post("/predict", **options).json() == plain.post("/predict", **options).json()


def test_without_serve_the_extra_is_named(monkeypatch):
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    from van_classification_tensorflow.cluster import serve

    monkeypatch.setitem(sys.modules, "ray.serve", None)
    monkeypatch.delattr(sys.modules["ray"], "serve", raising=False)
    says = r"needs ray\[serve\]: pip install 'van-classification-tensorflow\[cluster-serve\]'"
    with pytest.raises(ModuleNotFoundError, match=says):
        serve.run(ServeRequest(weights=("digits",), where=ClusterOptions(cluster="head:6379")))
