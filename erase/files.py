"""Files that are never half written: temporary name, fsync, rename; and their hashes."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from erase.reading import parse_json

_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
}
_IN_FILE = {dtype: k for k, dtype in enumerate(_DTYPES)}  # the library writes them in this order


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that becomes `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        with disk_errors(path):
            yield temporary
        temporary.chmod(0o644)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)  # the new name, too, is to outlast a power cut
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, from the system's memory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the safetensors library says of a full or broken disk as the OSError that it is, naming the file."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


# what a full disk, a quota and a limit on a file's size are called
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# what `atomic`, an export and the picture cache call a file or folder that is not complete
_UNFINISHED = re.compile(r"\.(model|.+\.(png|jsonl?|yaml|html|md|safetensors))\.([a-z0-9_]{8}|\d+)")


def remove_unfinished(folder: Path) -> None:
    """Take away what a killed process left under temporary names; only for who holds the folder's lock."""
    for path in sorted(folder.rglob(".*")):
        if is_unfinished(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def remove_unfinished_of(path: Path) -> None:
    """Take away what a killed process left of one file; only for who holds that file's lock."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}")  # what `atomic` calls it
    for stray in path.parent.glob(".*"):
        if pattern.fullmatch(stray.name) and not stray.is_symlink():
            stray.unlink(missing_ok=True)


def is_unfinished(path: Path) -> bool:
    """Whether the name is a temporary one of this tool's."""
    return _UNFINISHED.fullmatch(path.name) is not None and not path.is_symlink()


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


@dataclass(frozen=True)
class Coming:
    """A tensor that is made when it is its turn to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


def write_in_turn(tensors: Mapping[str, Tensor | Coming], path: Path, metadata: dict[str, str]) -> None:
    """The file of `write_safetensors`, byte for byte, with one tensor at a time made and brought to the CPU."""
    header: dict[str, Any] = {"__metadata__": {"erase": json.dumps(metadata, sort_keys=True)}}
    order, end = sorted(tensors, key=lambda name: (_IN_FILE[tensors[name].dtype], name)), 0
    for name in order:
        shape, dtype = list(tensors[name].shape), tensors[name].dtype
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in order:
            file.write(_made(tensors[name]).numpy().data)  # and nothing of it is held while the next is made


def _made(tensor: Tensor | Coming) -> Tensor:
    """A tensor's bytes on the CPU."""
    values = tensor.make() if isinstance(tensor, Coming) else tensor
    return values.detach().cpu().contiguous().view(-1).view(torch.uint8)


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
        raise ValueError(f"{path} already exists; give another --out.")


def require_space(path: Path, num_bytes: int) -> None:
    """Raise ValueError if the disk that will hold `path` has fewer free bytes than the output needs."""
    folder = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ValueError(
            f"{path} needs {num_bytes / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; "
            "free some disk space or give another --out."
        )


def metadata_of(file: Any) -> dict[str, str]:
    """The metadata that `write_safetensors` put into an open safetensors file; empty if it is another's."""
    metadata = parse_json((file.metadata() or {}).get("erase", "{}"))
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its header is not a mapping of texts")
    return metadata


def members(folder: Path) -> dict[str, str]:
    """Hash of each file in a folder by its name there, in order."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def sha256(path: Path) -> str:
    """Hash of a file, or of a folder's files with their names."""
    digest = hashlib.sha256()
    if path.is_dir():
        for name, child in members(path).items():
            digest.update(f"{name} {child}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_of(value: Any) -> str:
    """Hash of a JSON value, keys in order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def slug(name: str) -> str:
    """The name as a part of a file name: a-z, 0-9, hyphens; if other letters are lost, six characters of a hash follow."""
    text = name.lower()
    plain = re.sub(r"[^a-z0-9]+", "-", text).strip("-")
    if plain and not any(character.isalnum() and not character.isascii() for character in text):
        return plain
    return f"{plain or 'concept'}-{hash_of(text)[:6]}"
