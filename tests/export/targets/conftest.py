"""Exported models, each made once."""

from collections.abc import Callable

import pytest
from export_jobs import job_of

from cpprune.export.target import Product, targets


@pytest.fixture(scope="session")
def product(exported: Callable) -> Callable[..., Product]:
    """Returns what a target makes of a model of MAKERS."""
    made: dict[tuple[str | None, ...], Product] = {}

    def get(target: str, name: str, kind: str | None = None, precision: str = "fp32") -> Product:
        key = (target, name, kind, precision)
        if key not in made:
            made[key] = targets()[target].make(job_of(exported(name).model, kind, precision))
        return made[key]

    return get
