"""The OpenAPI description, made from the endpoints' own descriptions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from models import __version__
from service.endpoint import Endpoint
from service.holder import ROLES

Json = dict[str, Any]
ROLE_DESCRIPTION = (
    "Which model, where a challenger is served beside the champion. Left out: the champion, but "
    "for the share of requests that is configured to go to the challenger; X-Model-Version tells."
)
ROLE_PARAMETER: Json = {
    "name": "model",
    "in": "query",
    "schema": {"enum": list(ROLES)},
    "description": ROLE_DESCRIPTION,
}
HEADERS: Json = {
    name: {"schema": {"type": "string"}, "description": description}
    for name, description in (
        ("X-Model-Version", "Registry name and version, or the artifact's digest."),
        ("X-Constraint", "Kind of the critic constraint it was trained under."),
        ("X-Seed", "The seed used."),
    )
}
MODEL_HEADERS: Json = {name: HEADERS[name] for name in ("X-Model-Version", "X-Constraint")}
BINARY: Json = {"type": "string", "format": "binary"}
TEXT: Json = {"200": {"description": "OK", "content": {"text/plain": {}}}}
ERRORS = {
    400: "The body does not follow the schema.",
    401: "No key, or an unknown one, where one is needed.",
    403: "The key lacks the scope for this.",
    404: "There is no such path.",
    405: "The path does not answer this method.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "A file, or the content type, is nothing we read.",
    422: "Well formed, but not what this model makes or takes.",
    429: "More at once, or in a second, than one caller may have: try again.",
    431: "The headers are too large.",
    503: "No model is ready, or as many requests as can be are under way: try again.",
    504: "Not done in time.",
}


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = None


def ref(schema: type[BaseModel]) -> Json:
    """Refer to a schema, which the endpoint lists among its `schemas`."""
    return {"$ref": f"#/components/schemas/{schema.__name__}"}


def json_answer(description: str, schema: Json, headers: Json | None = None) -> Json:
    """Describe an answer in JSON, status 200."""
    named = {"headers": headers} if headers else {}
    content = {"application/json": {"schema": schema}}
    return {"200": {"description": description, **named, "content": content}}


def errors(*statuses: int) -> Json:
    """Describe errors by their statuses."""
    content = {"application/problem+json": {"schema": ref(Problem)}}
    return {str(s): {"description": ERRORS[s], "content": content} for s in statuses}


def describe(endpoints: Iterable[Endpoint], with_keys: bool = False) -> Json:
    """Describe every endpoint, and BentoML's probes.

    Args:
        endpoints: in the order of the description.
        with_keys: True if a key is needed.
    """
    described = [endpoint for endpoint in endpoints if endpoint.operation]
    schemas: list[type[BaseModel]] = [
        *(schema for endpoint in described for schema in endpoint.schemas),
        Problem,
    ]
    _, definitions = models_json_schema(
        [(schema, "validation") for schema in schemas],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Json] = {}
    for endpoint in described:
        operation = dict(endpoint.operation or {})
        if with_keys and endpoint.path.startswith("/v1/"):
            operation["security"] = [{"key": []}]
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    live = {"summary": "The process runs", "responses": {**TEXT, **errors(413, 431)}}
    ready = {
        "summary": "A verified model has run once",
        "responses": {**TEXT, **errors(413, 431, 503)},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "wgan-foundry",
            "version": __version__,
            "description": "Samples and critic scores of a Wasserstein GAN.",
        },
        "paths": {**paths, "/livez": {"get": live}, "/readyz": {"get": ready}},
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
