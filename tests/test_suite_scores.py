"""Scores of pictures and texts against computations of their own: transformers' parts, SciPy, counting by hand."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from releases import picture
from scipy.ndimage import gaussian_filter
from torch import nn

from swirl_nemo.evaluation.suites import pictures
from swirl_nemo.evaluation.suites.pictures import PictureScores
from swirl_nemo.evaluation.suites.texts import corpus_scores, text_scores

CAPTIONS = ("a cup", "a broken cup")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of random weights in the format of transformers, its vocabulary the bytes."""
    import json

    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    folder = tmp_path_factory.mktemp("clip")
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=40)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(words), "max_position_embeddings": 40, "eos_token_id": len(words) - 1}
    vision = {**size, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_clip_scores_are_cosines_of_its_parts(clip):
    from transformers import CLIPModel, CLIPTokenizerFast

    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizerFast.from_pretrained(clip)
    mean, std = (np.array(v) for v in ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]))

    def unit(features: torch.Tensor) -> np.ndarray:
        return (features / features.norm()).detach().numpy()[0].astype(float)

    def of_image(image: Image.Image) -> np.ndarray:
        shorter = image.resize((48, 32), Image.Resampling.BICUBIC).crop((8, 0, 40, 32))
        pixels = (np.asarray(shorter) / 255 - mean) / std
        pixels = torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32)
        return unit(model.visual_projection(model.vision_model(pixels)[1]))

    def of_text(text: str) -> np.ndarray:
        return unit(model.text_projection(model.text_model(torch.tensor([tokenizer(text)["input_ids"]]))[1]))

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return a @ b / np.sqrt((a @ a) * (b @ b))

    shown = prediction, before, target = picture(1, (96, 64)), picture(2), picture(3)
    y, x, t = map(of_image, shown)
    old, new = map(of_text, CAPTIONS)
    scores = PictureScores(str(clip), None)(prediction, before, target, CAPTIONS)
    expected = {
        "clip_target": cosine(y, t),
        "clip_source": cosine(y, x),
        "clip_success": float(cosine(y, t) > cosine(y, x)),
        "clip_direction": cosine(y - x, t - x),
        "clip_caption": cosine(y, new),
        "clip_caption_direction": cosine(y - x, new - old),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert (
        len({round(value, 3) for value in expected.values()}) > 4
    )  # a tiny model that tells nothing apart shows nothing


def test_ssim_and_l1_are_scipys():
    """SSIM with the window of Wang et al. 2004: a Gaussian of sigma 1.5, cut at 5 pixels, K1 0.01, K2 0.03."""
    prediction, target = picture(4), picture(5)
    x, y = (np.asarray(image) / 255 for image in (prediction, target))

    def blur(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, (1.5, 1.5, 0), radius=(5, 5, 0), mode="mirror")

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (var_x + var_y + 0.03**2)
    scores = PictureScores(None, None)(prediction, picture(6), target, None)
    assert scores == pytest.approx({"l1": np.abs(x - y).mean(), "ssim": (luminance * structure).mean()}, abs=1e-3)


def test_a_prediction_of_another_size_is_brought_to_the_targets():
    target = picture(7, (64, 64))
    scores = PictureScores(None, None)(target.resize((32, 32), Image.Resampling.BOX), target, target, None)
    assert scores["l1"] < 0.05 and scores["ssim"] > 0.5


def test_what_is_not_computed_is_named():
    scores = PictureScores(None, None)
    assert list(scores.missing) == ["CLIP", "LPIPS"]
    assert scores(picture(1), picture(2), None, None) == {}


def test_a_folder_without_clip_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=rf"^suite.clip={tmp_path}: no CLIP model \(.*\): give its folder, or null$"):
        PictureScores(str(tmp_path), None)
    with pytest.raises(ValueError, match=r"^suite.clip=/nowhere: no such folder: "):
        PictureScores("/nowhere", None)


class AlexNet:
    """Its `features`, as torchvision has them; no torchvision here fits torch's CPU build."""

    def __init__(self):
        torch.manual_seed(1)
        relu, pool = nn.ReLU(), nn.MaxPool2d(3, 2)
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), relu, pool, nn.Conv2d(64, 192, 5, padding=2), relu, pool),
            *(nn.Conv2d(192, 384, 3, padding=1), relu, nn.Conv2d(384, 256, 3, padding=1), relu),
            *(nn.Conv2d(256, 256, 3, padding=1), relu, pool),
        )


def test_lpips_is_the_weighted_distance_of_the_layers(tmp_path, monkeypatch):
    """Of the net in the file; proves nothing of torchvision, whose description of the net a stand-in gives."""
    from torchmetrics.functional.image import lpips

    features = AlexNet().features
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, tmp_path / "alexnet.pth")

    def description(net: str, pretrained: bool) -> nn.Sequential:
        assert net == "alex" + "net" and not pretrained
        blank = AlexNet().features
        for parameter in blank.parameters():
            nn.init.zeros_(parameter)
        return blank

    monkeypatch.setattr(lpips, "_get_tv_model_features", description)
    scores = PictureScores(None, str(tmp_path / "alexnet.pth"))
    one, other = picture(8, (96, 96)), picture(9, (96, 96))

    linear = torch.load(f"{lpips.__file__.rpartition('/')[0]}/lpips_models/alex.pth", "cpu", weights_only=True)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    a, b = (
        ((2 * torch.tensor(np.array(image)).float() / 255 - 1 - shift) / scale).permute(2, 0, 1)[None]
        for image in (one, other)
    )
    expected, taken = 0.0, iter(range(5))
    for number, layer in enumerate(features):
        a, b = layer(a), layer(b)
        if number in (1, 4, 7, 9, 11):
            distance = (a / (a.norm(dim=1, keepdim=True) + 1e-8) - b / (b.norm(dim=1, keepdim=True) + 1e-8)) ** 2
            weights = linear[f"lin{next(taken)}.model.1.weight"]
            expected += (distance * weights[0]).sum(1).mean().item()
    assert scores.likeness(one, other)["lpips"] == pytest.approx(expected, rel=1e-3)
    assert "LPIPS" not in scores.missing


def test_lpips_without_torchvision_is_named(tmp_path, monkeypatch):
    from torchmetrics.functional.image import lpips

    def broken(net: str, pretrained: bool):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(lpips, "_get_tv_model_features", broken)
    (tmp_path / "alexnet.pth").write_bytes(b"")
    missing = pictures.PictureScores(None, str(tmp_path / "alexnet.pth")).missing["LPIPS"]
    assert missing == "torchvision is not to be used here (operator torchvision::nms does not exist)"


def test_lpips_weights_of_something_else_are_one_line(tmp_path, monkeypatch):
    from torchmetrics.functional.image import lpips

    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda net, pretrained: AlexNet().features)
    torch.save({"classifier.1.weight": torch.zeros(1)}, tmp_path / "alexnet.pth")
    with pytest.raises(ValueError, match=r"alexnet.pth: no AlexNet weights \('features.0.weight'\): give "):
        PictureScores(None, str(tmp_path / "alexnet.pth"))


def test_rouge_is_counted_by_hand():
    prediction, target = "the green tea is hot now", "green tea is now hot"
    ours, theirs = prediction.split(), target.split()
    common = (Counter(ours) & Counter(theirs)).total()
    longest = len(["green", "tea", "is", "hot"])  # of the common subsequences
    scores = text_scores(prediction, target)
    assert scores["rouge1"] == pytest.approx(2 * common / (len(ours) + len(theirs)))
    assert scores["rougeL"] == pytest.approx(2 * longest / (len(ours) + len(theirs)))
    assert scores["exact_match"] == 0 and text_scores(target, target) == {
        "exact_match": 1,
        "token_f1": 1,
        "rouge1": 1,
        "rougeL": 1,
    }


def test_bleu_is_counted_by_hand():
    """Clipped n-gram precisions over both pairs together, 1 to 4, and the brevity penalty."""
    pairs = [("a b c d e f", "a b c d x f"), ("g h i j", "g h i j k")]

    def grams(text: str, n: int) -> Counter:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    precisions = [
        sum((grams(p, n) & grams(t, n)).total() for p, t in pairs) / sum(grams(p, n).total() for p, _ in pairs)
        for n in range(1, 5)
    ]
    expected = np.exp(np.log(precisions).mean() + 1 - 11 / 10)
    scores = corpus_scores(*zip(*pairs, strict=True))
    assert scores["bleu"] == pytest.approx(expected)
    assert 0 < scores["chrf"] < 1 and corpus_scores(["a b"], ["a b"])["chrf"] == pytest.approx(1)
