"""Text, YAML, JSON and safetensors headers from strangers, read within limits: each mistake is a ValueError with a sentence."""

import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import yaml

MOST_YAML = 1 << 20  # bytes; the longest shipped recipe has 3 KB
MOST_JSON = 1 << 28  # a large tokenizer has some 20 MB, a run of 100,000 pictures some 10 MB
MOST_HEADER = 100_000_000  # what the safetensors library takes
DEEPEST = 32
# characters that change the direction of the text around them: what is read would not be what is meant
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
LONGEST_TEXT = 20_000  # characters of a prompt; text encoders read a few hundred
LONGEST_PLAIN = 4000  # characters of an unquoted YAML value: longer ones are slow to take for a number

_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
_BITS |= {"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32}
_BITS |= {"I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


def read_text(path: Path, most: int) -> str:
    """The UTF-8 text of a file of at most so many bytes."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path} has more than {most:,} bytes, too many for a file of its kind.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def plain_text(text: str, where: str) -> str:
    """The text; raises ValueError for characters that steer terminals or hide what is written, and for endless texts."""
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"{where} has {len(text):,} characters; at most {LONGEST_TEXT:,} are accepted.")
    if bad := next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\r\t"), None):
        raise ValueError(f"{where} holds the control character U+{ord(bad):04X}; take it out.")
    if turned := next((c for c in text if c in BIDI), None):
        raise ValueError(f"{where} holds U+{ord(turned):04X}, which changes the direction of the text; take it out.")
    return text


class _Plain(yaml.SafeLoader):
    """The safe loader without what turns a value quietly into another: a key given twice, and numbers to base 8 or 60."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"it has the key {str(twice)[:80]!r} twice")
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> Any:
        digits = str(node.value).lstrip("+-")
        if ":" in digits or (len(digits) > 1 and digits.isdigit() and digits.startswith("0")):
            raise ValueError(f"it has {node.value}, which YAML reads to another base: write the number plainly, or in quotes")
        kind = node.tag.rpartition(":")[2]
        return (self.construct_yaml_int if kind == "int" else self.construct_yaml_float)(node)


for _kind in ("int", "float"):
    _Plain.add_constructor(f"tag:yaml.org,2002:{_kind}", _Plain.construct_number)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text by the safe loader; no aliases, at most `DEEPEST` levels."""
    if len(text) > MOST_YAML:
        raise ValueError(f"it has more than {MOST_YAML:,} characters")
    depth = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} levels deep")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"it has the alias *{event.anchor}: write the value itself")
            if isinstance(event, yaml.ScalarEvent) and (event.tag or not event.style) and len(event.value) > LONGEST_PLAIN:
                raise ValueError(f"it has an unquoted or tagged value of more than {LONGEST_PLAIN} characters")
        return yaml.load(text, _Plain)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:  # dates, numbers, tags
        raise ValueError(" ".join(str(error).split())) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, with texts as keys."""
    if not path.is_file():
        raise ValueError(f"there is no config file {path}.")
    try:
        value = parse_yaml(read_text(path, MOST_YAML))
    except ValueError as error:
        raise ValueError(f"{path} is not valid YAML: {error}.") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{path} must hold a mapping such as `concept: dog`.")
    return value


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, each key once."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {twice[:80]!r} twice")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file."""
    text = read_text(path, MOST_JSON)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no mapping.")
    return value


def check_safetensors(path: Path) -> dict[str, Any]:
    """The header of a whole safetensors file, its tensors one after the other; raises ValueError for any other file.

    Stricter than the library: a key may stand there once, metadata are texts, and a pickle or an archive is called so.
    """
    if not path.is_file():
        raise ValueError("No such file or directory")
    size = path.stat().st_size
    if size == 0:
        raise ValueError("it is empty")
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(MOST_HEADER, size - 8):
            if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
                raise ValueError("it is a pickle or an archive (torch.save, torch.jit), which can run code, and is not opened")
            raise ValueError(f"its header would have {length:,} bytes, the file has {size:,}")
        encoded = file.read(length)
    try:
        header = parse_json(encoded.decode())
    except ValueError as error:
        raise ValueError(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not a mapping")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not texts")
    _check_layout(header, size - 8 - length)
    return header


def _check_layout(header: dict[str, Any], size: int) -> None:
    spans = [(*_span(name, entry), name) for name, entry in header.items()]
    end = 0
    for begin, last, name in sorted(spans):
        if begin != end:
            raise ValueError(f"{name[:80]!r} begins at byte {begin:,} and what is before it ends at {end:,}")
        end = last
    if end != size:
        raise ValueError(f"its tensors have {end:,} bytes and it holds {size:,}")


def _span(name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor's bytes begin and end."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [begin, end, *shape]
        sound = entry.keys() == {"dtype", "shape", "data_offsets"} and all(type(n) is int and n >= 0 for n in numbers)
        sound = sound and len(shape) <= DEEPEST and (end - begin) * 8 == math.prod(shape) * _BITS[dtype]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"its header says of {name[:80]!r} what no tensor is") from error
    if not sound:
        raise ValueError(f"its header says of {name[:80]!r} what no tensor is")
    return begin, end


def shapes_in(text: str) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name, from the JSON in a file's metadata."""
    shapes = parse_json(text)
    if not isinstance(shapes, dict):
        raise ValueError("its shapes are not a mapping")
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
            raise ValueError(f"the shape of {name[:80]!r} is {str(shape)[:80]}")
    return {name: tuple(shape) for name, shape in shapes.items()}
