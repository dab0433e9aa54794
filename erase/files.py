"""Files that are never half written: temporary name, fsync, rename; and their hashes."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


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
