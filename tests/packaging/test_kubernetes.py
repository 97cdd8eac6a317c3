"""docs/serve.kubernetes.yaml: valid for Kubernetes, and of one mind with the server and its image."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from referencing import Registry, Resource

sys.path.insert(0, str(Path(__file__).parents[1]))

from pypi import package_folder

from edge_asr.cli.main import cli
from edge_asr.serving.access import Access
from edge_asr.serving.http_face import _OPEN
from edge_asr.serving.metrics import Metrics
from edge_asr.serving.sessions import Sessions

REQUIREMENT = "kubernetes-validate==1.37.0"
Document = dict[str, Any]


@pytest.fixture(scope="module")
def documents(repository: Path) -> dict[str, Document]:
    found = list(yaml.safe_load_all((repository / "docs" / "serve.kubernetes.yaml").read_text()))
    return {document["kind"]: document for document in found}


@pytest.fixture(scope="module")
def pod(documents: dict[str, Document]) -> Document:
    spec: Document = documents["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pod: Document) -> Document:
    (only,) = pod["containers"]
    assert isinstance(only, dict)
    return only


def problems(schemas: Path, document: Document) -> list[str]:
    """What the strict schema of the document's kind says: unknown keys are problems too."""
    group, _, version = document["apiVersion"].rpartition("/")
    name = "-".join(filter(None, (document["kind"].lower(), group.split(".")[0], version)))
    schema = json.loads((schemas / f"{name}.json").read_text())
    definitions = json.loads((schemas / "_definitions.json").read_text())
    registry: Any = Registry()
    for one in (schema, definitions):
        registry = Resource.from_contents(one) @ registry
    validator = jsonschema.Draft202012Validator(schema, registry=registry)
    return [error.message for error in validator.iter_errors(document)]


@pytest.fixture(scope="module", params=["1.30", "1.37"])
def schemas(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Path:
    package = package_folder(pytestconfig, REQUIREMENT) / "kubernetes_validate" / "kubernetes-json-schema"
    (folder,) = package.glob(f"v{request.param}.*-local-strict")
    return folder


def test_every_document_is_valid(documents: dict[str, Document], schemas: Path) -> None:
    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "NetworkPolicy"} <= set(documents)
    for kind, document in documents.items():
        assert problems(schemas, document) == [], kind


def test_what_is_wrong_is_found(documents: dict[str, Document], schemas: Path) -> None:
    wrong = json.loads(json.dumps(documents["Deployment"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    assert any("readinessProb" in problem for problem in problems(schemas, wrong))
    wrong = json.loads(json.dumps(documents["HorizontalPodAutoscaler"]))
    wrong["spec"]["maxReplicas"] = "many"
    assert any("many" in problem for problem in problems(schemas, wrong))


def test_the_command_takes_its_arguments(container: Document, repository: Path) -> None:
    (line,) = re.findall(
        r"^ENTRYPOINT (.*)$", (repository / "docs/serve.Dockerfile").read_text(), re.MULTILINE
    )
    program, name, *arguments = json.loads(line)
    assert (program, name) == ("edge-asr", "serve")
    context = click.Context(cli, info_name="edge-asr")
    command = cli.get_command(context, "serve")
    assert command is not None
    given = command.make_context("serve", [*arguments, *container["args"]], parent=context).params
    assert given["host"] == "0.0.0.0"
    assert container["env"][0]["name"] == "EDGE_ASR_TOKEN"  # or it would not start at this host
    assert given["max_sessions"] == 16


def test_probes_ask_what_needs_no_token_by_an_address(container: Document) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in _OPEN
    assert container["ports"] == [{"name": "http", "containerPort": 8765}]
    names = frozenset(a.split("=")[1] for a in container["args"] if a.startswith("--allow-host="))
    for host in ("10.1.2.3:8765", "edge-asr", "edge-asr.default.svc"):  # of a probe, and of clients
        Access(names=names).check_page("http", host, None)


def test_the_pod_stops_after_its_grace(pod: Document, container: Document) -> None:
    waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    (grace,) = (float(a.split("=")[1]) for a in container["args"] if a.startswith("--grace="))
    assert pod["terminationGracePeriodSeconds"] > waits + grace


def test_it_scales_by_a_metric_that_is_there(documents: dict[str, Document], container: Document) -> None:
    pods, _ = documents["HorizontalPodAutoscaler"]["spec"]["metrics"]
    metrics = Metrics()
    metrics.watch(object.__new__(Sessions))
    metric = pods["pods"]["metric"]
    (labels,) = metric["selector"].values()
    names = {(s.name, s.labels.get("kind")) for m in _families(metrics) for s in m.samples}
    assert (metric["name"], labels["kind"]) in names
    assert f"--max-sessions={2 * int(pods['pods']['target']['averageValue'])}" in container["args"]
    assert documents["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "edge-asr"


def _families(metrics: Metrics) -> Any:
    for name in ("n_sessions", "n_requests"):
        assert hasattr(Sessions, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sessions, "n_sessions", property(lambda self: 3))
        patch.setattr(Sessions, "n_requests", property(lambda self: 1))
        return list(metrics.registry.collect())


def test_it_may_do_no_more_than_the_image_and_the_unit(
    pod: Document, container: Document, documents: dict[str, Document], repository: Path
) -> None:
    user = re.search(r"^USER (\d+):(\d+)$", (repository / "docs/serve.Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (int(user[1]), int(user[2]))
    assert security["runAsNonRoot"]
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert documents["NetworkPolicy"]["spec"]["egress"] == []
    selector = documents["Deployment"]["spec"]["selector"]["matchLabels"]
    assert documents["Service"]["spec"]["selector"] == selector
    assert documents["Deployment"]["spec"]["template"]["metadata"]["labels"] == selector
