"""Damaged inputs end in success or in our own error, whatever is damaged; past findings are replayed."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutate import mutants
from PIL import Image

from erase.config import override, validate
from erase.files import write_safetensors
from erase.patch import Patch, load_patch, patch_provenance, save_patch
from erase.reading import check_safetensors, parse_json, parse_yaml, read_yaml
from erase.saliency import load_mask, save_mask
from eval.pictures import read_manifest, read_pixels
from eval.prompts import read_prompts

FINDINGS = Path(__file__).parent / "corpus"
YAMLS = [
    b"concept: dog\nmodel: emoji\nseed: 3\ntrain: {steps: 5, learning_rate: 1.0e-4}\nsaliency:\n  density: 0.5\n",
    b"concept: [dog, 'line art']\nprompts:\n  each:\n    dog: {neighbours: [wolf]}\nmethod: {name: salun, anchor: next}\n",
    b'# a comment\nconcept: "a dog, neon style"\ndata:\n  num_forget: 4\n  forget_images: null\nload: {dtype: bfloat16}\n',
]
LISTS = [
    b'case_number,prompt,evaluation_seed,guidance,sd_image_width,sd_image_height\n1,"a dog, running",5,7.5,512,512\n',
    b"prompt,seed,class,role\na cat,17,cat,forget\na house,18,house,retain\n",
    b"prompt\n=cmd|' /C calc'!A0\nplain\n",
]


def read_config(path: Path) -> object:
    return validate(read_yaml(path))


def read_list(path: Path) -> object:
    return read_prompts(path, steps=2, guidance=1.0, seed=0)


def read_patch(path: Path) -> object:
    return load_patch(path), patch_provenance(path)


def manifest(path: Path) -> object:
    return read_manifest(path.parent, path.name)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Sound inputs of every kind, small, so that damage hits what matters."""
    folder = tmp_path_factory.mktemp("seeds")
    mask = {"a.weight": torch.tensor([[True, False, True]]), "b": torch.zeros(9, dtype=torch.bool)}
    save_mask(mask, folder / "mask", {"concept": "dog", "density": "0.5"})
    values, positions = {"a.weight": torch.tensor([1.0, 2.0])}, {"a.weight": torch.tensor([0, 2])}
    for name, originals in (("patch1", None), ("patch2", {"a.weight": torch.tensor([0.5, 0.25])})):
        save_patch(Patch(values, positions, {"a.weight": (1, 3)}, {"base": "ab", "concept": "dog"}, originals), folder / name)
    write_safetensors({"x": torch.zeros(2, 2), "y": torch.ones(3, dtype=torch.float16)}, folder / "plain", {"a": "b"})
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    kinds = ("png", "jpeg", "webp", "bmp", "tiff", "gif")
    for kind in kinds:
        Image.fromarray(pixels).save(folder / f"p.{kind}")
    line = {
        "prompt": "a dog",
        "seed": 1,
        "guidance": 1.0,
        "steps": 2,
        "file": "0.png",
        "model": "m",
        "sha256": "",
        "batch_size": 1,
    }
    return {
        "config": YAMLS,
        "prompts": LISTS,
        "mask": [(folder / "mask").read_bytes()],
        "patch": [(folder / name).read_bytes() for name in ("patch1", "patch2")],
        "header": [(folder / name).read_bytes() for name in ("plain", "mask", "patch2")],
        "manifest": [(json.dumps(line) + "\n").encode() * 2],
        "picture": [(folder / f"p.{kind}").read_bytes() for kind in kinds],
    }


PARSERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "config": (read_config, "run.yaml"),
    "prompts": (read_list, "list.csv"),
    "mask": (load_mask, "mask.safetensors"),
    "patch": (read_patch, "patch.safetensors"),
    "header": (check_safetensors, "model.safetensors"),
    "manifest": (manifest, "manifest.jsonl"),
    "picture": (read_pixels, "picture.png"),
}


def outcome(parser: Callable[[Path], object], content: bytes, path: Path) -> str:
    """`read`, or `refused` with our error; any other end fails the test, with the input."""
    path.write_bytes(content)
    try:
        parser(path)
    except ValueError as error:
        found = error
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {str(error)[:300]} for {content[:3000]!r}") from error
    else:
        return "read"
    assert type(found) is ValueError, f"{type(found).__name__} for {content[:2000]!r}"
    assert 0 < len(str(found)) < 5000, f"no sentence for {content[:2000]!r}: {str(found)[:200]}"
    return "refused"


def fuzz(kind: str, num: int, seeds: dict[str, list[bytes]], folder: Path) -> dict[str, int]:
    """How many of `num` damaged inputs were read and how many refused."""
    parser, name = PARSERS[kind]
    counts = {"read": 0, "refused": 0}
    for content in mutants(seeds[kind], num):
        counts[outcome(parser, content, folder / name)] += 1
    return counts


@pytest.mark.parametrize("kind", PARSERS)
def test_a_few_damaged_inputs(kind: str, seeds: dict[str, list[bytes]], tmp_path: Path) -> None:
    parser, name = PARSERS[kind]
    assert [outcome(parser, content, tmp_path / name) for content in seeds[kind]].count("read") >= 1
    counts = fuzz(kind, 150, seeds, tmp_path)
    assert counts["refused"] >= 15


@pytest.mark.slow
@pytest.mark.parametrize("kind", PARSERS)
def test_twenty_thousand_damaged_inputs(
    kind: str, seeds: dict[str, list[bytes]], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    began = time.process_time()
    counts = fuzz(kind, 20_000, seeds, tmp_path)
    record_property("fuzz", f"{kind}: {counts} in {time.process_time() - began:.1f} s of processor time")
    print(f"\nfuzz {kind}: {counts} in {time.process_time() - began:.1f} s of processor time")
    assert sum(counts.values()) == 20_000


@pytest.mark.parametrize("path", sorted(FINDINGS.glob("*")), ids=lambda path: path.name)
def test_past_findings(path: Path, tmp_path: Path) -> None:
    """Each file was once an input that ended in another error than ours; its name begins with the parser's."""
    parser, name = PARSERS[path.name.split("-")[0]]
    assert outcome(parser, path.read_bytes(), tmp_path / name) == "refused"


# Structured: values no mutation of bytes would come upon

numbers = st.integers() | st.floats() | st.sampled_from([2**63, -1, 10**400, 0])
leaves = st.none() | st.booleans() | numbers | st.text(max_size=8) | st.just("dog")
keys = st.sampled_from(["concept", "model", "seed", "train", "steps", "method", "prompts", "each", "data", "name"]) | st.text(
    max_size=4
)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
often = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


def ours(work: Callable[[], object], kind: type[ValueError] = ValueError) -> None:
    """The work succeeds or raises our own error (or one of that kind)."""
    found: ValueError | None = None
    try:
        work()
    except ValueError as error:
        found = error
    assert found is None or ((type(found) is ValueError or type(found) is kind) and str(found))


@often
@given(st.dictionaries(keys, trees, max_size=6))
def test_any_tree_is_a_config_or_refused(values: dict[str, object]) -> None:
    ours(lambda: validate(values))


@often
@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_assignment_is_taken_or_refused(assignments: list[str]) -> None:
    ours(lambda: validate(override({"concept": "dog"}, [f"train.{text}" for text in assignments] + assignments)))


@often
@given(st.text(max_size=200))
def test_any_text_is_yaml_and_json_or_refused(text: str) -> None:
    ours(lambda: parse_yaml(text))
    ours(lambda: parse_json(text), json.JSONDecodeError)


entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8", "F4", "X", 3]),
        "shape": trees,
        "data_offsets": st.lists(numbers, max_size=3) | st.just([0, 8]),
        "more": leaves,
    },
)


@often
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__", ""]), entries | trees, max_size=3), st.integers(0, 64))
def test_any_header_is_whole_or_refused(tmp_path_factory: pytest.TempPathFactory, header: dict[str, object], size: int) -> None:
    path = tmp_path_factory.getbasetemp() / "header"
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(size))
    ours(lambda: check_safetensors(path))


def test_the_check_takes_what_the_library_takes_and_no_more(tmp_path: Path) -> None:
    """Headers that are sound in the format's own words, and next to each one that is not."""

    def whole(header: str, size: int) -> bool:
        encoded = header.encode()
        (tmp_path / "x").write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(size))
        try:
            check_safetensors(tmp_path / "x")
        except ValueError:
            return False
        return True

    one = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    for length in range(0x80, 0x90):  # a header may be as long as the byte that a pickle begins with
        assert whole("{" + one + "}" + " " * (length - len(one) - 2), 8)
    assert whole("{" + one + "}", 8) and whole("{}", 0) and whole('{"__metadata__":{"k":"v"}}', 0)
    assert not whole("{" + one + "}", 7), "cut short"
    assert not whole("{" + one + "}", 9), "something behind"
    assert not whole("{" + one + "," + one + "}", 8), "a key twice"
    assert not whole("{" + one + ',"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', 8), "overlapping"
    assert not whole("{" + one + ',"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}}', 16), "a hole"
    assert not whole('{"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}}', 4), "sizes that overflow"
    assert not whole('{"a":{"dtype":"F32","shape":[-1,-2],"data_offsets":[0,8]}}', 8)
    assert not whole('{"a":{"dtype":"F32","shape":[true,2],"data_offsets":[0,8]}}', 8)
    assert not whole('{"__metadata__":{"k":1}}', 0) and not whole('{"__metadata__":{"k":"v","k":"w"}}', 0)
    assert not whole("[]", 0) and not whole("[" * 5000, 0) and not whole('{"a":' * 3000, 0)
    (tmp_path / "x").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="its header would have 1,152,921,504,606,846,976 bytes"):
        check_safetensors(tmp_path / "x")
