"""What the endpoints take and give, and the OpenAPI description made from it."""

from __future__ import annotations

import importlib.metadata
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_COUNT = 1024
"""Samples, or items to score, in one request."""
MAX_FILES = 256
SampleFormat = Literal["png", "zip", "npz", "json"]
MEDIA_TYPES: dict[SampleFormat, str] = {
    "png": "image/png",
    "zip": "application/zip",
    "npz": "application/octet-stream",
    "json": "application/json",
}


class SamplesRequest(BaseModel):
    """What to generate."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"count": 16, "seed": 7, "format": "png"}},
    )

    count: int = Field(default=1, ge=1, le=MAX_COUNT)
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="The same seed and model version give the same bytes, and a longer request "
        "begins with the shorter one. Left out: a random one, told in X-Seed.",
    )
    class_: str | None = Field(
        default=None,
        alias="class",
        description="Of a class-conditional model: one of `data.classes` in GET /v1/model. Left "
        "out: classes as frequent as in training.",
    )
    format: SampleFormat = Field(
        default="png",
        description="png: one grid, small images enlarged for the eye; zip: one PNG each; npz: an "
        "array `samples`, uint8 (N,H,W,C) or float32 (N,D); json: the same as nested lists.",
    )


class ScoresRequest(BaseModel):
    """What to score: (N,H,W[,C]) whole numbers 0 to 255, or (N,D) numbers."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"samples": [[0.5, -0.25]]}}
    )

    samples: list[Any] = Field(description="Items, each of the shape in GET /v1/model.")
    classes: list[str] | None = Field(
        default=None, description="The class of each item: for a class-conditional model only."
    )


class Scores(BaseModel):
    """One entry for each item, in order."""

    scores: list[float] = Field(
        description="Unbounded; higher is more like real data to this critic. No probability."
    )
    percentiles: list[float] = Field(
        description="Where each score stands among those of real held-out items, 0 to 100."
    )


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = None


def openapi() -> dict[str, Any]:
    """Describe every route."""
    reference = "#/components/schemas/{model}"

    def schema(model: type[BaseModel]) -> dict[str, Any]:
        return model.model_json_schema(ref_template=reference)

    def ref(model: type[BaseModel]) -> dict[str, Any]:
        return {"$ref": reference.format(model=model.__name__)}

    def errors(*statuses: int) -> dict[str, Any]:
        content = {"application/problem+json": {"schema": ref(Problem)}}
        says = {
            400: "The body does not follow the schema.",
            413: "The body is too large.",
            415: "A file, or the content type, is nothing we read.",
            422: "Well formed, but not what this model makes or takes.",
            503: "No model is ready.",
            504: "Not done in time.",
        }
        return {str(s): {"description": says[s], "content": content} for s in statuses}

    headers = {
        name: {"schema": {"type": "string"}, "description": says}
        for name, says in (
            ("X-Model-Version", "Registry name and version, or the artifact's digest."),
            ("X-Constraint", "Kind of the critic constraint it was trained under."),
            ("X-Seed", "The seed used."),
        )
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    text = {"200": {"description": "OK", "content": {"text/plain": {}}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "wgan-foundry",
            "version": importlib.metadata.version("wgan-foundry"),
            "description": "Samples and critic scores of a Wasserstein GAN.",
        },
        "paths": {
            "/v1/samples": {
                "post": {
                    "summary": "Generate samples",
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": ref(SamplesRequest)}},
                    },
                    "responses": {
                        "200": {
                            "description": "The samples.",
                            "headers": headers,
                            "content": {m: binary for m in MEDIA_TYPES.values() if "json" not in m}
                            | {"application/json": {"schema": {"type": "object"}}},
                        },
                        **errors(400, 413, 415, 422, 503, 504),
                    },
                }
            },
            "/v1/scores": {
                "post": {
                    "summary": "Score items with the critic",
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {"schema": ref(ScoresRequest)},
                            "multipart/form-data": {
                                "schema": {
                                    "type": "object",
                                    "required": ["files"],
                                    "properties": {
                                        "files": {
                                            "type": "array",
                                            "items": binary["schema"],
                                            "description": "PNG, JPEG, WebP, npy or npz.",
                                        }
                                    },
                                }
                            },
                        },
                    },
                    "responses": {
                        "200": {
                            "description": "The scores.",
                            "content": {"application/json": {"schema": ref(Scores)}},
                        },
                        **errors(400, 413, 415, 422, 503, 504),
                    },
                }
            },
            "/v1/model": {
                "get": {
                    "summary": "The model's record: constraint, data, quality, provenance",
                    "responses": {
                        "200": {
                            "description": "The record.",
                            "content": {"application/json": {"schema": {"type": "object"}}},
                        },
                        **errors(503),
                    },
                }
            },
            "/metrics": {"get": {"summary": "Prometheus metrics", "responses": text}},
            "/livez": {"get": {"summary": "The process runs", "responses": text}},
            "/readyz": {
                "get": {
                    "summary": "A verified model has run once",
                    "responses": {**text, **errors(503)},
                }
            },
        },
        "components": {
            "schemas": {
                m.__name__: schema(m) for m in (SamplesRequest, ScoresRequest, Scores, Problem)
            }
        },
    }
