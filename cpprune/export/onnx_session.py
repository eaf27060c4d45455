"""Sessions of onnxruntime on the CPU.

On x86 processors without VNNI (AVX2 alone), onnxruntime adds pairs of int8 products in 16 bits, which
saturate, unless its option `session.x64quantprecision` is 1. Here it is, so that an int8 model is
measured as it computes on all other processors.
"""

from __future__ import annotations

import onnx
import onnxruntime

EXACT = ("session.x64quantprecision", "1")


def open_session(
    model: onnx.ModelProto | bytes,
    *,
    threads: int | None = None,
    as_written: bool = False,
    exact: bool = True,
) -> onnxruntime.InferenceSession:
    """Return a session that computes a model.

    Args:
        model: the model, or contents of its file.
        threads: None for onnxruntime's default, the number of cores.
        as_written: whether the graph is computed operator by operator, not rewritten to be fast.
        exact: whether no product of int8 saturates.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if exact:
        options.add_session_config_entry(*EXACT)
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
