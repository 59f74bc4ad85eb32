"""The OpenAPI description, made from the endpoints' own descriptions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from models import __version__
from service.endpoint import MAX_NAME, Endpoint

Json = dict[str, Any]
MODEL_DESCRIPTION = (
    "Which model: champion, challenger, or a version as X-Model-Version tells it, such as "
    "digits@12; a 404 if that is not served now. Left out: the champion, but for the share of "
    "requests that is configured to go to the challenger."
)
MODEL_PARAMETER: Json = {
    "name": "model",
    "in": "query",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_NAME},
    "description": MODEL_DESCRIPTION,
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
TEXT: Json = {
    "200": {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}
}
TAGS = {
    "samples": "What the generator makes.",
    "scores": "What the critic says of items.",
    "model": "What is known of the models.",
    "operations": "For those who run the service.",
}
ERRORS = {
    400: "The body or the query does not follow the schema.",
    401: "No key, or an unknown one, where one is needed.",
    403: "The key lacks the scope for this.",
    404: "There is no such path, or the version is not served.",
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


CHOSEN = "Of the model that was to answer; not there if the error came before one was chosen."


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
    headers = {"X-Model-Version": {"schema": {"type": "string"}, "description": CHOSEN}}
    return {
        str(s): {"description": ERRORS[s], "headers": headers, "content": content} for s in statuses
    }


def _by_name(operation: Json, names: Sequence[str]) -> Json:
    """Describe the same operation under a path that names the model."""
    schema = {"type": "string", "minLength": 1, **({"enum": list(names)} if names else {})}
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": schema,
        "description": "The model's name, as GET /v1/models tells it.",
    }
    return {
        **operation,
        "operationId": f"{operation['operationId']}ByName",
        "summary": f"{operation['summary']}, of the model of this name",
        "parameters": [name, *operation.get("parameters", [])],
    }


def describe(
    endpoints: Iterable[Endpoint],
    needs_key: Callable[[str], bool] = lambda path: False,
    names: Sequence[str] = (),
) -> Json:
    """Describe every endpoint, and BentoML's probes.

    Args:
        endpoints: in the order of the description.
        needs_key: True for a path that needs a key.
        names: of the models; with several, paths without a model's name answer nothing.
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
        operation, method = dict(endpoint.operation or {}), endpoint.method.lower()
        if needs_key(endpoint.path):
            operation["security"] = [{"key": []}]
        if endpoint.by_name is None or len(names) < 2:
            paths.setdefault(endpoint.path, {})[method] = operation
        if endpoint.by_name is not None:
            paths.setdefault(endpoint.by_name, {})[method] = _by_name(operation, names)
    responses = {**TEXT, **errors(408, 413, 429, 431, 503, 504)}
    live = {
        "operationId": "getLiveness",
        "tags": ["operations"],
        "summary": "The process runs",
        "description": "Answers as soon as the process runs, with or without a model.",
        "responses": responses,
    }
    ready = {
        "operationId": "getReadiness",
        "tags": ["operations"],
        "summary": "A verified model has run once",
        "description": "503 until then, and once the service is about to end. Of several models, "
        "each has run or failed to.",
        "responses": responses,
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "wgan-foundry",
            "version": __version__,
            "description": "Samples and critic scores of a Wasserstein GAN.",
            "contact": {"name": "whoever runs this service"},
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": ".", "description": "The service that this description comes from."}],
        "tags": [{"name": name, "description": says} for name, says in TAGS.items()],
        "paths": {**paths, "/livez": {"get": live}, "/readyz": {"get": ready}},
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
