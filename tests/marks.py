"""Marks of tests and of their parameters."""

import platform
import sys
from functools import partial

import pytest

# A case that only the long tests try.
slow = partial(pytest.param, marks=pytest.mark.slow)

# For extras whose packages have wheels for one kind of machine only; `make setup` installs them there.
has_wheels = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="no wheels for this machine"
)
