"""What a search of MLflow finds, all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel


def all_pages(search: Callable[..., Any]) -> list[Any]:
    """Return what a search finds on all its pages; MLflow gives 100 models on one.

    Args:
        search: takes ``page_token``, and returns a list that has the next page's ``token``.
    """
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def model_named(api: MlflowClient, name: str) -> RegisteredModel | None:
    """Return a registered model, or None if there is none of that name."""
    from mlflow.exceptions import MlflowException

    try:
        return api.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def versions_of(api: MlflowClient, name: str) -> list[ModelVersion]:
    """Return the versions of a registered model, whatever its name.

    MLflow allows names with quotes, but in a query no quote within quotes of its own kind. Where a
    name has both kinds, everything is asked for.
    """
    quote = next((q for q in "'\"" if q not in name), None)
    query = f"name={quote}{name}{quote}" if quote else ""
    found = all_pages(lambda page_token: api.search_model_versions(query, page_token=page_token))
    return [version for version in found if version.name == name]
