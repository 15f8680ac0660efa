"""Chameleon's and Emu3's tokenizers as transformers ships them (arXiv 2405.09818, arXiv 2409.18869)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, Emu3VQVAE, Emu3VQVAEConfig, PreTrainedModel

from .chameleon_decoder import ChameleonDecoder
from .tokenizer import ImageTokenizer

Size = tuple[int, int]
_ORIGINAL = "vqgan.ckpt"  # of Chameleon's own release: transformers has left its decoder out


@dataclass(frozen=True)
class Pixels:
    """A byte as the model reads it: (byte * factor - mean) / std, [3] for each colour."""

    factor: float
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, folder: Path) -> "Pixels":
        """As the folder's preprocessor_config.json says; without one, [-1, 1]."""
        path = folder / "preprocessor_config.json"
        stated = json.loads(path.read_text()) if path.is_file() else {}
        found = {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3} | stated
        return cls(found["rescale_factor"], *(torch.tensor(found[f"image_{name}"]) for name in ("mean", "std")))

    def to(self, device: str) -> "Pixels":
        return Pixels(self.factor, self.mean.to(device), self.std.to(device))

    def read(self, images: Tensor) -> Tensor:
        """Float [B, 3, H, W] of uint8 [B, H, W, 3]."""
        return ((images.float() * self.factor - self.mean) / self.std).permute(0, 3, 1, 2)

    def write(self, values: Tensor) -> Tensor:
        """The inverse, cut to bytes."""
        images = (values.permute(0, 2, 3, 1) * self.std + self.mean) / self.factor
        return images.round().clamp(0, 255).to(torch.uint8)


class _Published:
    """What both have in common: a convolutional encoder that divides sides by `factor`, and bytes as pixels."""

    _modules: list[nn.Module]

    def __init__(self, codebook_size: int, factor: int, size: Size, pixels: Pixels):
        if size[0] % factor or size[1] % factor:
            raise ValueError(f"size={list(size)}: a code stands for {factor} x {factor} pixels: give multiples of that")
        self.codebook_size, self.size, self._pixels = codebook_size, size, pixels
        self.grid = (size[0] // factor, size[1] // factor)

    def to(self, device: str) -> "_Published":
        for module in self._modules:
            module.to(device)
        self._pixels = self._pixels.to(device)
        return self


class Chameleon(_Published):
    def __init__(self, model: ChameleonVQVAE, decoder: ChameleonDecoder | None, size: Size, pixels: Pixels):
        super().__init__(model.config.num_embeddings, 2 ** (len(model.config.channel_multiplier) - 1), size, pixels)
        self._model, self._decoder = model, decoder
        self._modules = [model] if decoder is None else [model, decoder]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self._model.encode(self._pixels.read(images))[2].view(len(images), -1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        if self._decoder is None:
            raise ValueError(
                f"{self._model.name_or_path}: has no decoder tensors, which transformers leaves out: copy "
                f"{_ORIGINAL} of Chameleon's own release into it"
            )
        chosen = self._model.quantize.embedding(codes).view(len(codes), *self.grid, -1).permute(0, 3, 1, 2)
        return self._pixels.write(self._decoder(self._model.post_quant_conv(chosen)))


class Emu3(_Published):
    def __init__(self, model: Emu3VQVAE, size: Size, pixels: Pixels):
        super().__init__(model.config.codebook_size, model.spatial_scale_factor, size, pixels)
        self._model, self._modules = model, [model]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        sizes = torch.tensor([self.size] * len(images))
        return torch.stack(self._model.encode(self._pixels.read(images), sizes)).flatten(1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        return self._pixels.write(self._model.decode(codes.view(len(codes), *self.grid)))


def _chameleon(folder: Path, config: dict[str, Any], size: Size | None) -> ImageTokenizer:
    settings = ChameleonVQVAEConfig.from_dict(config.get("vq_config", config))
    tensors = _tensors(folder)
    model = _filled(ChameleonVQVAE(settings), tensors, folder)
    decoder = None
    if any(name.startswith("decoder.") for name in tensors):
        decoder = _filled(ChameleonDecoder(settings), tensors, folder, "decoder.")
    return Chameleon(model, decoder, size or (settings.resolution, settings.resolution), Pixels.of(folder))


def _emu3(folder: Path, config: dict[str, Any], size: Size | None) -> ImageTokenizer:
    if size is None:
        raise ValueError(f"{folder}: Emu3's tokenizer takes pictures of any size: give size=[HEIGHT,WIDTH]")
    model = Emu3VQVAE(Emu3VQVAEConfig.from_dict(config.get("vq_config", config)))
    return Emu3(_filled(model, _tensors(folder), folder), size, Pixels.of(folder))


Maker = Callable[[Path, dict[str, Any], Size | None], ImageTokenizer]
MAKERS: dict[str, Maker] = {"chameleon_vqgan": _chameleon, "chameleon": _chameleon, "emu3_vqgan": _emu3, "emu3": _emu3}
_ROOT = "quantize.embedding.weight"  # every one has it: what stands before it is the tokenizer's place in a whole model


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The tokenizer's tensors under their own names, in float32. Raises ValueError where the folder has none."""
    places = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            places |= dict.fromkeys(file.keys(), path)
    prefix = next((name.removesuffix(_ROOT) for name in places if name.endswith(_ROOT)), None)
    if prefix is None:
        raise ValueError(f"{folder}: no *.safetensors in it has {_ROOT}: give the folder of an image tokenizer")
    tensors = {}
    for name, path in places.items():
        if name.startswith(prefix):
            with safe_open(path, "pt") as file:
                tensors[name.removeprefix(prefix)] = file.get_tensor(name).float()
    if (original := folder / _ORIGINAL).is_file():
        state = torch.load(original, map_location="cpu", weights_only=True)["state_dict"]
        tensors |= {name: tensor.float() for name, tensor in state.items() if name.startswith("decoder.")}
    return tensors


def _filled(module: nn.Module, tensors: dict[str, Tensor], folder: Path, prefix: str = ""):
    """The module with the folder's tensors, for inference. Raises ValueError for one that is missing or misfits."""
    wanted = {name: tensors.get(prefix + name) for name in module.state_dict()}
    for name, own in module.state_dict().items():
        found = None if wanted[name] is None else list(wanted[name].shape)
        if found != list(own.shape):
            raise ValueError(
                f"{folder}: tensor {prefix}{name} is {found or 'missing'}, its config.json says {list(own.shape)}: "
                "give the config.json that belongs to these weights"
            )
    module.load_state_dict(wanted)
    if isinstance(module, PreTrainedModel):
        module.name_or_path = str(folder)
    return module.eval()
