"""The networks of full-size models: real loading code on weights made here, and a sentence where there are none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eval.networks import ALEXNET, Clip, Inception, ResNet, checkpoint, load_weights, lpips, ssim


def pictures(num: int, size: int = 32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(num)]


@pytest.fixture
def no_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path


def test_absent_weights_are_said_with_their_name_and_option(no_cache) -> None:
    for make, words in (
        (Inception, "FID needs the weights weights-inception.*--inception"),
        (ResNet, "ResNet-50 needs the weights resnet50.*--classifier"),
        (lpips, "LPIPS needs the weights alexnet"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    with pytest.raises(ValueError, match=r"CLIP model .* is not in the local cache"):
        Clip(str(no_cache / "clip"))


def test_weights_are_found_in_torchs_cache(no_cache) -> None:
    path = no_cache / "hub" / "checkpoints" / "w.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    assert checkpoint("w.pth", None, "X", "--x") == path


def test_structural_similarity_of_flat_pictures_is_their_means_alone() -> None:
    """Flat grey a and b have no structure: (2ab + c) / (a^2 + b^2 + c), c = (0.01 x 255)^2; a picture and itself: 1."""
    compare = ssim()
    grey = {level: [np.full((32, 32, 3), level, np.uint8)] for level in (60, 120)}
    picture = [np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)]
    assert compare(picture, picture) == pytest.approx(1, abs=1e-5)
    assert compare(grey[60], grey[120]) == pytest.approx((2 * 60 * 120 + 6.5025) / (60**2 + 120**2 + 6.5025), abs=1e-4)
    assert compare(picture, grey[120]) < 0.1


def test_lpips_is_torchmetrics_own_value_by_one_network_for_all_pairs(no_cache, monkeypatch) -> None:
    import torchvision
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

    path = no_cache / "hub" / "checkpoints" / ALEXNET
    path.parent.mkdir(parents=True)
    path.touch()
    torch.manual_seed(0)
    alexnet, built = torchvision.models.alexnet(), []  # the published weights are not at hand

    def build(**_: object) -> torch.nn.Module:
        built.append(alexnet)
        return alexnet

    monkeypatch.setattr(torchvision.models, "alexnet", build)
    compare, (one, two, three) = lpips(), pictures(3, 64)
    found = [compare([one], [two]), compare([one], [three]), compare([one], [one])]
    assert len(built) == 1
    tensors = [torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1 for picture in (one, two, three)]
    expected = [float(learned_perceptual_image_patch_similarity(tensors[0], other, net_type="alex")) for other in tensors[1:]]
    assert found == [*expected, 0.0] and min(expected) > 0


class Evil:
    """What a pickle can do when it is loaded."""

    def __reduce__(self):
        return (Path("evil").touch, ())


def test_a_torch_file_is_read_as_data_and_nothing_in_it_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(2)}, "good.pth")
    assert torch.equal(load_weights(Path("good.pth"))["a"], torch.ones(2))
    torch.save({"a": Evil()}, "bad.pth")
    with pytest.raises(ValueError, match=r"bad\.pth holds more than tensors"):
        load_weights(Path("bad.pth"))
    assert not Path("evil").exists()
    Path("noise.safetensors").write_bytes(b"0123456789")
    with pytest.raises(ValueError, match="holds no weights"):
        load_weights(Path("noise.safetensors"))


def test_resnet_reads_the_likeliest_class_and_its_probability(tmp_path) -> None:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    network = resnet50().eval()
    save_file(network.state_dict(), tmp_path / "resnet.safetensors")
    resnet = ResNet(tmp_path / "resnet.safetensors")
    batch = pictures(2)
    with torch.no_grad():
        tensors = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
        expected = network(resnet.transform(tensors)).softmax(1).max(1)
    readings = resnet.read(batch)
    assert [r["index"] for r in readings] == expected.indices.tolist()
    assert [r["anything"] for r in readings] == pytest.approx(expected.values.tolist(), abs=1e-4)
    features = resnet.features(batch)
    assert features.shape == (2, 2048) and features.dtype == np.float64
    logits = network.fc(torch.from_numpy(features).float())
    assert logits.argmax(1).tolist() == expected.indices.tolist(), "the features are those the last layer reads"
    save_file({"fc.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not hold torchvision's ResNet-50"):
        ResNet(tmp_path / "other.safetensors")


@pytest.fixture(scope="module")
def clip(tmp_path_factory, tokenizer) -> Clip:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = str(tmp_path_factory.mktemp("clip"))
    size = len(tokenizer)
    text = {"vocab_size": size, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1, "max_position_embeddings": 77}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision | {"patch_size": 16}, projection_dim=8)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return Clip(folder)


def test_the_clip_score_is_the_models_own_cosine(clip) -> None:
    batch, prompts = pictures(3), ["a dog", "a cat, neon style", "a car"]
    inputs = clip.tokenizer(prompts, padding=True, return_tensors="pt")
    inputs["pixel_values"] = clip.processor(images=batch, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = clip.model(**inputs).logits_per_image / clip.model.logit_scale.exp()
    expected = (100 * logits.diagonal().clamp(min=0)).tolist()
    assert clip.scores(batch, prompts) == pytest.approx(expected, abs=1e-3)


def test_zero_shot_is_the_likeliest_of_the_names(clip) -> None:
    batch, names = pictures(3), ["dog", "cat", "car"]
    readings = clip.zero_shot(batch, names)
    scores = [[clip.pictures([p])[0] @ clip.texts([f"a photo of {n}"])[0] for n in names] for p in batch]
    assert [r["object"] for r in readings] == [names[int(np.argmax(row))] for row in scores]
    assert all(1 / 3 <= r["anything"] <= 1 for r in readings)


def test_inceptions_features_are_torch_fidelitys(tmp_path, monkeypatch) -> None:
    module = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity comes with the extra `eval`"
    )
    extractor = module.FeatureExtractorInceptionV3
    torch.manual_seed(0)
    with monkeypatch.context() as patch:  # the only way to one with random weights: its constructor always loads some
        patch.setattr(extractor, "load_state_dict", lambda *_: None)
        torch.save({}, tmp_path / "none.pth")
        theirs = extractor("inception-v3-compat", ["2048"], str(tmp_path / "none.pth"))
    save_file(theirs.state_dict(), tmp_path / "inception.safetensors")
    ours = Inception(tmp_path / "inception.safetensors")
    batch = pictures(2)
    expected = theirs(torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2))[0]
    assert np.allclose(ours.features(batch), expected.numpy(), atol=1e-6)
    assert ours.features(batch).shape == (2, 2048)
    save_file({"fc.bias": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not hold torch-fidelity's Inception"):
        Inception(tmp_path / "other.safetensors")
