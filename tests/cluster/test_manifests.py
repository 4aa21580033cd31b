"""The manifests of the documents: known fields only, of Kubernetes and of KubeRay."""

import re
from argparse import ArgumentParser
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.serve import test_documents
from van_classification_tensorflow.inference.request import PredictRequest
from van_classification_tensorflow.support.options import add_options
from van_classification_tensorflow.train.request import TrainRequest

FOLDER = Path(__file__).parents[2] / "docs" / "cluster"
KUBERNETES = "1.34"
# Of KubeRay's types v1 (rayjob_types.go, rayservice_types.go, raycluster_types.go), what is used of
# them and what may be: each field that is there, and which of them must be.
POLICY = {"mode", "secretName"}
CLUSTER = {
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "rayVersion",
    "workerGroupSpecs",
}
HEAD = {"enableIngress", "headService", "rayStartParams", "serviceType", "template"}
WORKERS = {
    "groupName",
    "idleTimeoutSeconds",
    "maxReplicas",
    "minReplicas",
    "numOfHosts",
    "rayStartParams",
    "replicas",
    "scaleStrategy",
    "template",
}
JOB = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "entrypoint",
    "entrypointNumCpus",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterPodTemplate",
    "suspend",
    "ttlSecondsAfterFinished",
}
SERVICE = {"rayClusterConfig", "serveConfigV2", "serveService"}


def of_files():
    for path in sorted(FOLDER.glob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text("utf-8")):
            yield pytest.param(one, id=f"{path.name}-{one['kind']}")


def of_the_page():
    for one in test_documents.manifests():
        yield pytest.param(one, id=f"serve.md-{one['kind']}")


def check_cluster(spec):
    assert set(spec) <= CLUSTER
    assert spec["authOptions"]["mode"] == "token"
    assert set(spec["authOptions"]) <= POLICY
    assert set(spec["headGroupSpec"]) <= HEAD
    groups = spec["workerGroupSpecs"]
    for group in groups:
        assert set(group) <= WORKERS
        assert set(group) >= {"groupName", "minReplicas", "maxReplicas", "rayStartParams"}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *groups):
        assert all(isinstance(one, str) for one in group["rayStartParams"].values())
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        (container,) = group["template"]["spec"]["containers"]
        mounted = {one["name"] for one in container["volumeMounts"]}
        assert mounted == {one["name"] for one in group["template"]["spec"]["volumes"]}
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]


@pytest.mark.parametrize("manifest", [*of_files(), *of_the_page()])
def test_fields_are_known(manifest):
    kind, spec = manifest["kind"], manifest.get("spec", {})
    if kind == "RayJob":
        assert manifest["apiVersion"] == "ray.io/v1"
        assert set(spec) <= JOB
        check_cluster(spec["rayClusterSpec"])
    elif kind == "RayService":
        assert manifest["apiVersion"] == "ray.io/v1"
        assert set(spec) <= SERVICE
        check_cluster(spec["rayClusterConfig"])
    elif manifest["apiVersion"].startswith("serving.kserve.io/"):
        pytest.skip("KServe's own kinds: their schema is nowhere to be installed from")
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("name", "request_of"), [("train", TrainRequest), ("predict", PredictRequest)]
)
def test_the_options_are_there(name, request_of):
    parser = ArgumentParser(allow_abbrev=False)
    add_options(parser, request_of)
    text = (FOLDER / f"{name}.yaml").read_text("utf-8")
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert len(shown) > 3
    assert shown <= {flag for action in parser._actions for flag in action.option_strings}
