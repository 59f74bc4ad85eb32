"""`POST /v1/imputations`: fill the gaps of rows."""

from __future__ import annotations

import secrets
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.endpoint import (
    Context,
    Endpoint,
    ModelName,
    choose_model,
    model_headers,
    read_json,
    spend_samples,
)
from service.endpoints.samples import RANDOM_SEEDS, Seed
from service.openapi import HEADERS, MODEL_DESCRIPTION, errors, json_answer, ref
from service.rows import MAX_ROWS, to_table, unsuitable


class ImputationsRequest(BaseModel):
    """Rows with gaps."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"rows": [{"cut": "Ideal", "price": None}], "seed": 0}},
    )

    rows: list[dict[str, Any]] = Field(
        min_length=1,
        description=f"Records by column name, at most {MAX_ROWS}. A cell that is null, or is not "
        "there, is a gap.",
    )
    seed: Seed | None = Field(
        default=None,
        description="Each seed gives another completion, and the same one every time. Left out: a "
        "random one, told in X-Seed.",
    )
    model: ModelName | None = Field(default=None, description=MODEL_DESCRIPTION)


class Imputations(BaseModel):
    """Completed rows, in order."""

    rows: list[dict[str, Any]] = Field(
        description="Known cells as they were, and a value in every gap."
    )
    seed: int


async def post_imputations(context: Context, request: Request) -> Response:
    """Fill the gaps of rows with what the model makes beside their known cells."""
    wanted = await read_json(context, request, ImputationsRequest)
    served = choose_model(context, request, wanted.model)
    spend_samples(context, request, len(wanted.rows))
    seed = secrets.randbelow(RANDOM_SEEDS) if wanted.seed is None else wanted.seed

    def complete() -> dict[str, Any]:
        from models.tables.files import records

        rows = to_table(served.model, wanted.rows)
        with unsuitable():
            completed = served.model.impute(rows, seed)
        context.metrics.samples.labels(*served.labels).inc(len(completed))
        return {"rows": records(completed), "seed": seed}

    answer = await context.processors.run("imputations", complete)
    return JSONResponse(answer, headers={**model_headers(served), "X-Seed": str(seed)})


ENDPOINT = Endpoint(
    "POST",
    "/v1/imputations",
    post_imputations,
    {
        "operationId": "imputeRows",
        "tags": ["samples"],
        "summary": "Fill the gaps of a table's rows",
        "description": "With what the model makes beside the known cells, which stay as they are.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ref(ImputationsRequest)}},
        },
        "responses": {
            **json_answer("The completed rows.", ref(Imputations), HEADERS),
            **errors(400, 401, 403, 404, 408, 413, 415, 422, 429, 431, 503, 504),
        },
    },
    schemas=(ImputationsRequest, Imputations),
    scope="samples",
    by_name="/v1/models/{name}/imputations",
)
