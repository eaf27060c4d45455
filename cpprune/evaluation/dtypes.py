"""Data types that weights are stored in, and their sizes. Importable without torch."""

BYTES_PER_PARAMETER = {"fp32": 4, "fp16": 2, "int8": 1}
