"""Two, three and four processes, started once."""

import pytest
from marks import slow
from on_ranks import Ranks


@pytest.fixture(scope="session")
def two(free_port):
    """Two ranks; see `on_ranks.Ranks`."""
    ranks = Ranks(2, free_port)
    yield ranks
    ranks.end()


@pytest.fixture(scope="session")
def three(free_port):
    """Three ranks."""
    ranks = Ranks(3, free_port)
    yield ranks
    ranks.end()


@pytest.fixture(scope="session")
def four(free_port):
    """Four ranks."""
    ranks = Ranks(4, free_port)
    yield ranks
    ranks.end()


@pytest.fixture(params=[2, slow(3)])
def ranks(request):
    """Two ranks, then three; or as many as a test asks for, with `indirect`."""
    return request.getfixturevalue({2: "two", 3: "three", 4: "four"}[request.param])
