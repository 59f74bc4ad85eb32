"""The endpoints: a new one is a module here and a line in `ENDPOINTS`."""

from service import page
from service.endpoint import Endpoint
from service.endpoints import anomalies, docs, drift, imputations, metrics, model, samples, scores

ENDPOINTS: list[Endpoint] = [
    samples.ENDPOINT,
    imputations.ENDPOINT,
    scores.ENDPOINT,
    anomalies.ENDPOINT,
    model.RECORD,
    model.VERSIONS,
    model.PICTURE,
    drift.ENDPOINT,
    metrics.ENDPOINT,
    docs.DESCRIPTION,
    docs.PAGE,
    *page.ENDPOINTS,
]
