"""From transitions to token ids and back: templates, targets, allowed tokens."""

import os
from itertools import groupby, takewhile
from pathlib import Path
from string import Formatter

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..config import DataConfig, NextState, Tokens
from ..roles import FWM, ROLES, Role
from .draw import uniform
from .facts import brief_difference, changed, difference, same_state
from .images.characters import FORGED, RUNS, image_codes, image_text
from .images.tokenizer import ImageTokenizer
from .images.vocabulary import FILE, ImageTokens
from .transition import Transition

# What each template field shows of the transition.
FIELDS = {"x": {"x"}, "y": {"y"}, "z": {"z"}, "diff": {"x", "y"}, "was": {"x", "y"}, "history": set()}


def load_tokenizer(folder: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The Hugging Face tokenizer in a local folder. Raises ValueError where there is none that can be read."""
    if not Path(folder).is_dir():
        raise ValueError(f"data.tokenizer={folder}: no such folder: give a Hugging Face tokenizer folder")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"data.tokenizer={folder}: not a Hugging Face tokenizer folder ({reason})") from error


class Prompter:
    """Renders a role's prompt and target as token ids, and reads completions back.

    A prompt and its completion are tokenized apart, so a completion's tokens never depend on where the prompt ends. An
    image's tokens are begin, N codes, end; where a role completes one, begin ends the prompt.

    Raises ValueError for a template of `data` that is malformed, that shows a role the field it is to complete or keeps
    from it one that it needs; for an empty fact separator; for a tokenizer without an end token; and for a role that
    completes images where the tokenizer has no image tokens, or in another length than they have.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataConfig, seed: int):
        if tokenizer.eos_token_id is None:
            raise ValueError(f"data.tokenizer={data.tokenizer}: has no eos token, which ends a completion: set one")
        if not data.fact_separator:
            raise ValueError("data.fact_separator is empty: give what divides a state's text into facts")
        self.end: int = tokenizer.eos_token_id
        self._tokenizer = tokenizer
        self._seed = seed
        self._separator = data.fact_separator
        self._changes = data.next_state is NextState.changes
        self._difference = difference if self._changes else brief_difference
        self._roles = {name: getattr(data, name) for name in ROLES}
        for name, role in ROLES.items():
            _check_templates(role, list(self._roles[name].templates))
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        special.update(tokenizer.all_special_ids)
        self._images = ImageTokens.read(data.tokenizer)
        if self._images is not None:
            special |= {self._images.begin, self._images.end}
        self._ordinary = set(tokenizer.get_vocab().values()) - special - {self.end}
        for name in ROLES:
            self._check_images(name, str(data.tokenizer))

    def prompt(self, role: Role, transition: Transition) -> list[int]:
        """Token ids of the role's prompt, beginning with the tokenizer's bos where it has one.

        The template is drawn by a hash of (seed, role, transition id): the same for all of a group's rollouts and for
        their scoring. Any text is accepted, so a policy's own malformed state can be scored.

        Raises ValueError where the prompt needs an action and the transition's is None (an empty one is shown as such),
        and for an image of another length than the model's.
        """
        templates = self._roles[role.name].templates
        template = templates[int(uniform(self._seed, role.name, transition.id) * len(templates))]
        given = role.counterpart
        shown = {"x": transition.x, given.completes: given.target(transition)}
        if "{was}" in template:
            shown["was"] = self._difference(transition.y, transition.x, self._separator, self.image_columns)
        if "{diff}" in template:
            shown["diff"] = self._difference(transition.x, transition.y, self._separator, self.image_columns)
        if "{history}" in template:
            shown["history"] = self._separator.join(transition.history)
        tokens = self._encode(template.format(**shown), transition.id)
        if self._completes_image(role):
            tokens.append(self._images.begin)
        bos = self._tokenizer.bos_token_id
        return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]

    @property
    def image_columns(self) -> int | None:
        """Of a model's images; None without."""
        return None if self._images is None else self._images.columns

    def check_image_tokenizer(self, tokenizer: ImageTokenizer, where: str) -> None:
        """Raises ValueError where its codes are not those of the model's images."""
        images = self._images
        ours = None if images is None else (images.codes, images.rows, images.columns)
        if ours != (tokenizer.codebook_size, *tokenizer.grid):
            raise ValueError(
                f"data.image_tokenizer={where}: {tokenizer.codebook_size} codes, {tokenizer.grid[0]} x "
                f"{tokenizer.grid[1]} an image; the model has {ours}: give the tokenizer that it was imported for"
            )

    def target(self, role: Role, transition: Transition) -> list[int]:
        """Token ids of the completion that the transition gives, and the end token; for an image, its N codes and the
        end of an image.

        Raises ValueError where it has a token that the role may not emit (its log-prob would be minus infinity), where
        it is an image for a role that completes text or the reverse, and for an IDM target of a transition without an
        action.
        """
        text = role.target(transition)
        if role is FWM and self._changes:
            text = difference(transition.x, text, self._separator)
        tokens = self._encode(text, transition.id)
        if (image_codes(text) is not None) != self._completes_image(role):
            wanted = "an image" if self._completes_image(role) else "text"
            raise ValueError(
                f"transition {transition.id}: its {role.completes} is not {wanted}, which data.{role.name}.tokens="
                f"{self._roles[role.name].tokens.name} completes: give rows of one kind, and their tokens"
            )
        if self._completes_image(role):
            return tokens[1:]
        for token in tokens:
            if token not in self._ordinary and not self._is_code(token):  # a difference of images names codes
                shown = self._tokenizer.convert_ids_to_tokens(token)
                raise ValueError(
                    f"transition {transition.id}: {role.completes} has the special token {shown!r}, which no "
                    f"completion may hold: mend the text, or give a data.tokenizer that knows its words"
                )
        return [*tokens, self.end]

    def completion(self, role: Role, transition: Transition, tokens: list[int]) -> str:
        """What the role's completion stands for: an action, or the next state, whole also where the FWM writes what
        changes."""
        text = self.decode(tokens)
        return changed(transition.x, text, self._separator) if role is FWM and self._changes else text

    def completions(self, role: Role, transitions: list[Transition], tokens: list[list[int]]) -> list[str]:
        """`completion` of each, as many of each transition."""
        group = len(tokens) // len(transitions) if transitions else 1
        return [self.completion(role, transitions[row // group], ids) for row, ids in enumerate(tokens)]

    def same_state(self, one: str, other: str) -> bool:
        """Whether both have the same facts."""
        return same_state(one, other, self._separator)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, up to its end token where it has one.

        One that starts with a code is an image, whose begin ended the prompt.
        """
        if tokens and self._is_code(tokens[0]):
            return image_text(token - self._images.first_code for token in takewhile(self._is_code, tokens))
        length = tokens.index(self.end) if self.end in tokens else len(tokens)
        if self._images is None:
            return self._decode_text(tokens[:length])
        parts = groupby(tokens[:length], lambda token: self._images.character(token) is None)
        return "".join(
            self._decode_text(list(run)) if text else "".join(map(self._images.character, run)) for text, run in parts
        )

    def _decode_text(self, tokens: list[int]) -> str:
        return FORGED.sub("\ufffd", self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    def allowed(self, role: Role, vocab_size: int) -> Tensor:
        """Bool [V], V = vocab_size: tokens that the role may emit, the end token among them; of a role that completes
        images the codes alone, since their number says where one ends.

        False for other special tokens, for ids that the tokenizer lacks and for the rows that pad the vocabulary.

        Raises ValueError where the vocabulary is smaller than the tokenizer's.
        """
        emitted = [*self._images.all_codes] if self._completes_image(role) else [*self._ordinary, self.end]
        if max(emitted) >= vocab_size:
            raise ValueError(
                f"data.tokenizer has token ids up to {max(emitted)}, the model a vocabulary of {vocab_size}: "
                f"give the tokenizer that belongs to the model"
            )
        mask = torch.zeros(vocab_size, dtype=torch.bool)
        mask[emitted] = True
        return mask

    def _encode(self, text: str, transition_id: str) -> list[int]:
        if not FORGED.search(text):
            return self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if self._images is None:
            raise ValueError(
                f"transition {transition_id}: has an image, and data.tokenizer no {FILE}: import the model with "
                "swirl import --images, and give the tokenizer of its folder"
            )
        tokens: list[int] = []
        for part in filter(None, RUNS.split(text)):
            if FORGED.match(part):
                tokens += self._images.encode(part, transition_id)
            else:
                tokens += self._tokenizer(part, add_special_tokens=False)["input_ids"]
        return tokens

    def _completes_image(self, role: Role) -> bool:
        return self._roles[role.name].tokens is Tokens.image

    def _is_code(self, token: int) -> bool:
        return self._images is not None and token in self._images.all_codes

    def _check_images(self, name: str, tokenizer: str) -> None:
        data, images = self._roles[name], self._images
        if data.tokens is not Tokens.image:
            return
        if name == FWM.name and self._changes:
            raise ValueError("data.next_state=changes: an image is written whole: give data.next_state=whole")
        if images is None:
            raise ValueError(
                f"data.{name}.tokens=image: data.tokenizer={tokenizer} has no {FILE}: import the model with "
                "swirl import --images, and give the tokenizer of its folder"
            )
        if not data.min_length == data.max_length == images.length:
            raise ValueError(
                f"data.{name}.min_length={data.min_length}, data.{name}.max_length={data.max_length}: an image of this "
                f"model has {images.rows} x {images.columns} codes: give {images.length} for both"
            )


def _check_templates(role: Role, templates: list[str]) -> None:
    where = f"data.{role.name}.templates"
    if not templates:
        raise ValueError(f"{where} is empty: give at least one template")
    given = role.counterpart.completes
    for number, template in enumerate(templates):
        fields = _fields(template, f"{where}[{number}]")
        if leaking := sorted(field for field in fields if role.completes in FIELDS[field]):
            raise ValueError(
                f"{where}[{number}]: {{{leaking[0]}}} shows the {role.completes} that this role completes: remove it"
            )
        if "x" not in fields:
            raise ValueError(f"{where}[{number}]: has no {{x}}: show the state before the action")
        if not any(given in FIELDS[field] for field in fields):
            choices = " or ".join(f"{{{field}}}" for field, shows in FIELDS.items() if given in shows)
            raise ValueError(f"{where}[{number}]: has no {choices}, without which this role can only guess: add it")


def _fields(template: str, where: str) -> set[str]:
    """Names of the template's fields. Raises ValueError unless each is a plain {name} of FIELDS."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{where}: {error}: write fields as {{x}}, and a brace itself as {{{{ or }}}}") from error
    fields = set()
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if name not in FIELDS or form or conversion:
            known = " ".join(f"{{{field}}}" for field in FIELDS)
            raise ValueError(f"{where}: unknown field {{{name}}}: the fields are {known}, without format or conversion")
        fields.add(name)
    return fields
