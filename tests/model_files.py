"""Model files taken apart and put together again, with right checksums: what a hostile writer could make."""

from __future__ import annotations

from safetensors.torch import load_file

from flawmap.model_file import ModelFile, Streamed, write_model_file


def contents(path):
    """The document and the tensors of a model file."""
    return ModelFile(path).document, load_file(path)


def assemble(path, document, tensors):
    """Write them; the rows of a gallery have their own checksums."""
    rows = {name: Streamed(value.shape, value.numpy()) for name, value in tensors.items() if name == "gallery"}
    write_model_file(path, document, {**tensors, **rows})
