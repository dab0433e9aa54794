"""Files are whole or not there, and their hashes see every byte and every name."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from erase.files import atomic, hash_of, metadata_of, sha256, slug, write_json, write_safetensors, write_text


@pytest.mark.parametrize("old", ["old", None])
def test_a_crash_inside_leaves_what_was_there(old: str | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if old:
        path.write_text(old)

    def crash() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half a fi")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash()
    assert [child.name for child in tmp_path.iterdir()] == (["file"] if old else [])
    assert not old or path.read_text() == old


def test_inside_the_block_the_old_file_is_still_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent, "a rename across file systems is not atomic"
    assert path.read_text() == "new"
    assert [child.name for child in tmp_path.iterdir()] == ["file"]


def test_a_writer_that_replaces_the_temporary_file_is_served(tmp_path: Path) -> None:
    with atomic(tmp_path / "file") as temporary:
        (tmp_path / "other").write_text("renamed onto it")
        (tmp_path / "other").rename(temporary)
    assert (tmp_path / "file").read_text() == "renamed onto it"


def test_folders_are_made_and_the_file_can_be_read_by_others(tmp_path: Path) -> None:
    write_text("text — 犬\n", tmp_path / "a" / "b" / "file")
    assert (tmp_path / "a" / "b" / "file").read_text(encoding="utf-8") == "text — 犬\n"
    assert (tmp_path / "a" / "b" / "file").stat().st_mode & 0o777 == 0o644


def test_json_is_read_back(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": {"犬": True}}
    write_json(value, tmp_path / "file.json")
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert json.loads(text) == value and "犬" in text and text.endswith("\n")


def test_tensors_are_read_back_whatever_their_strides(tmp_path: Path) -> None:
    tensors = {
        "last": torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "turned": torch.rand(3, 5).T,
        "part": torch.arange(10)[::3],
        "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "empty": torch.empty(0, 4),
    }
    write_safetensors(tensors, tmp_path / "file", {"key": "value"})
    loaded = load_file(tmp_path / "file")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], values) and loaded[name].dtype == values.dtype for name, values in tensors.items())
    with safe_open(tmp_path / "file", "pt") as file:
        assert metadata_of(file) == {"key": "value"}


def test_the_same_tensors_and_metadata_give_the_same_bytes(tmp_path: Path) -> None:
    metadata = {key: key * 2 for key in "abcdefgh"}
    for name in "0123456":
        write_safetensors({"a": torch.zeros(3), "b": torch.ones(2)}, tmp_path / name, metadata)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_the_hash_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000  # more than a block
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_the_hash_of_a_folder_sees_content_and_names(tmp_path: Path) -> None:
    def folder(name: str, files: dict[str, str]) -> str:
        for file, content in files.items():
            write_text(content, tmp_path / name / file)
        return sha256(tmp_path / name)

    first = folder("first", {"a": "1", "sub/b": "2"})
    assert folder("same", {"sub/b": "2", "a": "1"}) == first
    others = [
        folder("content", {"a": "1", "sub/b": "3"}),
        folder("name", {"a": "1", "sub/c": "2"}),
        folder("place", {"a": "1", "b": "2"}),
        folder("swapped", {"a": "2", "sub/b": "1"}),
        folder("less", {"a": "1"}),
        folder("more", {"a": "1", "sub/b": "2", "c": ""}),
    ]
    assert len({first, *others}) == 7


def test_the_hash_of_a_value_sees_everything_but_the_order_of_keys() -> None:
    value = {"a": 1, "b": [1, 2, {"c": None}]}
    assert hash_of(value) == hash_of({"b": [1, 2, {"c": None}], "a": 1})
    others = [
        {"a": 2, "b": [1, 2, {"c": None}]},
        {"a": 1, "b": [2, 1, {"c": None}]},
        {"a": 1, "b": [1, 2, {"c": 0}]},
        {"a": "1"},
    ]
    assert len({hash_of(other) for other in [value, *others]}) == 5


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a dog, 3d", "a-dog-3d"),
        ("Line art!", "line-art"),
        ("runs/x_1", "runs-x-1"),
        ("ray gun 2", "ray-gun-2"),
        ("🐶 dog", "dog"),
    ],
)
def test_a_name_without_foreign_letters_is_itself_in_a_folders_name(name: str, wanted: str) -> None:
    assert slug(name) == wanted


def test_names_that_lose_letters_get_folders_of_their_own() -> None:
    names = ["犬", "猫", "собака", "кошка", "café", "cafè", "犬 emoji", "猫 emoji", "🐶", "🐱", ""]
    found = [slug(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-[0-9a-f]{6}", each) for each in found)
    assert found[0] == f"concept-{hash_of('犬')[:6]}" and found[6].startswith("emoji-")
