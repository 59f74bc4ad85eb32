"""`GET /v1/drift`: compare recent scores with those of real held-out items."""

from __future__ import annotations

import anyio.to_thread
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.drift import LEVEL
from service.endpoint import Context, Endpoint, choose_model, model_headers, queried_model
from service.openapi import MODEL_PARAMETER, errors, json_answer, ref


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


async def get_drift(context: Context, request: Request) -> Response:
    """Compare the scores of recent traffic with those of real held-out items."""
    windows = context.windows
    if not windows.size:
        raise HTTPException(404, "drift is off; the operator may set WGAN_DRIFT_WINDOW")
    served = choose_model(context, request, queried_model(request) or "champion")
    limiter = context.processors.limiter
    report = await anyio.to_thread.run_sync(windows.report, served, limiter=limiter)
    drifted = None if report.distance is None else report.distance > report.threshold
    answer = Drift(
        version=served.version,
        window=windows.size,
        level=LEVEL,
        drifted=drifted,
        **report._asdict(),
    )
    return JSONResponse(answer.model_dump(), headers=model_headers(served))


ENDPOINT = Endpoint(
    "GET",
    "/v1/drift",
    get_drift,
    {
        "operationId": "getDrift",
        "tags": ["operations"],
        "summary": "Recent traffic's scores against those of real data",
        "description": "Where the operator has it measured; otherwise a 404.",
        "parameters": [MODEL_PARAMETER],
        "responses": {
            **json_answer("The comparison.", ref(Drift)),
            **errors(400, 401, 404, 413, 422, 431, 503, 504),
        },
    },
    schemas=(Drift,),
)
