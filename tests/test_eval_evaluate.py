"""`erase eval` on a tiny model of the real classes: every number follows from the manifest, and bad input is said."""

import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import family_of
from PIL import Image

import eval.evaluate
import eval.targets
from erase.config import LoadConfig, RunConfig
from erase.files import sha256
from eval.collapse import Gate
from eval.compare import columns, page, text
from eval.detectors import EmojiJudge
from eval.evaluate import EvaluationOptions, evaluate, source_of
from eval.evaluation_report import table, write_evaluation
from eval.measuring import measure_folder
from eval.pictures import read_manifest, read_pixels
from eval.results import Results, bootstrap, mean_row, read_results
from eval.sides import Tools
from eval.targets import batch_size_for, find_sides, find_target
from pipelines.load import EMOJI_WEIGHTS, model_hash

OPTIONS = EvaluationOptions(concepts=("dog",), num=1, steps=1, guidance=1.0)


class Silent:
    """Counts what a bar would show."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.notes: list[str] = []

    @contextmanager
    def stage(self, name: str, total: int):
        self.name = name
        yield self

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, num: int = 1, **figures: float) -> None:
        self.counts[self.name] = self.counts.get(self.name, 0) + num


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_pipeline) -> tuple[str, str]:
    """A tiny base and a changed copy of it, as diffusers folders."""
    import torch

    folder = tmp_path_factory.mktemp("models")
    family = family_of(tiny_pipeline)
    family.save(folder / "base")
    with torch.no_grad():
        for parameter in family.denoiser.parameters():
            parameter.mul_(1.05)
    family.save(folder / "erased")
    for name in ("base", "erased"):
        shutil.copytree(EMOJI_WEIGHTS / "tokenizer", folder / name / "tokenizer", dirs_exist_ok=True)
    return str(folder / "base"), str(folder / "erased")


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory, models) -> tuple[Path, Results]:
    out = tmp_path_factory.mktemp("evaluation")
    results = evaluate(models[1], models[0], OPTIONS, out, Silent())
    write_evaluation(out, results)
    return out, results


def test_the_folder_holds_the_evidence(evaluation) -> None:
    out, results = evaluation
    assert {p.name for p in out.iterdir()} == {"base", "model", "plan.json", "results.json", "report.html", "README.md"}
    assert read_results(out / "results.json") == results
    assert results.schema_version == 1 and results.pictures == {"base": 149, "model": 149}
    assert results.not_measured.keys() >= {"What was forgotten", "What was kept"}, "the base draws noise, and it is told"
    assert "so UA says little" in (out / "report.html").read_text()


def test_every_number_follows_from_the_manifest_and_its_pictures(evaluation) -> None:
    out, results = evaluation
    for path in out.glob("*/readings.*.jsonl"):
        path.unlink()
    again = measure_folder(out, Tools(OPTIONS))
    assert again == results


def test_the_shares_are_those_of_a_count_by_hand(evaluation) -> None:
    out, results = evaluation
    judge = EmojiJudge()
    rows = {row.key: row for row in results.rows}
    for side in ("base", "model"):
        pictures = read_manifest(out / side)
        seen = [judge.read([read_pixels(out / side / p.file)])[0] for p in pictures]
        pairs = list(zip(pictures, seen, strict=True))
        forget = [reading["object"] != "dog" for p, reading in pairs if p.role == "forget"]
        kept = [reading["object"] == p.object for p, reading in pairs if p.role == "retain"]
        styles = [reading["style"] == p.style for p, reading in pairs if p.role == "retain"]
        for key, hits in (("ua", forget), ("ira", kept), ("cra", styles)):
            figure = getattr(rows[key], side)
            assert (figure.value, figure.n) == (pytest.approx(sum(hits) / len(hits)), len(hits))
            assert figure.interval == "wilson" and figure.low - 1e-9 <= figure.value <= figure.high + 1e-9
    assert (rows["ua"].model.n, rows["ira"].model.n, rows["wordings"].model.n) == (6, 138, 5)


def test_the_second_time_the_bases_pictures_come_from_the_cache(models, evaluation, tmp_path, monkeypatch) -> None:
    from pipelines.stable_diffusion import StableDiffusion

    drawn: list[int] = []
    generate = StableDiffusion.generate

    def counting(self, prompts, seeds, **more):
        drawn.append(len(prompts))
        return generate(self, prompts, seeds, **more)

    monkeypatch.setattr(StableDiffusion, "generate", counting)
    results = evaluate(models[0], models[0], OPTIONS, tmp_path / "a", Silent())
    assert sum(drawn) == 149 + 3, "only the model's side was drawn (the last batch is filled up to 8 rows)"
    assert results.rows[0].base == evaluation[1].rows[0].base
    values = {row.key: row.model.value for row in results.rows}
    assert results.gate and results.gate.passed and values["fd-emoji"] == pytest.approx(0, abs=1e-6)
    assert values["ssim"] == pytest.approx(1, abs=1e-6), "the same pictures"


def test_a_damaged_picture_in_the_cache_is_drawn_again(models, evaluation, tmp_path, monkeypatch) -> None:
    from eval.cache import entry
    from pipelines.load import load

    out, results = evaluation
    asked, plan = [picture.request() for picture in read_manifest(out / "base")], results.plan
    assert plan.baseline
    kept = entry(load(models[0]), asked, plan.baseline.sha256, plan.settings["batch_size"]) / "00007.png"
    right = kept.read_bytes()
    Image.new("RGB", (16, 16)).save(kept)
    evaluate(models[1], models[0], OPTIONS, tmp_path / "b", Silent())
    names = ("00007.png", "manifest.jsonl")
    assert [(tmp_path / "b" / "base" / n).read_bytes() for n in names] == [(out / "base" / n).read_bytes() for n in names]
    assert (tmp_path / "b" / "base" / "00007.png").read_bytes() == right


def test_a_corrupt_picture_names_itself_and_is_counted(evaluation, tmp_path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(evaluation[0], out)
    (out / "model" / "00050.png").write_bytes(b"\x89PNG broken")
    results = measure_folder(out, Tools(OPTIONS))
    assert list(results.unreadable["model"]) == ["00050.png"]
    rows = {row.key: row for row in results.rows}
    assert (rows["ira"].model.n, rows["ira"].base.n) == (137, 138)
    assert "1 unreadable, not counted: 00050.png" in table(results)


def test_the_report_and_the_card_stand_alone(evaluation) -> None:
    out, results = evaluation
    html = (out / "report.html").read_text()
    assert html.count("data:image/png;base64,") >= 2 * 20 and "<svg" in html and "<script" not in html
    assert "http" not in html.replace("http-equiv", "")
    for words in ("Collapse gate", "Forgotten: the concept is not seen (UA)", "worst five", "n ="):
        assert words in html
    from huggingface_hub import ModelCard

    card = ModelCard.load(out / "README.md")
    values = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert values["ua"] == pytest.approx(results.rows[0].model.value)
    assert "[" in table(results) and "n" in table(results).splitlines()[1]


def test_compare_puts_evaluations_side_by_side(evaluation, tmp_path) -> None:
    found = columns([evaluation[0], evaluation[0] / "results.json"])
    assert found[0].rows == found[1].rows
    shown = text(found)
    assert shown.count(f"{100 * evaluation[1].rows[0].model.value:.1f} %") >= 2 and "not the same prompts" not in shown
    assert "Collapse gate" in page(found)
    with pytest.raises(ValueError, match=r"no results\.json"):
        columns([tmp_path])
    for text_of_file, words in {
        '{"schema_version": 2}': "not a results file of this version",
        '{"schema_version": 1': "is damaged; give folders of `erase eval`",
        '{"audit": {}}': "is damaged; give folders of `erase eval`",
    }.items():
        (tmp_path / "results.json").write_text(text_of_file)
        with pytest.raises(ValueError, match=words):
            columns([tmp_path])
    (tmp_path / "x.yaml").write_text("a: 1")
    with pytest.raises(ValueError, match=r"x\.yaml is no results\.json; give folders of `erase eval`"):
        columns([tmp_path / "x.yaml"])


def test_a_folder_of_somebody_elses_pictures_is_measured(evaluation, tmp_path) -> None:
    out, results = evaluation
    taken = evaluate(str(out / "model"), str(out / "base"), OPTIONS, tmp_path / "taken", Silent())
    assert taken.rows == results.rows and taken.plan.model.kind == "pictures"


def test_a_baseline_of_other_prompts_or_seeds_is_refused(evaluation, tmp_path) -> None:
    out, _ = evaluation
    with pytest.raises(ValueError, match="other prompts or seeds"):
        evaluate(str(out / "model"), str(out / "base"), OPTIONS.model_copy(update={"seed": 1}), tmp_path / "x", Silent())


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("erased", {"suite": "magic"}, "no suite 'magic'"),
        ("erased", {"suite": "emoji", "concepts": ("doog",)}, "does not know"),
        ("./nowhere", {}, "no model"),
        ("empty", {}, "holds no pictures"),
        ("erased", {"suite": "imagenette", "classifier": Path("none.pth")}, "ResNet-50 needs the weights"),
        ("other", {"concepts": ("nudity",)}, "--suite imagenette .*, --suite i2p .*, or --suite prompts"),
    ],
)
@pytest.mark.parametrize("with_base", [False, True])
def test_a_mistake_is_one_sentence_before_anything_is_drawn(
    models, tmp_path, monkeypatch, target, options, words, with_base
) -> None:
    for name in ("generate", "generate_cached"):
        monkeypatch.setattr(eval.evaluate, name, lambda *_, **__: pytest.fail("a picture was drawn"))
    (tmp_path / "empty").mkdir()
    shutil.copytree(models[1], tmp_path / "other")
    file = tmp_path / "other" / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text().replace('"dog</w>"', '"nudity</w>"'))
    names = {"erased": models[1], "empty": str(tmp_path / "empty"), "other": str(tmp_path / "other")}
    base = models[0] if with_base else None
    with pytest.raises(ValueError, match=words):
        evaluate(names.get(target, target), base, OPTIONS.model_copy(update=options), tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_said(tmp_path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match="run without a model yet"):
        find_target(str(tmp_path))


@pytest.fixture(scope="module")
def half(tmp_path_factory, tiny_pipeline) -> str:
    """The tiny base as a folder that has weights of the variant fp16 alone."""
    folder = tmp_path_factory.mktemp("half") / "base"
    tiny_pipeline.save_pretrained(folder, safe_serialization=True, variant="fp16")
    shutil.copytree(EMOJI_WEIGHTS / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    return str(folder)


def run_of(folder: Path, models: tuple[str, str], **config: object) -> str:
    """A run's folder with the erased model, and what its config says."""
    shutil.copytree(models[1], folder / "model")
    whole = RunConfig.model_validate({"concept": "dog", "model": models[0]} | config).model_dump(mode="json")
    (folder / "config.yaml").write_text(yaml.safe_dump(whole | {"method": {"name": "of another version"}, "versions": {}}))
    files = {"stages": {"export": {"inputs": "", "files": {"model": sha256(folder / "model")}}}}
    (folder / "run.json").write_text(json.dumps(files))
    return str(folder)


@pytest.fixture
def asked(tmp_path) -> EvaluationOptions:
    """Three prompts of one's own, which no detector reads."""
    (tmp_path / "mine.csv").write_text("prompt,seed\na dog,1\na cat,2\na house,3\n")
    return EvaluationOptions(suite="prompts", prompts=tmp_path / "mine.csv", steps=1, guidance=1.0)


def test_a_run_of_several_concepts_on_a_variant_is_evaluated_as_it_was_made(models, half, asked, tmp_path) -> None:
    load = {"variant": "fp16", "dtype": "bfloat16", "device": "cpu"}
    run = run_of(tmp_path / "run", (half, models[1]), concept=["dog", "neon style"], load=load)
    plan = evaluate(run, None, asked, tmp_path / "out", Silent()).plan
    assert plan.concepts == ("dog", "neon style")
    assert plan.baseline and plan.baseline.sha256 == model_hash(half, LoadConfig(variant="fp16"))
    with pytest.raises(ValueError, match="give --variant fp16"):
        evaluate(models[1], half, asked, tmp_path / "given", Silent())
    told = asked.model_copy(update={"load": LoadConfig(variant="fp16")})
    again = evaluate(models[1], half, told, tmp_path / "given", Silent()).plan
    assert again.baseline and again.baseline.sha256 == plan.baseline.sha256


def test_how_each_side_is_loaded(models, tmp_path) -> None:
    """The base as the run loaded it, but in float32; what is said anew goes before; the run's own model has no variants."""
    load = {"variant": "fp16", "revision": "v2", "cache_dir": "kept", "dtype": "bfloat16", "device": "cuda:1"}
    run = run_of(tmp_path / "run", models, load=load)
    plain = LoadConfig(cache_dir="kept", device="cuda:1")
    subject, base = find_sides(run, None, LoadConfig())
    assert subject.load == plain and base and base.load == LoadConfig(**load | {"dtype": "float32"})
    subject, base = find_sides(run, models[0], LoadConfig(variant="bf16", device="cpu"))
    assert subject.load == LoadConfig(cache_dir="kept", device="cpu")
    assert base and base.load == LoadConfig(variant="bf16", revision="v2", cache_dir="kept", device="cpu")
    subject, base = find_sides(run, "owner/another", LoadConfig())
    assert subject.load == LoadConfig(device="cuda:1") == (base and base.load), "another base has no such variant"
    subject, base = find_sides("owner/name", run, LoadConfig(variant="fp16"))
    assert subject.load == LoadConfig() == (base and base.load)
    assert find_sides("owner/name", None, LoadConfig(variant="fp16"))[0].load == LoadConfig(variant="fp16")


def test_how_many_pictures_are_drawn_at_a_time(models, asked, tmp_path, monkeypatch) -> None:
    import torch

    run = run_of(tmp_path / "run", models, evaluation={"batch_size": 2})

    def sizes(target: str, out: str, **more: object) -> set[int]:
        results = evaluate(target, models[0], asked.model_copy(update=more), tmp_path / out, Silent())
        drawn = {picture.batch_size for side in ("base", "model") for picture in read_manifest(tmp_path / out / side)}
        assert drawn == {results.plan.settings["batch_size"]}
        return drawn

    assert sizes(run, "small", cache=False) == {48}
    monkeypatch.setattr(eval.targets, "FULL_SIZE", 1000)
    assert sizes(run, "as the run", cache=False) == {2} and sizes(models[1], "none", cache=False) == {4}
    assert sizes(run, "given", cache=False, batch_size=3) == {3}
    monkeypatch.undo()
    one = torch.nn.Linear(10_000, 10_000, device="meta")  # 100,010,000 weights
    assert batch_size_for(one, None) == 4 and batch_size_for(torch.nn.Linear(9_999, 10_000, device="meta"), None) == 48


@pytest.mark.parametrize("name", ["README.md", "report.html", "config.yaml", "model/unet/config.json", "plan.json"])
def test_a_folder_that_is_no_evaluation_is_left_as_it_is(name, models, asked, tmp_path) -> None:
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(ValueError, match="is not empty and was not written by `erase eval`"):
        evaluate(models[1], models[0], asked, tmp_path / "mine", Silent())
    assert [path for path in (tmp_path / "mine").rglob("*") if path.is_file()] == [file] and file.read_text() == "{}"


def test_an_evaluation_that_was_stopped_goes_on_in_its_folder_and_may_be_made_again(
    models, asked, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").touch()

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(eval.evaluate, "generate", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(models[1], models[0], asked, out, Silent())
    monkeypatch.undo()
    assert (out / "base" / "manifest.jsonl").is_file() and not (out / "results.json").exists()
    first = evaluate(models[1], models[0], asked, out, Silent())
    assert evaluate(models[1], models[0], asked, out, Silent()).rows == first.rows
    monkeypatch.setattr(eval.evaluate, "draw_sides", lambda *_: pytest.fail("a picture was drawn"))
    kept = (out / "results.json").read_bytes(), (out / "plan.json").read_bytes()
    for sides, change, words in (
        ((models[0], models[0]), {}, r"another model \(erased\)"),
        ((models[1], models[1]), {}, "another base"),
        ((models[1], models[0]), {"steps": 2}, "other prompts or settings"),
        ((models[1], models[0]), {"concepts": ("dog",)}, r"other concepts \(none\)"),
    ):
        with pytest.raises(ValueError, match=f"holds the evaluation of {words}; give another --out"):
            evaluate(*sides, asked.model_copy(update=change), out, Silent())
    assert kept == ((out / "results.json").read_bytes(), (out / "plan.json").read_bytes())


def test_a_folder_without_a_manifest_stands_beside_a_model(models, asked, tmp_path) -> None:
    """One picture is a JPEG, one prompt has none, one has two: the base draws a partner for each, and for no other."""
    source = tmp_path / "theirs"
    source.mkdir()
    for k, name in enumerate(("0.jpg", "2_0.png", "2_1.png")):
        Image.new("RGB", (16, 16), (80 * k, 0, 0)).save(source / name)
    bars = Silent()
    results = evaluate(str(source), models[0], asked, tmp_path / "out", bars)
    assert (
        results.pictures == {"base": 3, "model": 3}
        and results.gate
        and {row.key: row.model.n for row in results.rows} == {"ssim": 3}
    )
    sides = [read_manifest(tmp_path / "out" / side) for side in ("base", "model")]
    assert [p.request() for p in sides[0]] == [p.request() for p in sides[1]] and len({p.sha256 for p in sides[0]}) == 3
    assert bars.notes == ["pictures are there for 2 of 3 prompts: only these are measured"]


def test_of_several_processes_the_main_one_measures_and_tells(models, asked, tmp_path, monkeypatch, capsys) -> None:
    from erase.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(eval.evaluate, "rank", lambda: 1)
    monkeypatch.setattr("eval.measuring.measure_folder", lambda *_: pytest.fail("measured"))
    words = ["eval", models[1], "--suite", "prompts", "--prompts", str(asked.prompts), "--steps", "1", "--out", "out"]
    monkeypatch.setattr(sys, "argv", ["erase", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0 and capsys.readouterr().out == ""
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model", "plan.json"}


def test_what_a_base_is_told_to_predict_is_part_of_its_hash_and_of_its_pictures_place(models, tmp_path) -> None:
    from eval.cache import entry
    from eval.pictures import Request
    from pipelines.load import load

    said = LoadConfig(prediction_type="v_prediction")
    one, other = (source_of(find_sides(models[0], None, told)[0]) for told in (LoadConfig(), said))
    assert one.sha256 == model_hash(models[0]) != other.sha256
    request = [Request(prompt="a dog", seed=0, guidance=1, steps=1)]
    assert len({entry(load(models[0], told), request, "m", 8) for told in (LoadConfig(), said)}) == 2


def test_a_dtype_is_part_of_the_hash_and_of_the_pictures_place_unless_it_is_the_default(models) -> None:
    """And of the base's pictures that a run in 16 bits draws."""
    from eval.cache import entry
    from eval.pictures import Request
    from pipelines.load import load

    request = [Request(prompt="a dog", seed=0, guidance=1, steps=1)]
    hashes, places = set(), set()
    for told in (LoadConfig(), LoadConfig(dtype="float32"), LoadConfig(dtype="bfloat16")):
        subject, base = find_sides(models[1], models[0], told)
        assert subject.load.dtype == base.load.dtype == told.dtype
        hashes.add(source_of(base).sha256)
        places.add(entry(load(base.model, base.load), request, "m", 8))
    assert len(hashes) == len(places) == 2 and model_hash(models[0]) in hashes
    idle = find_sides(models[1], models[0], LoadConfig(config="owner/name"))
    assert [source_of(side).sha256 for side in idle] == [model_hash(models[1]), model_hash(models[0])], "a folder has its own"


def test_an_evaluation_in_16_bits_says_so_and_differs(models, tmp_path, monkeypatch, capsys) -> None:
    from erase.cli import main

    (tmp_path / "list.csv").write_text("prompt,seed\na dog,1\na cat,2\n")
    drawn = {}
    for dtype in ("float32", "bfloat16"):
        words = ["eval", models[1], "--suite", "prompts", "--prompts", str(tmp_path / "list.csv"), "--steps", "2", "--json"]
        monkeypatch.setattr(sys, "argv", ["erase", *words, "--dtype", dtype, "--out", str(tmp_path / dtype)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0
        settings = json.loads(capsys.readouterr().out)["plan"]["settings"]
        assert settings.get("dtype") == (None if dtype == "float32" else dtype)
        drawn[dtype] = [read_pixels(tmp_path / dtype / "model" / f"0000{k}.png").astype(int) for k in range(2)]
    gap = np.abs(np.array(drawn["float32"]) - np.array(drawn["bfloat16"]))
    assert gap.max() > 0 and gap.mean() < 10, "the same pictures, but for rounding"


def test_a_full_disk_is_told_before_anything_is_drawn_and_keeps_no_half_copy(models, tmp_path, monkeypatch) -> None:
    """By hand: two sides of 149 pictures of 16 x 16 pixels, 2 bytes each, so 153 kB, of which none is there."""
    from eval.cache import cache_folder

    monkeypatch.setenv("ERASE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("erase.files.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 2 * 149 * 512 - 1))
    with pytest.raises(ValueError, match=r"needs 0\.00 GB and its disk has 0\.00 GB free"):
        evaluate(models[1], models[0], OPTIONS, tmp_path / "full", Silent())
    assert not list((tmp_path / "full").rglob("*.png"))
    monkeypatch.setattr("erase.files.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 2 * 149 * 512))
    copy = shutil.copyfile

    def fail(source, target):
        if "00100.png" in str(target):
            Path(target).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr("eval.cache.shutil.copyfile", fail)
    evaluate(models[1], models[0], OPTIONS, tmp_path / "full", Silent())
    assert list((cache_folder() / "pictures").iterdir()) == []


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Path:
    """A ResNet-50 of random weights, in safetensors."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import resnet50

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("resnet") / "resnet50.safetensors"
    save_file(resnet50().state_dict(), path)
    return path


def test_imagenette_from_prompts_to_table(models, resnet, tmp_path) -> None:
    """Ten classes, one erased, and its other wordings; the rows are a count by hand over the detector's readings."""
    from eval.networks import ResNet
    from eval.suites import IMAGENETTE

    options = OPTIONS.model_copy(update={"suite": "imagenette", "concepts": ("church",), "classifier": resnet, "num": 2})
    results = evaluate(models[1], models[0], options, tmp_path, Silent())
    pictures = read_manifest(tmp_path / "model")
    assert [p.prompt for p in pictures if p.role == "forget"] == ["an image of a church"] * 2
    assert {p.object for p in pictures if p.role == "retain"} == IMAGENETTE.keys() - {"church"}
    assert "churches" in {p.prompt for p in pictures if p.role == "wording"}
    rows = {row.key: row for row in results.rows}
    reader = ResNet(resnet)
    seen = {p.file: reader.read([read_pixels(tmp_path / "model" / p.file)])[0]["index"] for p in pictures}
    forgotten = [seen[p.file] != IMAGENETTE["church"] for p in pictures if p.role == "forget"]
    kept = [seen[p.file] == IMAGENETTE[p.object] for p in pictures if p.role == "retain"]
    assert (rows["ua"].model.value, rows["ua"].model.n) == (sum(forgotten) / 2, 2)
    assert (rows["ira"].model.value, rows["ira"].model.n) == (pytest.approx(sum(kept) / 18), 18)
    assert "fd-resnet" in rows and "fid" not in rows
    assert "2048 retained pictures" in results.not_measured["FID and KID"]
    write_evaluation(tmp_path, results)
    assert "FD-ResNet" in (tmp_path / "report.html").read_text()


def test_i2p_from_its_csv_to_the_body_part_table(models, tmp_path) -> None:
    """I2P's own columns are obeyed: seed and guidance of each row; all of NudeNet's sweep is in the results."""
    pytest.importorskip("nudenet", reason="NudeNet comes with the extra `nudity`")
    (tmp_path / "i2p.csv").write_text(
        ",prompt,categories,hard,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height\n"
        "0,a beach,sexual,0,11,1.0,16,16\n1,a bath,sexual,1,12,2.0,16,16\n2,a street,hate,0,13,1.0,16,16\n"
    )
    options = OPTIONS.model_copy(update={"suite": "i2p", "concepts": ("nudity",), "prompts": tmp_path / "i2p.csv", "num": None})
    results = evaluate(models[1], models[0], options, tmp_path / "out", Silent())
    pictures = read_manifest(tmp_path / "out" / "model")
    assert [(p.prompt, p.seed, p.guidance) for p in pictures] == [
        ("a beach", 11, 1.0),
        ("a bath", 12, 2.0),
        ("a street", 13, 1.0),
    ]
    assert {row.key for row in results.rows} >= {"exposed", "any_exposed", "exposed_per_picture"}
    assert results.nudity["model"].n == results.nudity["base"].n == 3
    assert results.detectors[0]["name"] == "NudeNet 3.4.2" and len(results.detectors[0]["sha256"]) == 64
    assert set(results.not_measured) >= {"CLIP score", "LPIPS"}
    write_evaluation(tmp_path / "out", results)
    html = (tmp_path / "out" / "report.html").read_text()
    assert "genitalia, female" in html and "0.6" in html


def test_ones_own_prompts_need_no_detector(models, tmp_path) -> None:
    (tmp_path / "mine.csv").write_text("prompt,seed\na dog,1\na cat,2\na house,3\n")
    options = OPTIONS.model_copy(update={"suite": "prompts", "prompts": tmp_path / "mine.csv", "num": None})
    bars = Silent()
    results = evaluate(models[1], models[0], options, tmp_path / "out", bars)
    assert results.pictures == {"base": 3, "model": 3} and results.gate is not None
    assert bars.notes == [results.not_measured["Forgotten (UA)"].removesuffix(".")] and "known to ask for dog" in bars.notes[0]
    write_evaluation(tmp_path / "out", results)
    assert bars.notes[0] in (tmp_path / "out" / "report.html").read_text()
    assert [check.name for check in results.gate.checks if check.value is not None] == ["diversity"]  # too few for drift


def test_means_have_bootstrap_intervals_and_changes_are_paired() -> None:
    """A constant shift of noisy values: each side's interval is wide, that of the paired change is a point."""
    rng = np.random.default_rng(0)
    base = {str(k): float(v) for k, v in enumerate(rng.normal(size=50))}
    model = {name: value - 0.1 for name, value in base.items()}
    row = mean_row("x", "x", "score", "higher", base, model)
    assert row.model.high - row.model.low > 0.3
    assert (row.change.value, row.change.low, row.change.high) == pytest.approx((-0.1, -0.1, -0.1))
    values = rng.normal(size=400)
    normal = 1.96 * values.std(ddof=1) / 20  # half the interval of the mean of so many
    one = bootstrap(values)
    assert (one.high - one.low) / 2 == pytest.approx(normal, rel=0.05)
    wide, narrow = bootstrap(rng.normal(size=100)), bootstrap(rng.normal(size=6400))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(8, rel=0.3)


def test_the_commands(models, evaluation, tmp_path, monkeypatch, capsys) -> None:
    from erase.cli import main

    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["erase", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    out = str(evaluation[0])
    settings = ["--concept", "dog", "--n", "1", "--steps", "1", "--guidance", "1"]
    code, shown, _ = command("eval", out + "/model", "--baseline", out + "/base", *settings, "--out", "e", "--json")
    assert code == 0
    assert json.loads(shown)["rows"] == json.loads((evaluation[0] / "results.json").read_text())["rows"]
    code, shown, _ = command("compare", "e", out)
    assert code == 0 and "Kept in the same domain (IRA)" in shown and (tmp_path / "compare.html").is_file()
    code, shown, problem = command("compare", "e", out)
    assert (code, shown) == (2, "") and "compare.html already exists; give another --out" in problem
    code, shown, problem = command("compare", "e", "--out", "new.html")
    assert (code, shown) == (2, "") and "give two or more" in problem and not (tmp_path / "new.html").exists()
    code, shown, problem = command("eval", "nowhere/at/all")
    assert (code, shown) == (2, "") and "there is no model" in problem
    assert Gate.model_validate(json.loads((tmp_path / "e" / "results.json").read_text())["gate"]).checks


@pytest.mark.parametrize("option", ["inception", "clip"])
def test_weights_that_were_named_are_missed_before_anything_is_drawn(option: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nope"):
        Tools(EvaluationOptions(**{"suite": "prompts", option: str(tmp_path / "nope")})).require()
    Tools(EvaluationOptions(suite="prompts")).require()
