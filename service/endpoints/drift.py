"""`GET /v1/drift`: compare recent scores with those of real held-out items."""

from __future__ import annotations

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
    report = await context.processors.run("drift", lambda: windows.report(served))
    if report is None:
        raise HTTPException(503, "the recent scores cannot be read; the service's log says why")
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
            **errors(400, 401, 404, 408, 413, 422, 429, 431, 503, 504),
        },
    },
    schemas=(Drift,),
    by_name="/v1/models/{name}/drift",
)
