"""A small VQ-VAE for the frames of small worlds (van den Oord et al. 2017, "Neural Discrete Representation Learning").

A code stands for one patch of pixels. With `context` 0 it depends on that patch alone, so that an action changes the
codes of what it changed and no others, which an action can then be read from; each further block lets patches see
their neighbours, in the encoder and in the decoder.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

KIND = "swirl_vqvae"
_SAME = 0.01  # of a code vector's mean length


@dataclass(frozen=True)
class Shape:
    """What config.json states."""

    size: tuple[int, int]
    patch: int
    hidden: int
    dim: int  # of a code's vector
    codes: int
    context: int


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.inner = nn.Sequential(
            nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.inner(hidden)


class VqVae(nn.Module):
    """An `ImageTokenizer`; D = `dim`, h x w = `grid`. Raises ValueError where patches do not tile the pictures."""

    def __init__(self, shape: Shape):
        super().__init__()
        if shape.size[0] % shape.patch or shape.size[1] % shape.patch:
            raise ValueError(
                f"size={list(shape.size)}: is not made of patches of {shape.patch}: give multiples of that"
            )
        self.shape, self.codebook_size, self.size = shape, shape.codes, shape.size
        self.grid = (shape.size[0] // shape.patch, shape.size[1] // shape.patch)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, shape.hidden, shape.patch, stride=shape.patch),
            *(Residual(shape.hidden) for _ in range(shape.context)),
            nn.GELU(),
            nn.Conv2d(shape.hidden, shape.dim, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(shape.dim, shape.hidden, 1),
            *(Residual(shape.hidden) for _ in range(shape.context)),
            nn.GELU(),
            nn.Conv2d(shape.hidden, shape.hidden, 1),
            nn.GELU(),
            nn.ConvTranspose2d(shape.hidden, 3, shape.patch, stride=shape.patch),
        )
        self.register_buffer("codebook", torch.zeros(shape.codes, shape.dim))
        self.register_buffer("twin_of", torch.arange(shape.codes))

    @torch.no_grad()
    def set_codebook(self, codebook: Tensor) -> None:
        """Float [codes, dim]. k-means leaves codes in one place where there are fewer kinds of patches than codes, and
        rounding, which the batch size changes, would choose among them: `encode` gives the first of such twins.
        """
        near = torch.cdist(codebook, codebook, compute_mode="donot_use_mm_for_euclid_dist")
        self.codebook.copy_(codebook)
        self.twin_of.copy_((near <= _SAME * codebook.norm(dim=1).mean()).int().argmax(1))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        vectors = self.encoder(pixels(images)).flatten(2).transpose(1, 2)
        return self.twin_of[torch.cdist(vectors, self.codebook.expand(len(images), -1, -1)).argmin(-1)]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        vectors = self.codebook[codes].transpose(1, 2).unflatten(2, self.grid)
        return ((self.decoder(vectors).permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": KIND, **asdict(self.shape)}, indent=2) + "\n")
        save_file(self.state_dict(), folder / "model.safetensors")


def pixels(images: Tensor) -> Tensor:
    """Float [B, 3, H, W] in [-1, 1] of uint8 [B, H, W, 3]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def load(folder: Path, config: dict[str, Any], size: tuple[int, int] | None) -> VqVae:
    """Raises ValueError for a folder that `VqVae.save` did not write, and for pictures of another size."""
    stated = {name: value for name, value in config.items() if name != "model_type"}
    try:
        model = VqVae(Shape(**stated | {"size": tuple(stated["size"])}))
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (KeyError, TypeError, RuntimeError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{folder}: not whole ({reason}): train it again (swirl train-tokenizer)") from error
    if size not in (None, model.size):
        raise ValueError(f"size={list(size)}: {folder} was trained on {list(model.size)}: give null")
    return model.eval()
