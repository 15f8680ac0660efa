"""How a predicted picture is scored: CLIP, LPIPS, L1 and SSIM, on [1, 3, H, W] tensors in [0, 1].

CLIP's scores are those of SWIRL's released evaluation: cosine similarity of image features with the target's, with
those of the state before and with the target's caption, and of the two directions of change.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchmetrics.functional.image import structural_similarity_index_measure


class PictureScores:
    """The scores for which weights are there. `missing` says of the others why they are not computed.

    Raises ValueError, one line, where a folder or file that is given does not hold what it should.
    """

    def __init__(self, clip: str | None, lpips: str | None):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.missing: dict[str, str] = {}
        self._clip = self._lpips = None
        if clip is None:
            self.missing["CLIP"] = "suite.clip=null: give the Hugging Face folder of a CLIP model"
        else:
            self._clip = Clip(clip, self._device)
        if lpips is None:
            self.missing["LPIPS"] = "suite.lpips=null: give torchvision's file of AlexNet weights"
        else:
            try:
                self._lpips = Lpips(lpips, self._device)
            except (ImportError, RuntimeError) as error:
                self.missing["LPIPS"] = f"torchvision is not to be used here ({str(error).splitlines()[0]})"

    def __call__(
        self,
        prediction: Image.Image,
        before: Image.Image,
        target: Image.Image | None,
        captions: tuple[str, str] | None,
    ) -> dict[str, float]:
        """Of one prediction, whatever its size; without a target what needs one is left out."""
        scores = {} if target is None else self.likeness(prediction, target)
        if self._clip is not None:
            scores |= self._clip.scores(prediction, before, target, captions)
        return scores

    def likeness(self, image: Image.Image, target: Image.Image) -> dict[str, float]:
        """Of a picture with the target, whose size it is brought to first. SSIM's window (Wang et al. 2004) goes over
        the whole picture, mirrored at its edges."""
        ours, theirs = (self._tensor(one, target.size) for one in (image, target))
        scores = {
            "l1": (ours - theirs).abs().mean().item(),
            "ssim": structural_similarity_index_measure(ours, theirs, data_range=1.0).item(),
        }
        if self._lpips is not None:
            scores["lpips"] = self._lpips(ours, theirs)
        if self._clip is not None:
            scores["clip_target"] = self._clip.similarity(image, target)
        return scores

    def _tensor(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        fitted = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)[None].to(self._device) / 255


class Clip:
    """A CLIP model of transformers. Features [D] of what was asked for last are kept: a target is asked for often."""

    def __init__(self, folder: str, device: torch.device):
        from transformers import CLIPModel, CLIPProcessor

        if not Path(folder).is_dir():
            raise ValueError(
                f"suite.clip={folder}: no such folder: give the Hugging Face folder of a CLIP model, or null"
            )
        try:
            self._model = CLIPModel.from_pretrained(folder, local_files_only=True).eval().to(device)
            self._processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"suite.clip={folder}: no CLIP model ({reason}): give its folder, or null") from None
        self._kept: dict[object, Tensor] = {}

    def scores(
        self,
        prediction: Image.Image,
        before: Image.Image,
        target: Image.Image | None,
        captions: tuple[str, str] | None,
    ) -> dict[str, float]:
        ours, source = self._image(prediction), self._image(before)
        scores = {"clip_source": _cosine(ours, source)}
        if target is not None:
            aim = self._image(target)
            scores["clip_success"] = float(_cosine(ours, aim) > scores["clip_source"])
            if not torch.equal(aim, source):
                scores["clip_direction"] = _cosine(ours - source, aim - source)
        if captions is not None:
            old, new = (self._text(caption) for caption in captions)
            scores["clip_caption"] = _cosine(ours, new)
            scores["clip_caption_direction"] = _cosine(ours - source, new - old)
        return scores

    def similarity(self, one: Image.Image, other: Image.Image) -> float:
        return _cosine(self._image(one), self._image(other))

    def _image(self, image: Image.Image) -> Tensor:
        return self._features((image.size, image.tobytes()), "images", image, self._model.get_image_features)

    def _text(self, text: str) -> Tensor:
        return self._features(text, "text", text, self._model.get_text_features)

    @torch.no_grad()
    def _features(self, key: object, kind: str, value: object, model) -> Tensor:
        if key not in self._kept:
            options = {"truncation": True, "padding": True} if kind == "text" else {}
            inputs = self._processor(**{kind: value}, return_tensors="pt", **options).to(self._model.device)
            features = model(**inputs)[0].float()
            if len(self._kept) == 8:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = features / features.norm()
        return self._kept[key]


def _cosine(one: Tensor, other: Tensor) -> float:
    return cosine_similarity(one, other, dim=0).item()


class Lpips:
    """LPIPS (Zhang et al. 2018) on AlexNet. torchmetrics ships the linear weights; the net's own come from a file.

    Raises ImportError or RuntimeError where torchvision, which describes the net, cannot be used, and ValueError for a
    file that does not hold its weights.
    """

    def __init__(self, weights: str, device: torch.device):
        from torchmetrics.functional.image.lpips import _NoTrainLpips

        if not Path(weights).is_file():
            raise ValueError(f"suite.lpips={weights}: no such file: give torchvision's AlexNet weights, or null")
        self._net = _NoTrainLpips(net="alex", pnet_rand=True)
        net = self._net.net
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            # The slices of the net keep the numbers that its layers have in torchvision
            net.load_state_dict({key: state[f"features.{key.partition('.')[2]}"] for key in net.state_dict()})
        except Exception as error:  # torch.load raises whatever the bytes lead it to
            reason = str(error).splitlines()[0]
            raise ValueError(f"suite.lpips={weights}: no AlexNet weights ({reason}): give torchvision's file") from None
        self._net.to(device)

    @torch.no_grad()
    def __call__(self, one: Tensor, other: Tensor) -> float:
        return self._net(one, other, normalize=True).mean().item()
