"""Private interfaces of ExecuTorch: a test fails when it changes what `cpprune.deps.executorch` uses."""

import sys

import pytest

from cpprune.deps.executorch import use_one_thread
from cpprune.export.quiet import quiet


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="`make setup` does not install it here")
def test_programs_run_in_one_thread():
    with quiet():  # its interface is experimental, and it says so
        from executorch.extension.pybindings import portable_lib

        use_one_thread()
    assert portable_lib._threadpool_get_thread_count() == 1
