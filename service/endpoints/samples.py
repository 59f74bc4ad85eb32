"""`POST /v1/samples`: generate samples."""

from __future__ import annotations

import secrets
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import anyio.from_thread
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from models.errors import ShapeError
from models.formats import stream_samples
from models.tables.conditions import Condition
from service.endpoint import (
    Context,
    Endpoint,
    ModelName,
    choose_model,
    model_headers,
    read_json,
    spend_samples,
)
from service.metrics import SampleTimer
from service.openapi import BINARY, HEADERS, MODEL_DESCRIPTION, errors, ref
from service.served import Served

if TYPE_CHECKING:  # torch is for the worker alone: importing it here costs the supervisor too
    from models.model import Model

Array = np.ndarray
MAX_COUNT = 100_000
"""Samples in one request. They are streamed: this bounds the time of a request, not its memory."""
MAX_PICTURES = 1024
"""Samples in one grid, which is made as a whole; also latents and points that a client gives."""
MAX_LATENT = 4096
"""Numbers in one latent."""
TURN_SECONDS, TURN_BYTES = 0.1, 2**18
"""Time and bytes after which a request gives its processor up and queues again."""
MAX_VALUES = 1024
"""Values that a column is asked to have one of, or none of."""
MAX_TEXT = 1000
"""Characters in a name or value of a condition."""
SampleFormat = Literal["png", "webp", "zip", "npz", "json", "csv", "parquet", "arrow"]
MEDIA_TYPES: dict[SampleFormat, str] = {
    "png": "image/png",
    "webp": "image/webp",
    "zip": "application/zip",
    "npz": "application/octet-stream",
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.file",
}
Seed = Annotated[int, Field(ge=0, lt=2**63)]
RANDOM_SEEDS = 2**53
"""Seeds are drawn below this: JavaScript does not tell all larger whole numbers apart, so a client
in it could not send such a seed back."""
Latent = Annotated[float, Field(ge=-100, le=100)]
"""A standard normal number. Far outside this range, a network has never been trained."""


class Interpolation(BaseModel):
    """A walk between the first samples of two seeds, along a great circle of latents."""

    model_config = ConfigDict(extra="forbid", strict=True)

    to: Seed = Field(description="The other seed.")
    at: list[Annotated[float, Field(ge=0, le=1)]] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_PICTURES,
        description="Where: from 0, at `seed`, to 1, at `to`; `count` is their number. Left out: "
        "`count` points, evenly.",
    )


def _drop_default(schema: dict[str, Any]) -> None:
    """Tell no default in a field's schema."""
    del schema["default"]


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
        "begins with the shorter one. Left out: a random one below 2^53, told in X-Seed.",
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
        "seed, truncation and interpolation; `count` is their number.",
    )
    interpolation: Interpolation | None = None
    where: dict[str, Condition] | None = Field(
        default=None,
        min_length=1,
        description="Of a table: what every row must meet, by column. A value, a list of values, "
        "null for no value, or a range. `data.table` in GET /v1/model has the columns.",
    )
    refine: bool = Field(
        default=False,
        description="Move each latent one step up the critic's score first: some more samples lie "
        "where real items do, for five to eight times the generator's time. A score is no "
        "log-ratio of densities, so this is measured, not proven: see docs/service.md.",
    )
    model: ModelName | None = Field(default=None, description=MODEL_DESCRIPTION)
    format: SampleFormat = Field(
        default="png",  # of images; see `format_for`
        json_schema_extra=_drop_default,
        description="Left out: png of images, else json. png, webp (without loss): one grid, small "
        "images enlarged for the eye; zip: one PNG each; npz: an array `samples`, uint8 "
        "(N,H,W,C), or (N,D) or (N,T,D) in float32, or in float64 if `data.dtype` in GET "
        "/v1/model says so. Images with a `data.scale` there are float32 too, and pictures show "
        "their range as grey levels. json: the same as npz in nested lists; csv: a row for each, "
        "of vectors and tables alone. Of a model with `data.table`: csv; json, as records; npz, an "
        "array for each column; parquet; arrow (Feather).",
    )

    def format_for(self, model: Model) -> SampleFormat:
        """Return the format, by default what suits the model."""
        is_given = "format" in self.model_fields_set
        return self.format if is_given or model.is_image else "json"

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        given: list[Any] | None = self.latents
        if self.latents is not None:
            if any(f is not None for f in (self.seed, self.truncation, self.interpolation)):
                raise ValueError("latents: leave out seed, truncation and interpolation")
        elif self.interpolation:
            given = self.interpolation.at
        # Generated clients send every default, so a count of 1 says nothing.
        if given is not None and self.count not in (1, len(given)):
            raise ValueError(f"count: leave it out, or give the number of points, {len(given)}")
        for name, condition in (self.where or {}).items():
            values = *(condition.one_of or ()), *condition.none_of
            if len(values) > MAX_VALUES:
                raise ValueError(f"where: at most {MAX_VALUES} values of a column")
            ends = condition.above, condition.at_least, condition.below, condition.at_most
            if any(is_too_large(value) for value in (name, *values, *ends)):
                raise ValueError(f"where: numbers of 64 bits, texts up to {MAX_TEXT} characters")
        return self


def is_too_large(value: object) -> bool:
    """Tell if a value of a condition is longer than any that a column has."""
    if isinstance(value, str):
        return len(value) > MAX_TEXT
    return isinstance(value, int) and abs(value) >= 2**64


async def post_samples(context: Context, request: Request) -> Response:
    """Generate samples; an answer that takes long is streamed."""
    wanted = await read_json(context, request, SamplesRequest)
    served = choose_model(context, request, wanted.model)
    seed = wanted.seed
    if seed is None and wanted.latents is None:
        seed = secrets.randbelow(RANDOM_SEEDS)
    format = wanted.format_for(served.model)
    batches, count = generate(served.model, wanted, seed)
    if format in ("png", "webp") and count > MAX_PICTURES:
        raise ShapeError(f"count: at most {MAX_PICTURES} as {format}; ask for zip")
    spend_samples(context, request, count)
    is_inline = count <= served.inline_limit and not wanted.refine
    work = SampleWork(context, served, format, is_inline)
    # Given latents have none, but the same ones give the same rows.
    row_seed = zlib.crc32(np.array(wanted.latents, np.float32).tobytes()) if seed is None else seed
    seed_fact, seed_header = {}, {}
    if seed is not None:
        seed_fact, seed_header = {"seed": seed}, {"X-Seed": str(seed)}

    def encode() -> Iterator[bytes]:
        # A generator, so that nothing is made before the first turn.
        parts = work.watch(batches)
        yield from stream_samples(
            served.model, parts, count, format, seed_fact, wanted.where, seed=row_seed
        )

    pieces = encode()
    headers = {**model_headers(served), **seed_header}
    media_type = MEDIA_TYPES[format]
    # The first turn comes before the status is sent: its errors can still be answered.
    first, is_all = await work.next_turn(pieces, is_inline)
    if is_all:
        return Response(first, headers=headers, media_type=media_type)

    async def content() -> AsyncIterator[bytes]:
        yield first
        is_all = False
        while not is_all:
            piece, is_all = await work.next_turn(pieces)
            yield piece

    return StreamingResponse(content(), headers=headers, media_type=media_type)


def generate(model: Model, wanted: SamplesRequest, seed: int | None) -> tuple[Iterator[Array], int]:
    """Return an iterator that makes samples in batches, and how many there are in all."""
    model = model.refined if wanted.refine else model
    label = None if wanted.class_ is None else model.label(wanted.class_)
    restrictions = None if wanted.where is None else model.restrict(wanted.where)
    if wanted.latents is not None:
        sizes = {len(latent) for latent in wanted.latents}
        if wrong := sizes - {model.latent_size}:
            raise ShapeError(f"a latent has {model.latent_size} numbers here, not {min(wrong)}")
        latents = np.array(wanted.latents, np.float32)
        return model.decode(latents, label, restrictions), len(latents)
    assert seed is not None
    if wanted.interpolation is not None:
        to, at = wanted.interpolation.to, wanted.interpolation.at
        points = np.linspace(0, 1, wanted.count) if at is None else np.array(at)
        walk = model.walk(seed, to, points, label, wanted.truncation, restrictions)
        return walk, len(points)
    samples = model.samples(seed, wanted.count, 0, label, wanted.truncation, restrictions)
    return samples, wanted.count


class SampleWork:
    """The work of one request, done in turns so that long and short requests share processors.

    Args:
        context: has the processors.
        served: the model.
        format: file format of the samples.
        is_inline: so few samples that they are made on the event loop.
    """

    def __init__(self, context: Context, served: Served, format: str, is_inline: bool) -> None:
        self._context = context
        self._timer = SampleTimer(context.metrics, served, format)
        self._samples = context.metrics.samples.labels(*served.labels)
        self._is_inline = is_inline

    def watch(self, batches: Iterator[Array]) -> Iterator[Array]:
        """Time and count batches as they are made; in a thread, stop when the client has left."""
        while True:
            if not self._is_inline:
                anyio.from_thread.check_cancelled()
            with self._timer.generating():
                batch = next(batches, None)
            if batch is None:
                return
            self._samples.inc(len(batch))
            yield batch

    async def next_turn(self, pieces: Iterator[bytes], inline: bool = False) -> tuple[bytes, bool]:
        """Make the next bytes to send, in a thread unless ``inline``; True if they are the last."""

        def make() -> tuple[bytes, bool]:
            made, size, until = [], 0, time.monotonic() + TURN_SECONDS
            with self._timer.working():
                for piece in pieces:
                    made.append(piece)
                    size += len(piece)
                    if size >= TURN_BYTES or time.monotonic() > until:
                        return b"".join(made), False
            self._timer.done()
            return b"".join(made), True

        if inline:
            with self._context.tracing.span("samples"):
                return make()
        return await self._context.processors.run("samples", make)


SEED_EXAMPLE = {"count": 16, "seed": 7, "format": "png"}
EXAMPLES: dict[str, dict[str, Any]] = {
    "grid": {"summary": "A picture of 16 samples", "value": SEED_EXAMPLE},
    "table": {"summary": "A thousand rows", "value": {"count": 1000, "seed": 7, "format": "csv"}},
    "where": {
        "summary": "Rows under conditions (here of a table with these columns)",
        "value": {
            "count": 100,
            "where": {"cut": "Ideal", "color": ["D", "E"], "price": {"above": 5000}},
            "format": "json",
        },
    },
    "typical": {
        "summary": "Samples near the middle of the distribution",
        "value": {**SEED_EXAMPLE, "truncation": 0.7},
    },
    "refined": {"summary": "Guided by the critic", "value": {**SEED_EXAMPLE, "refine": True}},
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


KINDS: dict[str, dict[str, Any]] = {"json": {"type": "object"}, "csv": {"type": "string"}}
ENDPOINT = Endpoint(
    "POST",
    "/v1/samples",
    post_samples,
    {
        "operationId": "generateSamples",
        "tags": ["samples"],
        "summary": "Generate samples",
        "description": "As a picture, an archive, an array or rows. A long answer is streamed.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ref(SamplesRequest), "examples": EXAMPLES}},
        },
        "responses": {
            "200": {
                "description": "The samples.",
                "headers": HEADERS,
                "content": {
                    media.partition(";")[0]: {"schema": KINDS.get(name, BINARY)}
                    for name, media in MEDIA_TYPES.items()
                },
            },
            **errors(400, 401, 403, 404, 408, 413, 415, 422, 429, 431, 503, 504),
        },
    },
    schemas=(SamplesRequest,),
    scope="samples",
    by_name="/v1/models/{name}/samples",
)
