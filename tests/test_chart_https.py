"""The ways into the chart's service: its own TLS, and the HTTPRoute of the Gateway API."""

from pathlib import PurePath
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests import manifests
from tests.chart import everything, needs_helm, render
from tests.manifests import named
from tests.test_chart import container

pytestmark = needs_helm
LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
Name = Annotated[str, Field(min_length=1, max_length=253)]
Label = Annotated[str, Field(max_length=63, pattern=f"^{LABEL}$")]
Domain = Annotated[str, Field(max_length=253, pattern=rf"^(\*\.)?{LABEL}(\.{LABEL})*$")]
Port = Annotated[int, Field(ge=1, le=65535)]


class Strict(BaseModel):
    """An object of the API; a field that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Path(Strict):
    type: Literal["Exact", "PathPrefix"] = "PathPrefix"
    value: Annotated[str, Field(max_length=1024, pattern=r"^/([^/]+/?)*$")] = "/"


class Match(Strict):
    path: Path


class Backend(Strict):
    name: Name
    port: Port  # required of a Service
    namespace: Label | None = None


class Rule(Strict):
    matches: list[Match] = Field(max_length=8)
    backend_refs: list[Backend] = Field(alias="backendRefs", max_length=16)


class Parent(Strict):
    name: Name
    namespace: Label | None = None
    section_name: Domain | None = Field(default=None, alias="sectionName")
    port: Port | None = None
    kind: Literal["Gateway"] = "Gateway"
    group: Literal["gateway.networking.k8s.io"] = "gateway.networking.k8s.io"


class Spec(Strict):
    parent_refs: list[Parent] = Field(alias="parentRefs", min_length=1, max_length=32)
    hostnames: list[Domain] = Field(default=[], max_length=16)
    rules: list[Rule] = Field(min_length=1, max_length=16)


class HTTPRoute(Strict):
    """What the chart uses of gateway.networking.k8s.io/v1, as its CRD bounds it."""

    api_version: Literal["gateway.networking.k8s.io/v1"] = Field(alias="apiVersion")
    kind: Literal["HTTPRoute"]
    metadata: dict[str, Any]
    spec: Spec


PARENT = "httpRoute.parentRefs[0].name=public,httpRoute.parentRefs[0].namespace=gateways"


def route(*settings: str) -> manifests.Document:
    options = ["httpRoute.enabled=true", PARENT, *settings]
    return named(render("values", False, "--set", ",".join(options)), "HTTPRoute", "wgan")


def test_the_gateway_api_knows_the_route() -> None:
    HTTPRoute.model_validate(named(everything(), "HTTPRoute", "wgan"))
    made = HTTPRoute.model_validate(
        route(
            "httpRoute.parentRefs[0].sectionName=https",
            "httpRoute.hostnames={gan.example.com,*.gan.example.com}",
            "httpRoute.paths={/v1,/docs}",
        )
    )
    (rule,) = made.spec.rules
    assert [match.path.value for match in rule.matches] == ["/v1", "/docs"]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("parentRefs", 0, "listener"), "https"),
        (("rules", 0, "matches", 0, "path", "type"), "Prefix"),  # as of an Ingress
        (("rules", 0, "matches", 0, "path", "value"), "v1"),
        (("rules", 0, "backendRefs", 0, "port"), "http"),
        (("rules", 0, "backend"), {}),
    ],
)
def test_what_it_does_not_know_is_found(where: tuple[str | int, ...], value: object) -> None:
    document = route()
    node: Any = document["spec"]
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = value
    with pytest.raises(ValidationError):
        HTTPRoute.model_validate(document)


@pytest.mark.parametrize(("secret", "scheme"), [("", "HTTP"), ("own-tls", "HTTPS")])
def test_the_service_speaks_https_with_a_certificate_of_its_own(secret: str, scheme: str) -> None:
    documents = render("values", True, "--set", f"serve.tls.secret={secret}")
    spec, service = container(documents, "Deployment", "wgan")
    assert {service[kind]["httpGet"]["scheme"] for kind in manifests.PROBES} == {scheme}
    (port,) = named(documents, "Service", "wgan")["spec"]["ports"]
    assert port["appProtocol"] == scheme.lower()
    (endpoint,) = named(documents, "ServiceMonitor", "wgan")["spec"]["endpoints"]
    assert endpoint.get("scheme", "http") == scheme.lower()
    files = [
        PurePath(v["value"])
        for v in service["env"]
        if v["name"] in ("WGAN_TLS_CERT", "WGAN_TLS_KEY")
    ]
    # The keys of every Secret of type kubernetes.io/tls.
    assert [file.name for file in files] == (["tls.crt", "tls.key"] if secret else [])
    for file in files:
        (mount,) = (m for m in service["volumeMounts"] if m["mountPath"] == str(file.parent))
        (volume,) = (v for v in spec["volumes"] if v["name"] == mount["name"])
        assert volume["secret"]["secretName"] == secret
