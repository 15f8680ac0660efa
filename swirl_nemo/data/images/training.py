"""`swirl train-tokenizer`: a VQ-VAE of frames, with how well it gives them back."""

from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ...records import write_json
from .config import TrainTokenizerConfig
from .frames import clips
from .vqvae import Shape, VqVae, pixels

_BATCH = 256  # frames encoded at a time, where nothing is trained


def train_tokenizer(cfg: TrainTokenizerConfig) -> dict[str, float]:
    """Train on the frames of `cfg.frames`, write `cfg.out` and return its reconstruction.json: of frames that it has
    not seen, the mean error of a byte, the PSNR, the share of pixels off by at most `tolerance`, and how many codes
    are in use for how many distinct patches. The same settings give the same tokenizer.

    Raises ValueError for a setting out of range, no frame, and too few of them.
    """
    _check(cfg)
    size = (cfg.size[0], cfg.size[1])
    model = VqVae(Shape(size, cfg.patch, cfg.hidden, cfg.dim, cfg.codes, cfg.context))
    frames = distinct_frames(Path(cfg.frames), cfg.stride, size, cfg.max_frames)
    held_out = max(1, round(len(frames) * cfg.held_out))
    if len(frames) <= held_out:
        raise ValueError(f"frames={cfg.frames}: {len(frames)} distinct frame(s): give at least 2")
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(cfg.seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        _reset(model)
        _fit(model, frames[order[held_out:]], cfg)
    figures = reconstruction(model.eval(), frames[order[:held_out]], cfg.tolerance)
    figures |= {"frames": len(frames) - held_out, "held_out_frames": held_out}
    model.save(Path(cfg.out))
    write_json(Path(cfg.out, "reconstruction.json"), figures)
    return figures


def distinct_frames(source: Path, stride: int, size: tuple[int, int], most: int) -> Tensor:
    """uint8 [F, H, W, 3], F up to `most` where that is not 0; no frame twice."""
    seen: dict[bytes, np.ndarray] = {}
    every = chain.from_iterable(clip.frames(stride, size) for clip in clips(source))
    for frame in tqdm(every, desc="frames", unit=" frames", disable=None):
        seen.setdefault(frame.tobytes(), frame)
        if most and len(seen) == most:
            break
    return torch.from_numpy(np.stack(list(seen.values())))


def reconstruction(model: VqVae, frames: Tensor, tolerance: int) -> dict[str, float]:
    """Of uint8 [F, H, W, 3]: what comes back from their codes."""
    total = squared = near = 0.0
    used: set[int] = set()
    for part in frames.split(_BATCH):
        codes = model.encode(part)
        used.update(codes.flatten().tolist())
        error = (model.decode(codes).int() - part.int()).abs()
        total, squared = total + error.sum().item(), squared + error.pow(2).sum().item()
        near += (error.amax(-1) <= tolerance).sum().item()
    mean_squared = max(squared / frames.numel(), 1e-9)
    return {
        "mean_absolute_error": total / frames.numel(),
        "psnr": 10 * float(np.log10(255**2 / mean_squared)),
        "pixels_within_tolerance": near / (frames.numel() / 3),
        "tolerance": tolerance,
        "distinct_patches": len(distinct_patches(frames.permute(0, 3, 1, 2), model.shape.patch)),
        "codes_used": len(used),
        "codes": model.codebook_size,
    }


def _reset(model: VqVae) -> None:
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def _fit(model: VqVae, frames: Tensor, cfg: TrainTokenizerConfig) -> None:
    quantizer = _quantizer(cfg)
    optimizer = torch.optim.AdamW([*model.parameters()], cfg.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cfg.steps)
    for _ in (steps := tqdm(range(cfg.steps), desc="train-tokenizer", disable=None)):
        inputs = pixels(frames[torch.randint(len(frames), (cfg.batch,))])
        if not cfg.context:  # floor and wall would outweigh what matters by a hundred to one
            inputs = distinct_patches(inputs, cfg.patch)
        vectors = model.encoder(inputs)
        chosen, _, commitment = quantizer(vectors)
        error = F.mse_loss(model.decoder(chosen), inputs)
        optimizer.zero_grad()
        (error + commitment).backward()
        optimizer.step()
        schedule.step()
        steps.set_postfix(error=f"{error.item():.4f}", refresh=False)
    model.set_codebook(quantizer.codebook.detach())


def _quantizer(cfg: TrainTokenizerConfig) -> torch.nn.Module:
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError as error:
        raise ValueError(f"train-tokenizer: {error}: install swirl-nemo[images]") from error
    return VectorQuantize(
        cfg.dim,
        codebook_size=cfg.codes,
        decay=cfg.decay,
        commitment_weight=cfg.commitment,
        kmeans_init=True,
        threshold_ema_dead_code=cfg.dead_code,
        accept_image_fmap=True,
    )


def distinct_patches(inputs: Tensor, patch: int) -> Tensor:
    """[P, 3, patch, patch] of [B, 3, H, W], none twice."""
    grid = inputs.unfold(2, patch, patch).unfold(3, patch, patch)
    return grid.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).unique(dim=0)


def _check(cfg: TrainTokenizerConfig) -> None:
    if Path(cfg.out).exists():
        raise ValueError(f"out={cfg.out}: exists: name a new folder, or remove it")
    if not Path(cfg.frames).exists():
        raise ValueError(f"frames={cfg.frames}: no such folder or video: give frames to train on")
    if len(cfg.size) != 2:
        raise ValueError(f"size={list(cfg.size)}: give [HEIGHT,WIDTH]")
    for key in ("stride", "patch", "hidden", "dim", "codes", "steps", "batch", "lr"):
        if getattr(cfg, key) <= 0:
            raise ValueError(f"{key}={getattr(cfg, key)}: out of range: it must be over 0")
    if not 0 < cfg.held_out < 1:
        raise ValueError(f"held_out={cfg.held_out}: out of range: it must be in (0, 1)")
