"""Files that are never half written: temporary name, fsync, rename; and their hashes."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that becomes `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(value: Any, path: Path) -> None:
    """Write indented JSON atomically."""
    write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", path)


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors and header metadata atomically; the same tensors and metadata give the same bytes.

    The metadata stands under one key, as JSON in order: the library writes several keys in random order.
    """
    header = {"erase": json.dumps(metadata, sort_keys=True)}
    with atomic(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=header)


def stream_safetensors(
    parts: Mapping[str, Sequence[Tensor]], path: Path, metadata: dict[str, str], dtype: torch.dtype | None = None
) -> None:
    """Write tensors, each given as parts that follow one another along dimension 0, with one part at a time in memory; atomic.

    Values are cast to the dtype (None: each tensor's own). The same content gives the same bytes. Raises ValueError if a value
    is not finite or does not fit the dtype.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in sorted(parts):
        first = parts[name][0]
        shape = [sum(part.shape[0] for part in parts[name]), *first.shape[1:]]
        written = dtype or first.dtype
        begin, end = end, end + math.prod(shape) * written.itemsize
        header[name] = {"dtype": _DTYPES[written], "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data start at a multiple of 8
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in sorted(parts):
            for part in parts[name]:
                values = part.detach().cpu().to(dtype or part.dtype).contiguous()
                if not torch.isfinite(values).all():
                    raise ValueError(_not_finite(name, part, values.dtype))
                file.write(values.view(-1).view(torch.uint8).numpy().data)


def _not_finite(name: str, values: Tensor, dtype: torch.dtype) -> str:
    if torch.isfinite(values).all():
        return f"{name} has values too large for {str(dtype).removeprefix('torch.')}; give --dtype bfloat16 or float32."
    return f"{name} has values that are not finite (nan or inf): the model is broken, nothing was written."


def require_new(path: Path) -> None:
    """Raise ValueError if the output is there already: nothing is overwritten."""
    if path.exists():
        raise ValueError(f"{path} is there already; give another --out.")


def require_space(path: Path, num_bytes: int) -> None:
    """Raise ValueError if the disk that will hold `path` has fewer free bytes than the output needs."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ValueError(
            f"{path} needs {num_bytes / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; make room or give another --out."
        )


def metadata_of(file: Any) -> dict[str, str]:
    """The metadata that `write_safetensors` put into an open safetensors file; empty if it is another's."""
    metadata = json.loads((file.metadata() or {}).get("erase", "{}"))
    if not isinstance(metadata, dict):
        raise ValueError("its header is not a mapping")
    return metadata


def sha256(path: Path) -> str:
    """Hash of a file, or of a folder's files with their names."""
    digest = hashlib.sha256()
    if path.is_dir():
        for child in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{child.relative_to(path).as_posix()} {sha256(child)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_of(value: Any) -> str:
    """Hash of a JSON value, keys in order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
