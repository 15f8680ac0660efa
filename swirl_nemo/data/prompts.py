"""From transitions to token ids and back: templates, targets, allowed tokens."""

import os
from difflib import SequenceMatcher
from pathlib import Path
from string import Formatter

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..config import DataConfig, Tokens
from ..roles import ROLES, Role
from .draw import uniform
from .transition import Transition

# What each template field shows of the transition.
FIELDS = {"x": {"x"}, "y": {"y"}, "z": {"z"}, "diff": {"x", "y"}}


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

    A prompt and its completion are tokenized apart, so a completion's tokens never depend on where the prompt ends.

    Raises ValueError for a template of `data` that is malformed, that shows a role the field it is to complete or keeps
    from it one that it needs; for an empty fact separator; and for a tokenizer without an end token.
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
        self._roles = {name: getattr(data, name) for name in ROLES}
        for name, role in ROLES.items():
            _check_templates(role, list(self._roles[name].templates))
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        special.update(tokenizer.all_special_ids)
        self._ordinary = set(tokenizer.get_vocab().values()) - special - {self.end}

    def prompt(self, role: Role, transition: Transition) -> list[int]:
        """Token ids of the role's prompt, beginning with the tokenizer's bos where it has one.

        The template is drawn by a hash of (seed, role, transition id): the same for all of a group's rollouts and for
        their scoring. Any text is accepted, so a policy's own malformed state can be scored.

        Raises ValueError where the prompt needs an action and the transition's is None (an empty one is shown as such).
        """
        templates = self._roles[role.name].templates
        template = templates[int(uniform(self._seed, role.name, transition.id) * len(templates))]
        given = role.counterpart
        shown = {"x": transition.x, given.completes: given.target(transition)}
        if "{diff}" in template:
            shown["diff"] = difference(transition.x, transition.y, self._separator)
        tokens = self._encode(template.format(**shown))
        bos = self._tokenizer.bos_token_id
        return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]

    def target(self, role: Role, transition: Transition) -> list[int]:
        """Token ids of the completion that the transition gives, and the end token.

        Raises ValueError where it has a token that the role may not emit (its log-prob would be minus infinity), and
        for an IDM target of a transition without an action.
        """
        tokens = self._encode(role.target(transition))
        for token in tokens:
            if token not in self._ordinary:
                shown = self._tokenizer.convert_ids_to_tokens(token)
                raise ValueError(
                    f"transition {transition.id}: {role.completes} has the special token {shown!r}, which no "
                    f"completion may hold: mend the text, or give a data.tokenizer that knows its words"
                )
        return [*tokens, self.end]

    def decode(self, tokens: list[int]) -> str:
        """The text of a completion, up to its end token where it has one."""
        length = tokens.index(self.end) if self.end in tokens else len(tokens)
        return self._tokenizer.decode(tokens[:length], clean_up_tokenization_spaces=False)

    def allowed(self, role: Role, vocab_size: int) -> Tensor:
        """Bool [V], V = vocab_size: tokens that the role may emit, the end token among them.

        False for other special tokens, for ids that the tokenizer lacks and for the rows that pad the vocabulary.

        Raises ValueError where the vocabulary is smaller than the tokenizer's.
        """
        assert self._roles[role.name].tokens is Tokens.text
        emitted = [*self._ordinary, self.end]
        if max(emitted) >= vocab_size:
            raise ValueError(
                f"data.tokenizer has token ids up to {max(emitted)}, the model a vocabulary of {vocab_size}: "
                f"give the tokenizer that belongs to the model"
            )
        mask = torch.zeros(vocab_size, dtype=torch.bool)
        mask[emitted] = True
        return mask

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def difference(x: str, y: str, separator: str) -> str:
    """The facts in which y differs from x, for {diff}: facts are what `separator` divides, and it joins the result.

    A fact that took another's place is given as it now is, one that came is marked "+ fact", one that went "- fact";
    states of equal facts give "=". The marks stand apart from the facts by a space, so that a world's tokenizer can
    hold "=", "+" and "-" as words. Defined for any two texts.
    """
    before, after = _facts(x, separator), _facts(y, separator)
    changes: list[str] = []
    for kind, i, i_end, j, j_end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind != "equal":
            replaced = min(i_end - i, j_end - j)
            changes += after[j : j + replaced]
            changes += [f"+ {fact}" for fact in after[j + replaced : j_end]]
            changes += [f"- {fact}" for fact in before[i + replaced : i_end]]
    return separator.join(changes) or "="


def _facts(text: str, separator: str) -> list[str]:
    # A text may end in a separator without the space that follows it elsewhere, as in "a. b."
    whole = text.strip().removesuffix(separator.strip())
    return [fact for part in whole.split(separator) if (fact := part.strip())]


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
