"""What is used of ExecuTorch beyond its documented interface."""

from __future__ import annotations


def use_one_thread() -> None:
    """Make all programs of this process run in one thread, as latency is measured.

    Without it, there is a thread for each core. The pool must not be replaced while a program is loaded
    that was loaded with another, so the number stays.
    """
    from executorch.extension.pybindings import portable_lib

    if portable_lib._threadpool_get_thread_count() != 1:
        portable_lib._unsafe_reset_threadpool(1)
