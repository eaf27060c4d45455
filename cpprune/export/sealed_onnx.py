"""ONNX files that say what they are in their `metadata_props`, with a checksum of all of themselves."""

from __future__ import annotations

import hashlib
from dataclasses import asdict

import onnx

from cpprune.export.metadata import SEAL, UNSEALED, Metadata
from shards.files.documents import parse_json, to_json, typed


def seal(model: onnx.ModelProto, metadata: Metadata) -> bytes:
    """Return the bytes of an ONNX file that holds this metadata and the checksum of all of itself.

    The checksum is the SHA-256 of the file with 64 zeros in the checksum's place.
    """
    sealed = onnx.ModelProto()
    sealed.CopyFrom(model)
    values = {key: to_json(value) for key, value in asdict(metadata).items()}
    onnx.helper.set_model_props(sealed, {**values, SEAL: UNSEALED})
    data: bytes = sealed.SerializeToString(deterministic=True)
    assert data.count(UNSEALED.encode()) == 1
    return data.replace(UNSEALED.encode(), hashlib.sha256(data).hexdigest().encode())


def unseal(data: bytes) -> tuple[onnx.ModelProto, Metadata]:
    """Return the model in an ONNX file and its metadata.

    Raises:
        ValueError: the bytes are no ONNX file, not one of cpprune, or not those that cpprune wrote.
    """
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # of protobuf, which is not a dependency
        raise ValueError("is not a whole ONNX file") from error
    values = {entry.key: entry.value for entry in model.metadata_props}
    if SEAL not in values or "cpprune_version" not in values:
        raise ValueError(
            "is not an ONNX file of cpprune: it does not name its classes and front end"
        )
    digest = values.pop(SEAL).encode()
    unsealed = data.replace(digest, UNSEALED.encode()) if len(digest) == len(UNSEALED) else b""
    if hashlib.sha256(unsealed).hexdigest().encode() != digest:
        raise ValueError("does not match its checksum: it was changed or damaged")
    return model, typed(
        {key: parse_json(text.encode(), object) for key, text in values.items()}, Metadata
    )
