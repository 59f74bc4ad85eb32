"""`POST /v1/imputations`: fill the gaps of rows."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.endpoint import (
    Context,
    Endpoint,
    ModelName,
    choose_model,
    content_type,
    model_headers,
    read_json,
    spend_samples,
)
from service.endpoints.samples import KINDS, MEDIA_TYPES, RANDOM_SEEDS, Seed
from service.forms import FORM, OR_FILES, TABLE_TYPES, read_upload
from service.openapi import BINARY, HEADERS, MODEL_DESCRIPTION, MODEL_PARAMETER, errors, ref
from service.problems import BadRequest, describe
from service.rows import MAX_ROWS, require_table, to_table, unsuitable
from service.served import Served
from service.uploads import read_tables

if TYPE_CHECKING:  # torch is for the worker alone: importing it here costs the supervisor too
    import pyarrow as pa

RowsFormat = Literal["json", "csv", "npz", "parquet", "arrow"]
SEED_DESCRIPTION = (
    "Each seed gives another completion, and the same one every time. Left out: a random one, told "
    "in X-Seed."
)
FORMAT_DESCRIPTION = (
    "Of the answer. Left out: json for JSON; for a file, what it is itself: csv, parquet or arrow."
)


class ImputationsOptions(BaseModel):
    """How to fill gaps: fields of a JSON body, or the query beside a file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seed: Seed | None = Field(default=None, description=SEED_DESCRIPTION)
    model: ModelName | None = Field(default=None, description=MODEL_DESCRIPTION)
    format: RowsFormat | None = Field(default=None, description=FORMAT_DESCRIPTION)


class ImputationsRequest(ImputationsOptions):
    """Rows with gaps."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"rows": [{"cut": "Ideal", "price": None}], "seed": 0}}
    )

    rows: list[dict[str, Any]] = Field(
        min_length=1,
        description=f"Records by column name, at most {MAX_ROWS}. A cell that is null, or is not "
        "there, is a gap.",
    )


class ImputationsForm(BaseModel):
    """A file of rows with gaps, as multipart/form-data."""

    files: list[Annotated[str, Field(json_schema_extra={"format": "binary"})]] = Field(
        min_length=1,
        max_length=1,
        description=f"One CSV, Parquet or Arrow file of at most {MAX_ROWS} rows, whose columns are "
        "found by name. An empty cell is a gap, and so is each cell of a column that is not there.",
    )


class Imputations(BaseModel):
    """Completed rows, in order."""

    rows: list[dict[str, Any]] = Field(
        description="Known cells as they were, and a value in every gap."
    )
    seed: int


async def post_imputations(context: Context, request: Request) -> Response:
    """Fill the gaps of rows with what the model makes beside their known cells."""
    kind = content_type(request)
    if kind in (FORM, *TABLE_TYPES):
        served, wanted, rows = await read_file(context, request, kind)
    else:
        served, wanted, rows = await read_records(context, request)
    spend_samples(context, request, len(rows))
    seed = secrets.randbelow(RANDOM_SEEDS) if wanted.seed is None else wanted.seed
    headers = {**model_headers(served), "X-Seed": str(seed)}

    def complete() -> Response:
        from models.tables.files import records, write_rows

        with unsuitable():
            completed = served.model.impute(rows, seed)
        context.metrics.samples.labels(*served.labels).inc(len(completed))
        if wanted.format in (None, "json"):
            return JSONResponse({"rows": records(completed), "seed": seed}, headers=headers)
        content = b"".join(write_rows([completed], wanted.format))
        return Response(content, headers=headers, media_type=MEDIA_TYPES[wanted.format])

    return await context.processors.run("imputations", complete)


async def read_records(
    context: Context, request: Request
) -> tuple[Served, ImputationsOptions, pa.Table]:
    """Read rows that are records in a JSON body, and what is wanted of them."""
    if request.query_params:
        raise BadRequest("beside JSON there is no query: give seed, model and format in the body")
    wanted = await read_json(context, request, ImputationsRequest, OR_FILES)
    served = choose_model(context, request, wanted.model)
    rows = await context.processors.run("rows", lambda: to_table(served.model, wanted.rows))
    return served, wanted, rows


async def read_file(
    context: Context, request: Request, kind: str
) -> tuple[Served, ImputationsOptions, pa.Table]:
    """Read rows that are a file, and what the query wants of them."""
    try:
        wanted = ImputationsOptions.model_validate_strings(dict(request.query_params))
    except ValidationError as error:
        raise describe(error, "query") from None
    uploads, _ = await read_upload(request, kind)
    if len(uploads) > 1:
        raise BadRequest("send one file: the answer is one, with its rows completed")
    served = choose_model(context, request, wanted.model)
    schema = require_table(served.model)

    def read() -> tuple[RowsFormat, pa.Table]:
        from models.tables.records import file_format

        return file_format(uploads[0][1]), read_tables(uploads, schema)[0]

    async with context.one_large:
        own_format, rows = await context.processors.run("rows", read)
    return served, wanted.model_copy(update={"format": wanted.format or own_format}), rows


PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "seed",
        "in": "query",
        "schema": {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**63},
        "description": f"Beside a file. {SEED_DESCRIPTION}",
    },
    {
        "name": "format",
        "in": "query",
        "schema": {"type": "string", "enum": list(get_args(RowsFormat))},
        "description": f"Beside a file. {FORMAT_DESCRIPTION}",
    },
    {**MODEL_PARAMETER, "description": f"Beside a file. {MODEL_DESCRIPTION}"},
]
ENDPOINT = Endpoint(
    "POST",
    "/v1/imputations",
    post_imputations,
    {
        "operationId": "imputeRows",
        "tags": ["samples"],
        "summary": "Fill the gaps of a table's rows",
        "description": "With what the model makes beside the known cells, which stay as they are. "
        "Rows are JSON, one file of a form, or a file that is the body.",
        "parameters": PARAMETERS,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": ref(ImputationsRequest)},
                FORM: {"schema": ref(ImputationsForm)},
                **{kind: {"schema": BINARY} for kind in TABLE_TYPES},
            },
        },
        "responses": {
            "200": {
                "description": "The completed rows.",
                "headers": HEADERS,
                "content": {
                    "application/json": {"schema": ref(Imputations)},
                    **{
                        MEDIA_TYPES[name].partition(";")[0]: {"schema": KINDS.get(name, BINARY)}
                        for name in get_args(RowsFormat)
                        if name != "json"
                    },
                },
            },
            **errors(400, 401, 403, 404, 408, 413, 415, 422, 429, 431, 503, 504),
        },
    },
    schemas=(ImputationsRequest, ImputationsForm, Imputations),
    scope="samples",
    by_name="/v1/models/{name}/imputations",
)
