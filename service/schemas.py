"""What the endpoints take and give, and the OpenAPI description made from it."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import models_json_schema

MAX_COUNT = 100_000
"""Samples in one request. They stream, so memory does not bound them, but a client's turn does."""
MAX_PICTURES = 1024
"""Samples in one grid, which is made as a whole; likewise latents and points that are given."""
MAX_ITEMS = 1024
"""Items to score in one request."""
MAX_FILES = 256
MAX_LATENT = 4096
"""Numbers in one latent."""
Role = Literal["champion", "challenger"]
ROLE_SAYS = (
    "Which model, where a challenger is served beside the champion. Left out: the champion, but "
    "for the share of requests that is configured to go to the challenger; X-Model-Version tells."
)
SampleFormat = Literal["png", "webp", "zip", "npz", "json", "csv"]
MEDIA_TYPES: dict[SampleFormat, str] = {
    "png": "image/png",
    "webp": "image/webp",
    "zip": "application/zip",
    "npz": "application/octet-stream",
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
}
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Latent = Annotated[float, Field(ge=-100, le=100)]
"""A standard normal number; far outside, a network is not defined by anything it has seen."""


class Interpolation(BaseModel):
    """A walk between the first samples of two seeds, along a great circle of latents."""

    model_config = ConfigDict(extra="forbid", strict=True)

    to: Seed = Field(description="The other seed.")
    at: list[Annotated[float, Field(ge=0, le=1)]] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_PICTURES,
        description="Where: from 0, at `seed`, to 1, at `to`. Left out: `count` points, evenly.",
    )


class SamplesRequest(BaseModel):
    """What to generate."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"count": 16, "seed": 7, "format": "png"}},
    )

    count: int = Field(
        default=1,
        ge=1,
        le=MAX_COUNT,
        description=f"How many. At most {MAX_PICTURES} in one picture (png, webp).",
    )
    seed: Seed | None = Field(
        default=None,
        description="The same seed and model version give the same bytes, and a longer request "
        "begins with the shorter one. Left out: a random one, told in X-Seed.",
    )
    class_: str | None = Field(
        default=None,
        alias="class",
        description="Of a class-conditional model: one of `data.classes` in GET /v1/model. Left "
        "out: classes as frequent as in training; for a walk, that of its first seed.",
    )
    truncation: float | None = Field(
        default=None,
        gt=0,
        le=5,
        description="The truncation trick: latents from a normal cut off at so many standard "
        "deviations. Less: more typical samples, but less varied ones.",
    )
    latents: list[Annotated[list[Latent], Field(max_length=MAX_LATENT)]] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_PICTURES,
        description="Latents (N, `config.generator.latent_size` in GET /v1/model), in place of "
        "count, seed, truncation and interpolation.",
    )
    interpolation: Interpolation | None = None
    refine: bool = Field(
        default=False,
        description="Move each latent one step up the critic's score first: some more samples lie "
        "where real items do, for five to eight times the generator's time. A score is no "
        "log-ratio of densities, so this is measured, not proven: see docs/service.md.",
    )
    model: Role | None = Field(default=None, description=ROLE_SAYS)
    format: SampleFormat = Field(
        default="png",
        description="png, webp (without loss): one grid, small images enlarged for the eye; zip: "
        "one PNG each; npz: an array `samples`, uint8 (N,H,W,C) or float32 (N,D) or (N,T,D); "
        "json: the same as nested lists; csv: a row for each, of vectors and tables alone.",
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        given = self.model_fields_set
        if self.latents is not None and (
            given & {"count", "seed"} or self.truncation is not None or self.interpolation
        ):
            raise ValueError("latents: leave out count, seed, truncation and interpolation")
        if self.interpolation and self.interpolation.at is not None and "count" in given:
            raise ValueError("interpolation.at: its length is the count; leave out count")
        if self.format in ("png", "webp") and self.count > MAX_PICTURES:
            raise ValueError(f"count: at most {MAX_PICTURES} as {self.format}; ask for zip")
        return self


class ScoresRequest(BaseModel):
    """What to score: (N,H,W[,C]) whole numbers 0 to 255, (N,D) or (N,T,D) numbers."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"samples": [[0.5, -0.25]]}}
    )

    samples: list[Any] = Field(description="Items, each of the shape in GET /v1/model.")
    classes: list[str] | None = Field(
        default=None, description="The class of each item: for a class-conditional model only."
    )
    model: Role | None = Field(default=None, description=ROLE_SAYS)
    resize: bool = Field(
        default=False,
        description="Bring images of other sizes or channels to the model's: the middle is cut out "
        "and resized, transparency laid on white. Otherwise such images are refused.",
    )


class ScoresForm(BaseModel):
    """Files to score, as multipart/form-data."""

    files: list[Annotated[str, Field(json_schema_extra={"format": "binary"})]] = Field(
        min_length=1,
        max_length=MAX_FILES,
        description="PNG, JPEG or WebP images; npy arrays; npz files with one array, or one named "
        "`samples`. Never unpickled.",
    )
    classes: list[str] | None = Field(
        default=None, description="The class of each item: for a class-conditional model only."
    )
    resize: Literal["true", "false"] = "false"


class Scores(BaseModel):
    """One entry for each item, in order: arrays side by side."""

    scores: list[float] = Field(
        description="Unbounded; higher is more like real data to this critic. No probability."
    )
    percentiles: list[float] = Field(
        description="Where each score stands among those of real held-out items, 0 to 100."
    )
    out_of_range: list[bool] = Field(
        description="True where a score lies outside all those of real held-out items."
    )
    normalized_scores: list[float] | None = Field(
        description="Scores divided by the critic's certified Lipschitz constant, where it has "
        "one: two items whose entries differ by d are at least d apart."
    )


class Version(BaseModel):
    """A version in the registry."""

    name: str
    version: str
    aliases: list[str]
    created: str
    constraint: str | None
    digest: str | None


class Serving(BaseModel):
    """A model that is being served."""

    role: Role
    version: str
    digest: str
    since: str


class Models(BaseModel):
    """The registry as the service sees it."""

    models: list[Version]
    registry_answers: bool | None = Field(
        description="Whether the list is fresh; null: no registry."
    )
    serving: list[Serving]


class Drift(BaseModel):
    """Scores of recent traffic against those of real held-out items."""

    version: str
    window: int = Field(description="Items that are compared: the last that were scored.")
    items: int = Field(description="How many of them there are yet.")
    distance: float | None = Field(
        description="W1 between the two distributions of scores, in score units; null until the "
        "window is full, as is what follows from it."
    )
    threshold: float = Field(
        description="What the distance of real data stays below in `level` of windows."
    )
    level: float
    drifted: bool | None
    lower_bound: float | None = Field(
        description="The distance divided by the critic's certified Lipschitz constant: W1 between "
        "the items themselves is at least this, in units of the critic's input. Null without a "
        "certified constant, or for a class-conditional model."
    )


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = None


ERRORS = {
    400: "The body does not follow the schema.",
    401: "No key, or an unknown one, where one is needed.",
    403: "The key lacks the scope for this.",
    404: "There is no such path.",
    405: "The path does not answer this method.",
    413: "The body is too large.",
    415: "A file, or the content type, is nothing we read.",
    422: "Well formed, but not what this model makes or takes.",
    431: "The headers are too large.",
    503: "No model is ready, or as many requests as can be are under way: try again.",
    504: "Not done in time.",
}
SEED_EXAMPLE = {"count": 16, "seed": 7, "format": "png"}
SAMPLES_EXAMPLES: dict[str, dict[str, Any]] = {
    "grid": {"summary": "A picture of 16 samples", "value": SEED_EXAMPLE},
    "table": {"summary": "A thousand rows", "value": {"count": 1000, "seed": 7, "format": "csv"}},
    "typical": {
        "summary": "Samples near the middle of the distribution",
        "value": {**SEED_EXAMPLE, "truncation": 0.7},
    },
    "refined": {
        "summary": "Guided by the critic",
        "value": {**SEED_EXAMPLE, "refine": True},
    },
    "walk": {
        "summary": "From one seed to another in ten steps",
        "value": {"count": 10, "seed": 7, "interpolation": {"to": 8}, "format": "webp"},
    },
    "class": {
        "summary": "Of one class of a class-conditional model",
        "value": {**SEED_EXAMPLE, "class": "3"},
    },
    "latents": {
        "summary": "Of a latent of one's own (here of a model whose latents have two numbers)",
        "value": {"latents": [[0.5, -1.25]], "format": "npz"},
    },
}


SCORES_EXAMPLES: dict[str, dict[str, Any]] = {
    "vectors": {"summary": "Two vectors", "value": {"samples": [[0.5, -0.25], [3, 0]]}},
    "image": {
        "summary": "A grey image of another size than the model's",
        "value": {"samples": [[[0, 255], [255, 0]]], "resize": True},
    },
}


def openapi(with_keys: bool = False) -> dict[str, Any]:
    """Describe every route.

    Args:
        with_keys: whether a key is needed.
    """
    reference = "#/components/schemas/{model}"
    models = (SamplesRequest, ScoresRequest, ScoresForm, Scores, Models, Drift, Problem)
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template=reference
    )

    def ref(model: type[BaseModel]) -> dict[str, Any]:
        return {"$ref": reference.format(model=model.__name__)}

    def errors(*statuses: int) -> dict[str, Any]:
        content = {"application/problem+json": {"schema": ref(Problem)}}
        return {str(s): {"description": ERRORS[s], "content": content} for s in statuses}

    headers = {
        name: {"schema": {"type": "string"}, "description": says}
        for name, says in (
            ("X-Model-Version", "Registry name and version, or the artifact's digest."),
            ("X-Constraint", "Kind of the critic constraint it was trained under."),
            ("X-Seed", "The seed used."),
        )
    }
    asked_for = {
        "name": "model",
        "in": "query",
        "schema": {"enum": ["champion", "challenger"]},
        "description": ROLE_SAYS,
    }
    binary = {"type": "string", "format": "binary"}
    kinds: dict[str, dict[str, Any]] = {"json": {"type": "object"}, "csv": {"type": "string"}}
    text = {"200": {"description": "OK", "content": {"text/plain": {}}}}
    description: dict[str, Any] = {
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
                        "content": {
                            "application/json": {
                                "schema": ref(SamplesRequest),
                                "examples": SAMPLES_EXAMPLES,
                            }
                        },
                    },
                    "responses": {
                        "200": {
                            "description": "The samples.",
                            "headers": headers,
                            "content": {
                                media.partition(";")[0]: {"schema": kinds.get(name, binary)}
                                for name, media in MEDIA_TYPES.items()
                            },
                        },
                        **errors(400, 401, 403, 413, 415, 422, 431, 503, 504),
                    },
                }
            },
            "/v1/scores": {
                "post": {
                    "summary": "Score items with the critic",
                    "parameters": [asked_for],
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {
                                "schema": ref(ScoresRequest),
                                "examples": SCORES_EXAMPLES,
                            },
                            "multipart/form-data": {"schema": ref(ScoresForm)},
                        },
                    },
                    "responses": {
                        "200": {
                            "description": "The scores.",
                            "headers": {h: headers[h] for h in list(headers)[:2]},
                            "content": {"application/json": {"schema": ref(Scores)}},
                        },
                        **errors(400, 401, 403, 413, 415, 422, 431, 503, 504),
                    },
                }
            },
            "/v1/model": {
                "get": {
                    "summary": "The model's record: constraint, data, quality, provenance",
                    "parameters": [asked_for],
                    "responses": {
                        "200": {
                            "description": "The record.",
                            "headers": {h: headers[h] for h in list(headers)[:2]},
                            "content": {"application/json": {"schema": {"type": "object"}}},
                        },
                        **errors(400, 401, 413, 422, 431, 503, 504),
                    },
                }
            },
            "/v1/models": {
                "get": {
                    "summary": "Versions and aliases in the registry, and which are served",
                    "responses": {
                        "200": {
                            "description": "Of the names that are served; none without a registry.",
                            "content": {"application/json": {"schema": ref(Models)}},
                        },
                        **errors(401, 413, 431, 503, 504),
                    },
                }
            },
            "/v1/model/samples.png": {
                "get": {
                    "summary": "Samples of this version, drawn when it was made",
                    "parameters": [asked_for],
                    "responses": {
                        "200": {
                            "description": "The picture; its ETag changes with the version.",
                            "headers": {"ETag": {"schema": {"type": "string"}}},
                            "content": {"image/png": {"schema": binary}},
                        },
                        "304": {"description": "As named by If-None-Match: unchanged."},
                        **errors(400, 401, 413, 422, 431, 503, 504),
                    },
                }
            },
            "/v1/drift": {
                "get": {
                    "summary": "Recent traffic's scores against those of real data",
                    "parameters": [asked_for],
                    "responses": {
                        "200": {
                            "description": "The comparison.",
                            "content": {"application/json": {"schema": ref(Drift)}},
                        },
                        **errors(400, 401, 404, 413, 422, 431, 503, 504),
                    },
                }
            },
            "/metrics": {
                "get": {
                    "summary": "Prometheus metrics",
                    "responses": {**text, **errors(401, 403, 413, 431)},
                }
            },
            "/livez": {
                "get": {
                    "summary": "The process runs",
                    "responses": {**text, **errors(413, 431)},
                }
            },
            "/readyz": {
                "get": {
                    "summary": "A verified model has run once",
                    "responses": {**text, **errors(413, 431, 503)},
                }
            },
        },
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    for path, operations in description["paths"].items():
        if with_keys and path.startswith("/v1/"):
            for operation in operations.values():
                operation["security"] = [{"key": []}]
    return description
