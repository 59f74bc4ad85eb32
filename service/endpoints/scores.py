"""`POST /v1/scores`: score items with the critic."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, TypeVar

import anyio.from_thread
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.errors import OversizeError, ShapeError
from models.formats import read_items
from models.images import MAX_PIXELS
from service.endpoint import (
    Context,
    Endpoint,
    ModelName,
    choose_model,
    content_type,
    json_content,
    model_headers,
    parse_json,
    queried_model,
)
from service.forms import FORM, MAX_FILES, OR_FILES, TABLE_TYPES, read_upload
from service.limits import SMALL_BODY
from service.openapi import (
    BINARY,
    MODEL_DESCRIPTION,
    MODEL_HEADERS,
    MODEL_PARAMETER,
    errors,
    json_answer,
    ref,
)
from service.problems import BadRequest
from service.rows import to_table, unsuitable
from service.scoring import ScoreJob
from service.served import Served
from service.uploads import read_tables

if TYPE_CHECKING:  # torch is for the worker alone: importing it here costs the supervisor too
    from models.model import Model

Array = np.ndarray
T = TypeVar("T")
MAX_ITEMS = 1024
"""Items to score in one request."""


class Bounds(NamedTuple):
    """What one file may unpack to."""

    pixels: int
    bytes: int


SMALL = Bounds(2**22, 2**24)
"""Read as many at once as there are processors."""
LARGE = Bounds(MAX_PIXELS, 2**26)
"""Read one at a time, for all requests together: this bounds the memory."""


class ScoresRequest(BaseModel):
    """What to score: images (N,H,W[,C]), vectors (N,D), sequences (N,T,D), or rows.

    Images are whole numbers 0 to 255; of a model with `data.scale` numbers in the data's units.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"samples": [[0.5, -0.25]]}}
    )

    samples: list[Any] | None = Field(
        default=None, description="Items, each of the shape in GET /v1/model."
    )
    rows: list[dict[str, Any]] | None = Field(
        default=None,
        min_length=1,
        description="In place of samples, for a model with `data.table`: records by column name.",
    )
    classes: list[str] | None = Field(
        default=None, description="The class of each item: for a class-conditional model only."
    )
    model: ModelName | None = Field(default=None, description=MODEL_DESCRIPTION)
    resize: bool = Field(
        default=False,
        description="Bring images of other sizes or channels to the model's: the middle is cut out "
        "and resized, transparency laid on white. Otherwise such images are refused.",
    )

    @model_validator(mode="after")
    def _has_items(self) -> Self:
        if (self.samples is None) == (self.rows is None):
            raise ValueError("give samples; or rows, for a table with named columns")
        return self


class ScoresForm(BaseModel):
    """Files to score, as multipart/form-data."""

    files: list[Annotated[str, Field(json_schema_extra={"format": "binary"})]] = Field(
        min_length=1,
        max_length=MAX_FILES,
        description="PNG, JPEG, WebP, GIF, TIFF, BMP or AVIF images; npy arrays; npz files with "
        "one array, or one named `samples`. Of a model with `data.table`: CSV, Parquet or Arrow "
        "files of rows, whose columns are found by name. Never unpickled.",
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


async def read_and(
    work: Callable[[Callable[[], ScoreJob], bool], Awaitable[T]],
    context: Context,
    request: Request,
    require: Callable[[Served], None] = lambda served: None,
) -> T:
    """Work on items given as JSON or as files.

    Args:
        work: see `ScoreBatcher.score`.
        context: has the models.
        request: what the items come in.
        require: is told the model before any item is read; may raise.
    """
    queried, kind = queried_model(request), content_type(request)
    if kind in (FORM, *TABLE_TYPES):
        uploads, texts = await read_upload(request, kind, ("classes", "resize"), MAX_ITEMS + 1)
        classes = texts["classes"] or None
        if texts["resize"] not in ([], ["true"], ["false"]):
            raise BadRequest("the part named 'resize' is true or false")
        resize = texts["resize"] == ["true"]

        def read(bounds: Bounds) -> ScoreJob:
            served = choose_model(context, request, queried)
            require(served)
            return make_job(served, read_files(served.model, uploads, resize, bounds), classes)

        with contextlib.suppress(OversizeError):
            return await work(lambda: read(SMALL), True)  # it may take long
        async with context.one_large:
            return await work(lambda: read(LARGE), True)
    body = await json_content(request, OR_FILES)

    def read_body() -> ScoreJob:
        wanted = parse_json(body, ScoresRequest)
        if wanted.model and queried and wanted.model != queried:
            raise BadRequest("the query and the body name different models; name one")
        served = choose_model(context, request, wanted.model or queried)
        require(served)
        if wanted.rows is not None:
            items = to_codes(served.model, wanted.rows)
        else:
            items = to_items(served.model, to_array(wanted.samples or []), wanted.resize)
        return make_job(served, items, wanted.classes)

    async with context.turn(body):
        return await work(read_body, len(body) > SMALL_BODY)


async def post_scores(context: Context, request: Request) -> Response:
    """Score items given as JSON or as files."""
    result = await read_and(context.batcher.score, context, request)
    model = result.served.model
    answer = Scores(
        scores=result.scores.tolist(),
        percentiles=result.percentiles.tolist(),
        out_of_range=result.out_of_range.tolist(),
        normalized_scores=(result.scores / model.certified).tolist() if model.certified else None,
    )
    return JSONResponse(answer.model_dump(), headers=model_headers(result.served))


def make_job(served: Served, items: Array, classes: list[str] | None) -> ScoreJob:
    """Put items and their classes together, if they fit each other and the model."""
    labels = None if classes is None else np.array(list(map(served.model.label, classes)))
    served.model.require_labels(len(items), labels)
    return ScoreJob(served, items, labels)


def to_array(rows: list[Any]) -> Array:
    """Convert nested lists of numbers to float64.

    It goes through objects: left to guess, numpy takes true for 1, and makes every string as wide
    as the longest, which can be gigabytes from one small body.

    Raises:
        ShapeError: they do not make one array of numbers.
    """
    if len(rows) > MAX_ITEMS:
        raise ShapeError(f"over {MAX_ITEMS} items; at most {MAX_ITEMS} are scored at once")
    array = np.array(rows, dtype=object)
    if {type(value) for value in array.ravel()} - {int, float}:
        raise ShapeError("the samples do not make one array of numbers")
    try:
        return array.astype(np.float64)
    except OverflowError:
        raise ShapeError("the samples hold numbers too large for float64") from None


def to_codes(model: Model, rows: list[dict[str, Any]]) -> Array:
    """Code rows as the model takes them."""
    table = to_table(model, rows)
    with unsuitable():
        return model.codes(table)


def to_items(model: Model, values: Array, resize: bool) -> Array:
    """Convert values to items as the model takes them; an error says when resizing would help."""
    if model.table is not None:
        raise ShapeError("the model takes rows of named columns: give rows, or a file of them")
    if resize:
        return model.resized(values)
    try:
        return model.items(values)
    except ShapeError as error:
        channels, *size = model.shape if model.is_image else (0,)
        if values.ndim == 4 and size and [*values.shape[1:]] != [*size, channels]:
            raise ShapeError(f"{error}; with resize=true, images are brought to it") from None
        raise


def read_rows(model: Model, uploads: list[tuple[str, bytes]]) -> Array:
    """Code the rows in files, in order."""
    assert model.table is not None, "other models have no rows"
    parts = []
    for (name, _), table in zip(uploads, read_tables(uploads, model.table), strict=True):
        try:
            with unsuitable():
                parts.append(model.codes(table))
        except ShapeError as error:
            raise ShapeError(f"{name}: {error}") from None
    codes = np.concatenate(parts)
    if not len(codes):
        raise ShapeError("there are no rows to score")
    return codes


def require_size(model: Model, resize: bool, name: str, height: int, width: int) -> None:
    """Refuse an image, before it is decoded, that would not be scored anyway."""
    if not model.is_image:
        raise ShapeError(f"{name}: the model takes no images: see its shape in GET /v1/model")
    if not resize and (height, width) != model.shape[1:]:
        raise ShapeError(
            f"{name}: the model takes images of {model.shape[1]}x{model.shape[2]} pixels (height x "
            f"width), not {height}x{width}; with resize=true, images are brought to it"
        )


def read_files(
    model: Model, uploads: list[tuple[str, bytes]], resize: bool, bounds: Bounds = LARGE
) -> Array:
    """Read the items in files, in order; nothing beyond a bound is unpacked.

    The bounds hold for each file, and `MAX_ITEMS` and `MAX_PIXELS` for all of them together: a
    small file can decode to a thousand times its size.

    Raises:
        OversizeError: a file unpacks to more than the bounds.
    """
    if model.table is not None:
        if bounds is not LARGE:
            raise OversizeError("a file of rows may unpack to as much as is read one at a time")
        return read_rows(model, uploads)
    parts, pixels, items = [], MAX_PIXELS, MAX_ITEMS
    max_bytes = bounds.bytes
    if not resize:
        max_bytes = min(max_bytes, 8 * MAX_ITEMS * math.prod(model.shape))
    check = anyio.from_thread.check_cancelled
    for name, content in uploads:
        check()
        admit = functools.partial(require_size, model, resize, name)
        rows = read_items(content, name, items, min(pixels, bounds.pixels), max_bytes, admit, check)
        try:
            part = to_items(model, rows, resize)
        except ShapeError as error:
            raise ShapeError(f"{name}: {error}") from None
        items -= len(part)
        pixels -= math.prod(rows.shape[:3]) if model.is_image else 0
        if items < 0 or pixels < 0:
            raise ShapeError(f"{name}: at most {MAX_ITEMS} items, or {MAX_PIXELS} pixels, at once")
        parts.append(part)
    return np.concatenate(parts)


EXAMPLES: dict[str, dict[str, Any]] = {
    "vectors": {"summary": "Two vectors", "value": {"samples": [[0.5, -0.25], [3, 0]]}},
    "rows": {
        "summary": "A row of a table (here with these columns)",
        "value": {"rows": [{"carat": 0.23, "cut": "Ideal", "price": 326}]},
    },
    "image": {
        "summary": "A grey image of another size than the model's",
        "value": {"samples": [[[0, 255], [255, 0]]], "resize": True},
    },
}
REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": ref(ScoresRequest), "examples": EXAMPLES},
        FORM: {"schema": ref(ScoresForm)},
        **{kind: {"schema": BINARY} for kind in TABLE_TYPES},
    },
}
ENDPOINT = Endpoint(
    "POST",
    "/v1/scores",
    post_scores,
    {
        "operationId": "scoreItems",
        "tags": ["scores"],
        "summary": "Score items with the critic",
        "description": "Given as JSON, as files of a form, or as one file of rows.",
        "parameters": [MODEL_PARAMETER],
        "requestBody": REQUEST_BODY,
        "responses": {
            **json_answer("The scores.", ref(Scores), MODEL_HEADERS),
            **errors(400, 401, 403, 404, 408, 413, 415, 422, 429, 431, 503, 504),
        },
    },
    schemas=(ScoresRequest, ScoresForm, Scores),
    scope="scores",
    by_name="/v1/models/{name}/scores",
)
