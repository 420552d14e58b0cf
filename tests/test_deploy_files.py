"""Containers, manifests and dashboard: of the right form, and about metrics, routes and options that exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.cli.main import command_parser

yaml = pytest.importorskip("yaml")

DOCKER = Path(__file__).resolve().parents[1] / "docker"


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DOCKER / name).read_text()))


def paths(value: Any, key: str) -> list[Any]:
    """The values of a key anywhere in a document."""
    if isinstance(value, list):
        return [found for item in value for found in paths(item, key)]
    if not isinstance(value, dict):
        return []
    own = [value[key]] if key in value else []
    return own + [found for item in value.values() for found in paths(item, key)]


def test_kubernetes() -> None:
    kinds = {document["kind"]: document for document in documents("kubernetes.yml")}
    assert set(kinds) == {"Deployment", "Service", "HorizontalPodAutoscaler", "NetworkPolicy"}
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    args = command_parser("serve").parse_args(container["args"])
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > args.shutdown_timeout + pause
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
    assert set(container["resources"]) == {"requests", "limits"}
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert kinds["Service"]["spec"]["selector"] == labels
    assert kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels


def test_probes_are_routes() -> None:
    pytest.importorskip("fastapi_offline")
    from yolact_deploy.serving import http_app, kserve_routes

    known = {getattr(route, "path", "") for route in kserve_routes.router.routes}
    text = Path(http_app.__file__).read_text()
    probes = {probe["path"] for document in documents("kubernetes.yml") for probe in paths(document, "httpGet")}
    assert probes
    assert all(path in known or f'"{path}"' in text for path in probes)


def test_compose() -> None:
    (compose,) = documents("compose.yml")
    services = compose["services"]
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "loopback only"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith("${") or (DOCKER / source).is_file(), source
        assert not service.get("image", "").endswith(":latest")
    assert (DOCKER.parent / services["yolact"]["build"]["dockerfile"]).is_file()
    shutdown = command_parser("serve").parse_args(["m.onnx"]).shutdown_timeout
    assert float(services["yolact"]["stop_grace_period"].removesuffix("s")) > shutdown
    (prometheus,) = documents("prometheus.yml")
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == ["yolact:8000"]


def test_dockerfile() -> None:
    text = (DOCKER / "serve.Dockerfile").read_text()
    lines = [re.findall(rf"^{word} (.+)$", text, re.MULTILINE)[0] for word in ("ENTRYPOINT", "CMD")]
    entry, arguments = map(json.loads, lines)
    assert entry[:2] == ["yolact-deploy", "serve"]
    command_parser("serve").parse_args([*entry[2:], *arguments])
    run = re.search(r"docker run (.+)$", text, re.MULTILINE)
    assert run is not None
    command_parser("serve").parse_args(shlex.split(run[1].partition("yolact-deploy-serve")[2]))
    assert "\nUSER yolact\n" in text


def test_dashboard_shows_metrics_that_exist() -> None:
    pytest.importorskip("prometheus_client")
    from yolact_deploy.serving.service_metrics import ServiceMetrics

    metrics = ServiceMetrics()
    labels = {
        "yolact_deploy_" + name: set(metric._labelnames)
        for name, metric in vars(metrics).items()
        if hasattr(metric, "_labelnames")
    }
    dashboard = json.loads((DOCKER / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) >= 8
    for expression in expressions:
        names = re.findall(r"yolact_deploy_\w+", expression)
        assert names
        for name in names:
            family = re.sub(r"_(total|bucket|sum|count)$", "", name)
            assert family in labels, name
            used = {word.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for word in group.split(",")}
            used |= set(re.findall(r"[{,](\w+)=", expression))
            assert used - {"le"} <= labels[family], expression
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {
        source["uid"] for source in documents("grafana-datasource.yml")[0]["datasources"]
    }
