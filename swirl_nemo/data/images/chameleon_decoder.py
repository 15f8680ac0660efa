"""The decoder of Chameleon's VQ-VAE, which transformers leaves out: VQGAN's (Esser et al. 2021, "Taming Transformers"),
of transformers' own blocks and under the names that Chameleon's release gives its tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonVQVAEEncoderAttnBlock as Attention,
)
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonVQVAEEncoderResnetBlock as Block,
)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution: blocks, an attention behind each where the configuration asks for it, and an upsampling."""

    def __init__(self, config: ChameleonVQVAEConfig, inputs: int, outputs: int, attends: bool, last: bool):
        super().__init__()
        widths = [inputs, *[outputs] * (config.num_res_blocks + 1)]
        self.block = nn.ModuleList(Block(config, a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.attn = nn.ModuleList(Attention(outputs) for _ in self.block if attends)
        if not last:
            self.upsample = Upsample(outputs)

    def forward(self, hidden: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            hidden = block(hidden)
            if self.attn:
                hidden = self.attn[number](hidden)
        return self.upsample(hidden) if hasattr(self, "upsample") else hidden


class ChameleonDecoder(nn.Module):
    """[B, latent_channels, h, w] to [B, 3, H, W] in [-1, 1] or a little over."""

    def __init__(self, config: ChameleonVQVAEConfig):
        super().__init__()
        levels = len(config.channel_multiplier)
        widths = [config.base_channels * multiplier for multiplier in config.channel_multiplier]
        vanilla = config.attn_type == "vanilla"
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = nn.Module()
        self.mid.block_1 = Block(config, widths[-1], widths[-1])
        self.mid.attn_1 = Attention(widths[-1]) if vanilla else nn.Identity()
        self.mid.block_2 = Block(config, widths[-1], widths[-1])
        self.up = nn.ModuleList()
        for number, width in enumerate(widths):
            side = config.resolution // 2**number
            attends = vanilla and side in (config.attn_resolutions or [])
            inputs = widths[min(number + 1, levels - 1)]
            self.up.append(Level(config, inputs, width, attends, last=number == 0))
        self.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        hidden = self.mid.block_2(self.mid.attn_1(self.mid.block_1(self.conv_in(latent))))
        for level in reversed(self.up):  # numbered from the full resolution down
            hidden = level(hidden)
        hidden = self.norm_out(hidden)
        return self.conv_out(hidden * torch.sigmoid(hidden))
