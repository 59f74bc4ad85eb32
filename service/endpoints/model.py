"""`GET /v1/model`, `/v1/model/samples.png` and `/v1/models`: what is known of the models."""

from __future__ import annotations

import os

import anyio.to_thread
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.endpoint import Context, Endpoint, cached, choose_model, model_headers, queried_model
from service.holder import Role
from service.openapi import BINARY, MODEL_HEADERS, MODEL_PARAMETER, errors, json_answer, ref

BYTES = "application/octet-stream"


class Version(BaseModel):
    """A version in the registry."""

    name: str
    version: str
    aliases: list[str]
    created: str
    constraint: str | None
    digest: str | None


class Serving(BaseModel):
    """A version that is being served."""

    name: str = Field(description="The model's name in paths.")
    role: Role
    version: str
    digest: str
    since: str


class Models(BaseModel):
    """The registry as the service sees it, and what it serves."""

    names: list[str] = Field(description="Of the models, for paths; whether they are ready or not.")
    models: list[Version]
    age_seconds: float | None = Field(
        description="Seconds since the list was had from the registry; null: none was had yet."
    )
    registry_answers: bool | None = Field(
        description="Whether the registry answered the last question; null: no registry."
    )
    serving: list[Serving]


async def get_model(context: Context, request: Request) -> Response:
    """Tell all that is known of a model: the champion, unless the query names another."""
    served = choose_model(context, request, queried_model(request) or "champion")
    run = served.model.run.model_dump(mode="json", exclude={"history"})
    # The others cannot be asked for: the model has not seen them.
    run["data"]["classes"] = served.model.run.data.trained_classes
    run["data"]["class_counts"] = [n for n in run["data"]["class_counts"] if n]
    for card in (run["data"], run["config"]["data"]):  # may be a path of the training machine
        card["source"] = os.path.basename(card["source"])
    about: dict[str, object] = {
        "version": served.version,
        "role": served.role,
        "digest": served.model.digest,
        "shape": served.model.shape,
        "score_percentiles": served.model.quantiles[::10].tolist(),
        "serving_since": served.serving_since,
        "detector": None,
    }
    if served.detector is not None:
        card = served.detector.card
        about["detector"] = {
            **card.model_dump(),
            "source": os.path.basename(card.source),
            "smallest_p_value": 1 / (card.calibration_count + 1),
        }
    return JSONResponse({**about, **run}, headers=model_headers(served))


async def get_picture(context: Context, request: Request) -> Response:
    """Send the picture of samples that was drawn when the model was made."""
    served = choose_model(context, request, queried_model(request) or "champion")
    model, headers = served.model, {**model_headers(served), "Vary": "Accept"}
    # Generated clients do not know each kind of picture, but they know bytes.
    wants_bytes = request.headers.get("accept") == BYTES
    media_type = BYTES if wants_bytes else "image/png"
    return cached(request, model.picture, model.digest, media_type, headers)


async def get_models(context: Context, request: Request) -> Response:
    """Tell which versions the registry has, and which are served."""
    return await anyio.to_thread.run_sync(lambda: JSONResponse(context.holders.listing()))


RECORD = Endpoint(
    "GET",
    "/v1/model",
    get_model,
    {
        "operationId": "getModel",
        "tags": ["model"],
        "summary": "The model's record: constraint, data, quality, provenance",
        "description": "All that its artifact says, but for the history of its training.",
        "parameters": [MODEL_PARAMETER],
        "responses": {
            **json_answer("The record.", {"type": "object"}, MODEL_HEADERS),
            **errors(400, 401, 404, 408, 413, 422, 429, 431, 503, 504),
        },
    },
    by_name="/v1/models/{name}",
)
VERSIONS = Endpoint(
    "GET",
    "/v1/models",
    get_models,
    {
        "operationId": "listModels",
        "tags": ["model"],
        "summary": "Versions and aliases in the registry, and which are served",
        "description": "Of the names that are served alone.",
        "responses": {
            **json_answer("Of the names that are served; none without a registry.", ref(Models)),
            **errors(400, 401, 408, 413, 429, 431, 503, 504),
        },
    },
    schemas=(Models,),
)
PICTURE = Endpoint(
    "GET",
    "/v1/model/samples.png",
    get_picture,
    {
        "operationId": "getPicture",
        "tags": ["model"],
        "summary": "Samples of this version, drawn when it was made",
        "description": "The same picture as long as the version is the same.",
        "parameters": [MODEL_PARAMETER],
        "responses": {
            "200": {
                "description": "The picture; its ETag changes with the version.",
                "headers": {"ETag": {"schema": {"type": "string"}}},
                "content": {"image/png": {"schema": BINARY}, BYTES: {"schema": BINARY}},
            },
            "304": {"description": "As named by If-None-Match: unchanged."},
            **errors(400, 401, 404, 408, 413, 422, 429, 431, 503, 504),
        },
    },
    by_name="/v1/models/{name}/samples.png",
)
