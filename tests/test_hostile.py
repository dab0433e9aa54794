"""Files from strangers: what could run code, reach out of a folder or fill the memory is refused or never opened."""

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub.file_download import _create_symlink
from huggingface_hub.utils import filter_repo_objects
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store
from PIL import Image
from safetensors.torch import load_file, save_file

from erase.config import LoadConfig, override, validate
from erase.images import MOST_PIXELS, caption_of, read_picture
from erase.reading import parse_yaml, read_json, read_yaml
from eval.given import in_common
from eval.pictures import Request, read_manifest, read_pixels
from eval.prompts import read_prompts
from eval.report import environment
from pipelines.check import MOST, PICKLES, check_folder
from pipelines.load import EMOJI_WEIGHTS, load, made_from_emoji
from pipelines.single_file import write_single_file

SCRIPT = "<script>document.title='run'</script>"
IMAGE = "<img src=x onerror=\"document.title='run'\">"
BREAKOUT = '"><svg onload="document.title=\'run\'">'


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture(scope="module")
def saved(tiny_pipeline: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a diffusers folder; not to be changed."""
    path = tmp_path_factory.mktemp("saved") / "model"
    tiny_pipeline.save_pretrained(path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Pickles and code


OPENED: list[str] = []


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The path of whatever Python opens during a test, by the interpreter's own audit events."""
    if not hasattr(sys, "opens_are_noted"):
        sys.opens_are_noted = True  # type: ignore[attr-defined]  # a hook stays for good: one is enough
        sys.addaudithook(lambda event, what: OPENED.append(str(what[0])) if event == "open" else None)
    OPENED.clear()
    yield OPENED
    OPENED.clear()


def booby_trap(path: Path, mark: Path, archive: bool) -> Path:
    """A pickle, or torch.save's archive with one, that creates `mark` when it is loaded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if archive:
        torch.save(Payload(mark), path)
    else:
        path.write_bytes(pickle.dumps(Payload(mark)))
    return path


TRAPS = [
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.bin",
    "random_states_0.pkl",
    "training_args.bin",
    "model.pt",
    "state/optimizer.bin",
]
TRAPS += [f"{part}/diffusion_pytorch_model.bin" for part in ("unet", "vae", "scheduler")]
TRAPS += [f"{part}/pytorch_model.bin" for part in ("unet", "vae", "text_encoder", "tokenizer")]
TRAPS += [
    "unet/optimizer.pt",
    "vae/model.pt2",
    "text_encoder/model.ckpt",
    "text_encoder/adapter_model.bin",
    "tokenizer/tokenizer.pkl",
]
TRAPS += ["unet/diffusion_pytorch_model.fp16.bin", "text_encoder/model.jit", "scheduler/scheduler.joblib"]


@pytest.mark.parametrize("archive", [False, True], ids=["pickle", "torch.save"])
def test_a_pickle_beside_the_weights_is_refused_unopened_and_the_model_loads(
    archive: bool, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, opened: list[str]
) -> None:
    """One at every place where a library would look for it, as hub models have them (.bin beside .safetensors)."""
    mark = tmp_path / "code has run"
    traps = [booby_trap(folder / name, mark, archive) for name in TRAPS]
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), folder / "script.pt")
    opened.clear()
    family = load(str(folder))
    paths = set(opened)
    assert any(path.endswith("unet/config.json") for path in paths), "what is opened is seen"
    assert not [path for path in paths if Path(path).suffix in PICKLES]
    assert not mark.exists()
    weights = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(family.denoiser.get_parameter(name), values) for name, values in weights.items())
    assert f"refused and never opened, for pickles and code can do anything: model.pt and {len(TRAPS)} more" in caplog.text
    if archive:
        torch.load(traps[0], weights_only=False)
    else:
        pickle.loads(traps[0].read_bytes())
    assert mark.exists(), "the payload works"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside other safetensors"])
def test_a_pickle_is_not_opened_even_where_it_is_the_only_way(
    beside: bool, part: str, folder: Path, tmp_path: Path, opened: list[str]
) -> None:
    """Neither by this tool nor by the libraries underneath, to whom a folder with another's safetensors is given."""
    mark = tmp_path / "code has run"
    for weights in (folder / part).glob("*.safetensors"):
        weights.rename(tmp_path / "weights")
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.bin", "adapter_model.bin"):
        booby_trap(folder / part / name, mark, archive=True)
    if beside:
        save_file({"a": torch.zeros(1)}, folder / part / "other.safetensors")
    opened.clear()
    with pytest.raises(ValueError, match=r"that loads|which is refused|which is what is loaded, but other\.safetensors"):
        load(str(folder))
    assert not [path for path in opened if Path(path).suffix in PICKLES] and not mark.exists()


def test_a_part_that_is_not_asked_for_is_no_way_in_either(folder: Path, tmp_path: Path, opened: list[str]) -> None:
    """An image encoder, which the pipeline's class may have, there as a pickle alone."""
    mark = tmp_path / "code has run"
    change(folder / "model_index.json", image_encoder=["transformers", "CLIPVisionModelWithProjection"])
    for name in ("pytorch_model.bin", "model.bin", "adapter_model.bin"):
        booby_trap(folder / "image_encoder" / name, mark, archive=True)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "projection_dim": 8}
    (folder / "image_encoder/config.json").write_text(json.dumps({"model_type": "clip_vision_model", **sizes}))
    opened.clear()
    assert load(str(folder)).pipeline.image_encoder is None
    assert not [path for path in opened if Path(path).suffix in PICKLES] and not mark.exists()


def test_a_hub_model_with_pickles_beside_its_weights_loads_without_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    """As CompVis/stable-diffusion-v1-4 has them: they are not asked for, and where a cache holds them, not opened."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    mark, revision = tmp_path / "code has run", "0" * 40
    cache = tmp_path / "cache" / "models--owner--name"
    for name in TRAPS:
        booby_trap(folder / name, mark, archive=True)
    shutil.copytree(folder, cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(revision)
    opened.clear()
    assert load("owner/name", LoadConfig(cache_dir=str(tmp_path / "cache"))).denoiser is not None
    assert not [path for path in opened if Path(path).suffix in PICKLES] and not mark.exists()
    asked: dict[str, Any] = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda model, **more: asked.update(more) or str(folder))
    load("owner/name")
    names = [*TRAPS, "unet/diffusion_pytorch_model.safetensors", "model_index.json", "v1-5-pruned.ckpt", "unet/modeling.py"]
    wanted = set(filter_repo_objects(names, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]))
    assert wanted == {"unet/diffusion_pytorch_model.safetensors", "model_index.json"}


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("text_encoder", {"transformers_weights": "adapter_model.bin"}, "takes its weights from 'adapter_model.bin'"),
        ("text_encoder", {"transformers_weights": "../x.safetensors"}, "takes its weights from"),
        ("unet", {"quantization_config": {"quant_method": "torchao"}}, "is of quantised weights"),
        ("text_encoder", {"quantization_config": {"quant_method": "bitsandbytes"}}, "is of quantised weights"),
    ],
)
def test_a_config_cannot_ask_for_other_weights(part: str, values: dict[str, Any], words: str, folder: Path) -> None:
    change(folder / part / "config.json", **values)
    with pytest.raises(ValueError, match=words):
        load(str(folder))


def test_a_lora_inside_a_part_is_refused(folder: Path) -> None:
    """Where peft is installed, transformers would load it, and the base that it names, without being asked."""
    (folder / "text_encoder/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/etc"}))
    with pytest.raises(ValueError, match="belongs to a LoRA inside the model"):
        load(str(folder))


def test_code_beside_the_weights_is_not_run(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mark = tmp_path / "code has run"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    for name in ("unet/diffusers.py", "unet/modeling.py", "tokenizer/transformers.py", "pipeline.py"):
        (folder / name).write_text(code)
    change(folder / "unet/config.json", auto_map={"AutoModel": "modeling.Model"}, trust_remote_code=True)
    change(folder / "text_encoder/config.json", auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(ValueError, match=r"is not a Stable Diffusion pipeline that loads: .*custom code"):
        load(str(folder))  # a module under the library's own name: diffusers would take it for the part's code
    for name in ("unet/diffusers.py", "tokenizer/transformers.py"):
        (folder / name).unlink()
    caplog.clear()
    load(str(folder))
    assert not mark.exists()
    assert "refused and never opened" in caplog.text
    named = [record for record in caplog.records if "names code of its own (auto_map): it is ignored" in record.message]
    assert {Path(record.message.split()[0]).parent.name for record in named} == {"unet", "text_encoder"}


@pytest.mark.parametrize("kind", ["zip", "pickle", "script"])
def test_a_pickle_under_the_name_of_safetensors_is_called_so(kind: str, folder: Path) -> None:
    target = folder / "unet/diffusion_pytorch_model.safetensors"
    if kind == "zip":
        torch.save({"a": torch.zeros(1)}, target)
    elif kind == "pickle":
        target.write_bytes(pickle.dumps({"a": 1}))
    else:
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("archive/constants.pkl", b"x")
    with pytest.raises(ValueError, match=r"it is a pickle or an archive .*torch\.jit.*, which can run code, and is not opened"):
        load(str(folder))


@pytest.mark.parametrize(
    "component",
    [["os", "system"], ["builtins", "eval"], ["diffusers", "../../evil"], ["evil_module", "X"], ["diffusers"], [["a"], "b"]],
)
def test_a_part_of_a_foreign_module_is_refused(component: list[Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(folder / "model_index.json", unet=component)
    with pytest.raises(ValueError, match=r"model_index\.json: 'unet' is .*, which is not loaded"):
        load(str(folder))


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", ["x"], 3, {"a": 1}, ["custom.py", "X"]])
def test_a_class_name_is_one_of_ours_or_refused(name: Any, folder: Path) -> None:
    before = (folder / "model_index.json").read_text()
    change(folder / "model_index.json", _class_name=name)
    with pytest.raises(ValueError, match="this version erases from"):
        load(str(folder))
    (folder / "model_index.json").write_text(before)
    if not isinstance(name, int | dict):
        change(folder / "unet/config.json", _class_name="../x" if isinstance(name, list) else name)
        with pytest.raises(ValueError, match=r"names the class .*, which is none"):
            load(str(folder))


# Out of the folder


@pytest.mark.parametrize(
    "name", ["../vae/x.safetensors", "/etc/passwd", "..", "", "a\0b", 7, None, ["x"], "missing.safetensors"]
)
def test_an_index_names_files_beside_it_alone(name: Any, folder: Path) -> None:
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for value in ({"a": name}, [name], "x"):
        index.write_text(json.dumps({"weight_map": value}))
        with pytest.raises(ValueError, match="which its index names"):
            load(str(folder))


def test_a_link_out_of_the_folder_is_refused_and_a_hub_caches_own_are_not(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    for place in ("tokenizer/secret.json", "unet/secret.txt", "more"):
        (folder / place).symlink_to(tmp_path if place == "more" else secret)
        with pytest.raises(ValueError, match="is a link out of the model's folder"):
            load(str(folder))
        (folder / place).unlink()
    (folder / "unet/within.json").symlink_to(folder / "unet/config.json")
    assert check_folder(folder) == "StableDiffusionPipeline"
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    snapshot = Path(shutil.copytree(folder, cache / "snapshots" / "0123", symlinks=True))
    (snapshot / "unet/within.json").unlink()
    (snapshot / "unet/config.json").rename(cache / "blobs" / "c")
    (snapshot / "unet/config.json").symlink_to("../../../blobs/c")
    assert check_folder(snapshot) == "StableDiffusionPipeline"


def test_a_hub_caches_shared_store_is_its_own_and_any_other_folder_is_not(tmp_path: Path) -> None:
    """The layout that the hub library itself makes of files from its Xet store, loaded by the hub id without a network."""
    cache, snapshot = tmp_path / "cache", shared_cache(tmp_path / "cache", EMOJI_WEIGHTS)
    weights = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.is_symlink() and weights.resolve().is_relative_to(cache / "blobs")
    assert load("o/n", LoadConfig(cache_dir=str(cache))).vocabulary is not None
    mark = cache / "blobs" / ".huggingface-shared-blobs"
    mark.rename(tmp_path / "mark")
    with pytest.raises(ValueError, match="is a link out of the model's folder"):
        load("o/n", LoadConfig(cache_dir=str(cache)))
    (tmp_path / "mark").rename(mark)
    (snapshot / "unet" / "x.json").symlink_to(cache / "secret.json")
    (cache / "secret.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x\.json is a link out of the model's folder"):
        load("o/n", LoadConfig(cache_dir=str(cache)))


def shared_cache(cache: Path, model: Path) -> Path:
    """The snapshot of o/n in a hub cache whose large files lie in the store that all repositories share."""
    repository = cache / "models--o--n"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for number, path in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        blob, pointer = repository / "blobs" / f"{number:040x}", snapshot / path.relative_to(model)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        if path.suffix == ".safetensors":
            size, digest = path.stat().st_size, f"{number:064x}"
            assert publish_blob_to_shared_store(blob_path=str(blob), xet_hash=digest, cache_dir=cache, expected_size=size)
        _create_symlink(str(blob), str(pointer))
    return snapshot


def test_a_manifest_cannot_read_or_write_outside_its_folder(tmp_path: Path) -> None:
    """A stranger's folder of pictures: its manifest names files to copy."""
    source = tmp_path / "theirs"
    source.mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    line = {"prompt": "a", "seed": 0, "guidance": 1, "steps": 1, "model": "m", "sha256": "", "batch_size": 1}
    for name in ("../x.png", str(tmp_path / "x.png"), "..", ".", "", "a/b.png", ".hidden", "a\\b.png", "a\nb"):
        (source / "manifest.jsonl").write_text(json.dumps(line | {"file": name}) + "\n")
        with pytest.raises(ValueError, match=r"manifest\.jsonl, line 1"):
            in_common([Request(prompt="a", seed=0, guidance=1, steps=1)], [source])
    (source / "manifest.jsonl").write_text(json.dumps(line | {"file": "a photo (1) - Kopie.png"}) + "\n")
    assert read_manifest(source)[0].file == "a photo (1) - Kopie.png"


# Sizes


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("unet/config.json", "layers_per_block", 10**6),
        ("unet/config.json", "transformer_layers_per_block", [[1, 10**9]]),
        ("unet/config.json", "sample_size", 10**6),
        ("vae/config.json", "layers_per_block", 10**6),
        ("text_encoder/config.json", "num_hidden_layers", 10**7),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**12),
        ("tokenizer/tokenizer_config.json", "model_max_length", 10**9),
    ],
)
def test_a_config_of_absurd_size_is_refused_at_once(file: str, key: str, value: Any, folder: Path) -> None:
    change(folder / file, **{key: value})
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"{re.escape(key)} is .*, which no model has"):
        load(str(folder))
    assert time.monotonic() - began < 5
    assert min(MOST.values()) > 100


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"_class_name": "a", "_class_name": "b"}', "[]", '{"a": ' + "9" * 5000 + "}", "\ud800"]
)
def test_json_from_strangers_is_a_mapping_or_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"x\.json is (damaged|not UTF-8 text)"):
        read_json(tmp_path / "x.json")


def bomb(levels: int = 9) -> str:
    """The laughs: each level ten times the one before."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"] + [f"a{k}: &a{k} [{','.join([f'*a{k - 1}'] * 10)}]" for k in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bomb(), "it has the alias"),
        ("a: &a [*a]", "it has the alias"),
        ("a: " + "[" * 5000, "nested more than 32 levels"),
        ("{a: " * 100 + "1" + "}" * 100, "nested more than 32 levels"),
        ("a: " + "b" * (1 << 20), "more than 1,048,576"),
        ("a: " + ":".join(["1"] * 4000), "unquoted or tagged value"),
        ('a: !!int "' + ":".join(["1"] * 4000) + '"', "unquoted or tagged value"),
        ("a: !!python/object/apply:os.system [exit]", "could not determine a constructor"),
        ("a: 2001-99-99", "month must be in"),
        ("1: 2", "must hold a mapping"),
    ],
)
def test_yaml_has_limits(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(ValueError, match=words):
        read_yaml(tmp_path / "run.yaml")
    assert time.process_time() - began < 5
    if words.startswith(("it has", "nested")):
        with pytest.raises(ValueError, match="is not a value"):
            override({}, [f"train={text}"])
        with pytest.raises(ValueError, match=words):
            parse_yaml(text)


# Prompts


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a \x1b[2J dog", r"row 1: the prompt holds the control character U\+001B"),
        ("a \x00 dog", "NUL|control character"),
        ("a \u202e dog", r"row 1: the prompt holds U\+202E, which changes the direction"),
        ("a dog,nan", "a finite number is needed"),
        ("a dog,inf", "a finite number is needed"),
        ("a dog,-1", "whole number from 0 on"),
        ("a dog,1e300", "whole number from 0 on"),
        ("a dog,1,1e12", "multiple of 8 up to 8192"),
        ("a dog,1,nan", "a finite number is needed"),
        ("x" * 30_000, "has 30,000 characters; at most 20,000"),
    ],
)
def test_a_list_of_prompts_is_checked_row_by_row(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(("prompt,seed,width\n" + line + "," * (2 - line.count(",")) + "\n").encode())
    with pytest.raises(ValueError, match=words) as error:
        read_prompts(tmp_path / "list.csv", steps=1, guidance=1, seed=0)
    assert type(error.value) is ValueError and "\x1b" not in str(error.value)


def test_a_prompt_of_100_mb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "list.csv").open("wb") as file:
        file.write(b"prompt\n")
        file.truncate(100_000_000)
    began = time.monotonic()
    with pytest.raises(ValueError, match="has more than 67,108,864 bytes"):
        read_prompts(tmp_path / "list.csv", steps=1, guidance=1, seed=0)
    assert time.monotonic() - began < 5
    (tmp_path / "list.csv").write_text("prompt\n" + "x" * 200_000 + "\n")
    with pytest.raises(ValueError, match="field larger than field limit"):
        read_prompts(tmp_path / "list.csv", steps=1, guidance=1, seed=0)


def test_a_formula_stays_a_text_and_no_csv_is_ever_written(tmp_path: Path) -> None:
    """A spreadsheet runs what begins with = + - @; this tool reads CSV and writes none, so nothing reaches one."""
    (tmp_path / "list.csv").write_text('prompt\n"=HYPERLINK(""http://x"")"\n@SUM(1)\n')
    assert [r.prompt for r in read_prompts(tmp_path / "list.csv", steps=1, guidance=1, seed=0)] == [
        '=HYPERLINK("http://x")',
        "@SUM(1)",
    ]
    root = Path(__file__).parent.parent
    sources = [p for name in ("erase", "pipelines", "eval") for p in (root / name).rglob("*.py")]
    assert len(sources) > 60
    assert not [p for p in sources if re.search(r"csv\.(writer|DictWriter)|to_csv|extractall|unpack_archive", p.read_text())]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\ndog", ""),
        ("dog\x1b[31m", r"holds the control character U\+001B"),
        ("\x00", r"holds the control character U\+0000"),
        ("\ud800", r"holds the control character U\+D800"),
        ("dog\u2067", r"holds U\+2067, which changes the direction"),
    ],
)
def test_control_characters_in_a_concept_a_prompt_or_an_anchor_are_refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match="no line breaks or control characters"):
        validate({"concept": name})
    if said:
        for values in (
            {"prompts": {"forget": [name], "becomes": ["a cat"], "retain": ["a house"]}},
            {"method": {"anchor": name}},
            {"method": {"anchor": ["cat", name]}},
            {"method": {"name": "uce", "anchor": name}},
        ):
            with pytest.raises(ValueError, match=said):
                validate({"concept": "dog", **values})
    assert validate({"concept": "犬 🐶 naïve"}).concept == "犬 🐶 naïve"


def test_a_message_cannot_steer_the_terminal() -> None:
    from erase.terminal import printable

    assert printable("bad \x1b[2J\x07 name\n\t犬 \u202e") == "bad \\x1b[2J\\x07 name 犬 \\u202e"


# Pictures


def png(width: int, height: int) -> bytes:
    """A PNG that says how large it is, with hardly any pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("read", [read_pixels, lambda path: read_picture(path, (8, 8))], ids=["eval", "run"])
def test_an_image_bomb_is_refused_unpacked(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    for width, height in ((50_000, 50_000), (9_000, 9_000), (2**31 - 1, 1)):
        path.write_bytes(png(width, height))
        with pytest.raises(ValueError, match=r"bomb\.png cannot be read as a picture"):
            read(path)
    Image.new("L", (8001, 8000)).save(path)
    assert MOST_PIXELS < 8001 * 8000
    with pytest.raises(ValueError, match="it is 8001 x 8000, more than 64,000,000 pixels"):
        read(path)


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n", b"GIF89a", b"\x00"]
)
def test_what_is_called_png_is_not_opened_as_another_kind(content: bytes, tmp_path: Path) -> None:
    """An EPS would start a program that runs it."""
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match="cannot identify image file"):
        read_pixels(tmp_path / "x.png")


def test_a_caption_is_a_short_text(tmp_path: Path) -> None:
    for content, words in ((b"x" * 70_000, "more than 65,536 bytes"), (b"a\x1b[2J", "control character"), (b"\xff", "UTF-8")):
        (tmp_path / "cat.txt").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            caption_of(tmp_path / "cat.png")
    (tmp_path / "cat.txt").write_text("a cat\nin two lines\n")
    assert caption_of(tmp_path / "cat.png") == "a cat in two lines"


# A single file


def test_configs_in_a_single_files_header_are_checked_like_a_folders(
    tiny_pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    write_single_file(tiny_pipeline, path, {}, None, "tiny")
    assert load(str(path), LoadConfig()).denoiser is not None
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)

    def rewritten(configs: str) -> None:
        save_file(tensors, path, metadata | {"erase.configs": configs})

    index = json.loads(json.loads(metadata["erase.configs"])["model_index.json"])
    for change_, words in (
        ({"model_index.json": json.dumps(index | {"unet": ["os", "system"]})}, "which is not loaded"),
        ({"unet/config.json": json.dumps({"layers_per_block": 10**9})}, "which no model has"),
        ({"../x.json": "{}"}, "not a plain file name"),
    ):
        rewritten(json.dumps(json.loads(metadata["erase.configs"]) | change_))
        with pytest.raises(ValueError, match=words):
            load(str(path))
    for configs in ("[1]", '{"a": 1}', "[" * 99_999, "x"):
        rewritten(configs)
        for use in (load, made_from_emoji):
            with pytest.raises(ValueError, match=r"(no texts as configs|not a safetensors file that can be read)"):
                use(str(path))


# HTML


def hostile_pages(folder: Path) -> list[Path]:
    """The pages of a run, an evaluation and a comparison, with markup for every text that a stranger may choose."""
    from eval.compare import columns, page
    from eval.evaluation_report import write_evaluation
    from eval.report import write_report
    from eval.results import Figure, Plan, Results, Retention, Row, Source

    nasty = SCRIPT + IMAGE + BREAKOUT
    one = Figure(value=0.5, low=0.4, high=0.6, n=10, interval="wilson")
    plan = Plan(
        suite="emoji",
        concepts=(nasty,),
        model=Source(name=nasty, sha256="0" * 64),
        baseline=Source(name=nasty, sha256="1" * 64),
        settings={"steps": 1, "guidance": nasty},
        training={"losses": {nasty: [1.0, 0.5]}, "steps": 2, "density_by_block": {nasty: 0.5}},
        versions={nasty: nasty},
    )
    results = Results(
        plan=plan,
        prompts_sha256="2" * 64,
        pictures={"model": 0, "base": 0},
        unreadable={"model": {nasty: nasty}},
        detectors=({"name": nasty, "sha256": nasty},),
        rows=(Row(key="ua", label=nasty, unit="share", better="higher", base=one, model=one),),
        retention=(Retention(name=nasty, base=one, model=one),),
        wordings=(Row(key="w", label=nasty, unit="share", better="higher", base=one, model=one),),
        not_measured={nasty: nasty},
    )
    for side in ("model", "base"):
        (folder / "eval" / side).mkdir(parents=True)
        (folder / "eval" / side / "manifest.jsonl").write_text("")
    write_evaluation(folder / "eval", results)
    (folder / "eval" / "results.json").write_text(results.model_dump_json())
    column = columns([folder / "eval"])[0].model_copy(update={"name": nasty})
    (folder / "compare.html").write_text(page([column, column]))
    run = folder / "run"
    run.mkdir()
    figures = {"forget_accuracy": None, "ira": None, "cra": None, "n": 0}
    audit = {"changed_outside_mask": 0, "changed_inside_mask_share": 1.0, "num_salient": 1, "num_weights": 2}
    record = {"concept": nasty, "anchors": [nasty], "model": nasty, "method": nasty, "density": 0.5, "seed": nasty}
    record |= {
        "concepts": [],
        "base": figures,
        "erased": figures,
        "collapse": None,
        "detector": None,
        "audit": audit,
        "patch": True,
        "peak_rss_gb": 1.0,
    }
    record |= {"density_by_block": {nasty: 0.5}, "seconds": {nasty: 1.0}, "machine": {"threads": 1, "processor": nasty}}
    (run / "results.json").write_text(json.dumps(record))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, f"{nasty}_loss": 1.0}) + "\n")
    config = validate({"concept": nasty[:200], "prompts": {"neighbours": [nasty]}})
    write_report(run, SimpleNamespace(concept=SimpleNamespace(name=nasty), config=config))  # type: ignore[arg-type]
    return [folder / "eval" / "report.html", folder / "compare.html", run / "report.html"]


def test_markup_in_names_and_prompts_is_text_on_every_page(tmp_path: Path) -> None:
    for path in hostile_pages(tmp_path):
        html = path.read_text()
        assert "&lt;script&gt;" in html, path.name
        assert not re.search(r"<script|<img src=x|<svg onload", html), path.name
        assert "Content-Security-Policy" in html and "default-src 'none'" in html
    for card in (tmp_path / "eval/README.md", tmp_path / "run/README.md"):
        body = card.read_text().split("---\n")[-1]
        assert "<script" not in body.split("Not measured")[0], card


def test_a_grid_of_pictures_escapes_its_prompts() -> None:
    nasty = SCRIPT + BREAKOUT
    pair = {"prompt": nasty, "seed": 1, "before": "data:image/png;base64,", "after": "data:image/png;base64,"}
    source = (Path(__file__).parent.parent / "eval" / "report.html.j2").read_text()
    grid = re.search(r"\{% for grid in grids %\}.*?</div>\n\{% endfor %\}", source, re.DOTALL)
    assert grid
    html = environment(autoescape=True).from_string(grid[0]).render(grids=[{"title": nasty, "pairs": [pair]}])
    assert html.count("&lt;script&gt;") == 4 and "<script" not in html and "<svg" not in html


@pytest.fixture
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("there is no chromium here")
    return found


def title_of(chromium: str, path: Path, home: Path) -> str:
    """The page's title after its scripts and handlers, if any, have run."""
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-extensions",
    ]
    command += ["--virtual-time-budget=3000", f"--user-data-dir={home}", "--dump-dom", path.as_uri()]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env=os.environ | {"HOME": str(home)}
    )
    assert "</html>" in done.stdout, done.stderr[-500:]
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title
    return title[1]


@pytest.mark.browser
@pytest.mark.slow
def test_nothing_injected_runs_in_a_browser(chromium: str, tmp_path: Path) -> None:
    """And without escaping it would: the same markup on a bare page sets the title."""
    (tmp_path / "bare.html").write_text(f"<html><head><title>before</title></head><body>{SCRIPT}</body></html>")
    assert title_of(chromium, tmp_path / "bare.html", tmp_path / "home") == "run"
    for path in hostile_pages(tmp_path):
        assert title_of(chromium, path, tmp_path / "home") != "run", path.name
