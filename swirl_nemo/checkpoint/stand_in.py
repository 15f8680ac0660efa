"""A NeMo checkpoint folder made of a model's dimensions alone, for what is built but never run."""

from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf

from ..collection.tokenizers import word_tokenizer
from ..config import ArchitectureConfig
from .families.decoder import SETTLED
from .huggingface import MODEL_CONFIG, TOKENIZER, TOKENS


def write_stand_in(architecture: ArchitectureConfig, folder: Path) -> None:
    """model_config.yaml, and a tokenizer of no words, since NeMo builds no model without one; no weights."""
    longest = architecture.max_position_embeddings
    model = {**SETTLED, **TOKENS, **asdict(architecture), "encoder_seq_length": longest, "init_method_std": 0.02}
    OmegaConf.save(OmegaConf.create(model), folder / MODEL_CONFIG)
    word_tokenizer([]).save_pretrained(folder / TOKENIZER)
