"""Marks for parameters of tests."""

from functools import partial

import pytest

# A case that only the long tests try.
slow = partial(pytest.param, marks=pytest.mark.slow)
