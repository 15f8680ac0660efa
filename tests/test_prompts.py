"""Templates, targets, allowed tokens and lists of differences, on tokenizers built here."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from swirl_nemo.config import DataConfig, NextState, RoleDataConfig, Tokens
from swirl_nemo.data.facts import difference
from swirl_nemo.data.prompts import Prompter, load_tokenizer
from swirl_nemo.data.transition import Transition
from swirl_nemo.roles import FWM, IDM, ROLES

WORDS = [
    "door",
    "lamp",
    "is",
    "open",
    "shut",
    "on",
    "off",
    "close",
    ".",
    ";",
    "=",
    "+",
    "-",
    "state",
    "action",
    "next",
    "what",
]
SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]
STEP = Transition("e:0", "door is open ; lamp is on", "close door", "door is shut ; lamp is on", "w", "e", 0)


def word_tokenizer(**specials: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIALS + WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # As Llama's: what the tokenizer adds of itself must not double the bos or end the prompt.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **specials)


def whole_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without bos and pad, with a chat mark besides its end token: as pretrained models have them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<turn>", "<end>"]
    )
    tokenizer.train_from_iterator([STEP.x, STEP.y] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", additional_special_tokens=["<turn>"])


def data_of(fwm: list[str], idm: list[str], separator: str = " ; ") -> DataConfig:
    def role(templates: list[str]) -> RoleDataConfig:
        return RoleDataConfig(templates, Tokens.text, min_length=1, max_length=32)

    return DataConfig(tokenizer="folder", fact_separator=separator, fwm=role(fwm), idm=role(idm))


PLAIN = data_of(["state {x} action {z} next"], ["state {x} next {diff} action"])
MANY = data_of(
    ["{x} . {z}", "state {x} action {z}", "action {z} state {x}", "state {x} . {z} next"],
    ["{x} . {diff}", "state {x} next {y}", "next {y} state {x}", "state {x} . {diff} what"],
)


def text_of(prompter_tokens: list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode(prompter_tokens, skip_special_tokens=True)


def test_prompts_and_targets_hold_what_the_template_says():
    tokenizer = whole_tokenizer()
    prompter = Prompter(tokenizer, PLAIN, seed=0)
    word = tokenizer.get_vocab()

    def ids(text: str) -> list[int]:
        return [word[each] for each in text.split()]

    assert prompter.end == word["<eos>"]
    assert prompter.prompt(FWM, STEP) == ids("<bos> state door is open ; lamp is on action close door next")
    assert prompter.prompt(IDM, STEP) == ids("<bos> state door is open ; lamp is on next door is shut action")
    assert prompter.target(FWM, STEP) == ids("door is shut ; lamp is on <eos>")
    assert prompter.target(IDM, STEP) == ids("close door <eos>")
    without_y = prompter.prompt(FWM, replace(STEP, y="lamp is off"))
    assert without_y == prompter.prompt(FWM, STEP), "the FWM's prompt knows nothing of y"
    assert prompter.prompt(IDM, replace(STEP, z=None)) == prompter.prompt(IDM, STEP), "nor the IDM's of z"


def test_bos_comes_once_where_the_tokenizer_has_it_and_not_where_it_has_none():
    tokenizer = whole_tokenizer()
    written_out = data_of(["<bos> {x} {z}"], ["<bos> {x} {y}"])
    for prompter in (Prompter(tokenizer, PLAIN, 0), Prompter(tokenizer, written_out, 0)):
        for role in ROLES.values():
            tokens = prompter.prompt(role, STEP)
            assert tokens[0] == tokenizer.bos_token_id and tokens.count(tokenizer.bos_token_id) == 1
    unmarked = byte_tokenizer()
    assert Prompter(unmarked, PLAIN, 0).prompt(FWM, STEP)[0] == unmarked("state")["input_ids"][0]


@pytest.mark.parametrize("make", [whole_tokenizer, byte_tokenizer])
def test_decoding_a_target_gives_its_text_and_ignores_what_follows_the_end(make):
    prompter = Prompter(make(), PLAIN, 0)
    for role in ROLES.values():
        tokens = prompter.target(role, STEP)
        assert tokens[-1] == prompter.end and tokens.count(prompter.end) == 1
        assert prompter.decode(tokens) == role.target(STEP)
        assert prompter.decode(tokens[:-1]) == role.target(STEP), "a completion cut at its maximum length has no end"
        assert prompter.decode([*tokens, 7, prompter.end, 9]) == role.target(STEP)
    assert prompter.decode([prompter.end]) == prompter.decode([]) == ""


def test_a_template_is_fixed_by_seed_role_and_id_alone():
    """Every rollout of a group, and its scoring, sees one template; over ids all templates occur, evenly."""
    tokenizer = whole_tokenizer()
    prompter = Prompter(tokenizer, MANY, seed=0)
    drawn = {}
    for role in ROLES.values():
        templates = getattr(MANY, role.name).templates
        shown = {"x": STEP.x, "y": STEP.y, "z": STEP.z, "diff": difference(STEP.x, STEP.y, " ; ")}
        rendered = [template.format(**shown) for template in templates]
        steps = [replace(STEP, id=f"e:{i}") for i in range(800)]
        drawn[role.name] = [rendered.index(text_of(prompter.prompt(role, step), tokenizer)) for step in steps]
        counts = Counter(drawn[role.name])
        assert all(abs(counts[i] - 200) < 4 * math.sqrt(800 * 0.25 * 0.75) for i in range(4))
        other = replace(STEP, id="e:1", x="lamp is on", y="lamp is off", z="close lamp", episode="f", t=9)
        shown = {"x": other.x, "y": other.y, "z": other.z, "diff": difference(other.x, other.y, " ; ")}
        text = text_of(prompter.prompt(role, other), tokenizer)
        assert text == templates[drawn[role.name][1]].format(**shown), "contents do not change the draw"
    same = sum(a == b for a, b in zip(drawn["fwm"], drawn["idm"], strict=True))
    assert abs(same - 200) < 4 * math.sqrt(800 * 0.25 * 0.75), "roles draw independently"
    pinned = [1, 1, 2, 0, 0, 3, 1, 1, 3, 3, 1, 2, 1, 0, 3, 2]
    assert drawn["fwm"][:16] == pinned, "every process and machine draws alike, whatever PYTHONHASHSEED"
    reseeded = Prompter(tokenizer, MANY, seed=1)
    assert any(reseeded.prompt(FWM, step) != prompter.prompt(FWM, step) for step in steps[:50])


@pytest.mark.parametrize("make", [whole_tokenizer, byte_tokenizer])
def test_allowed_tokens_are_the_ordinary_ones_and_the_end(make):
    tokenizer = make()
    prompter = Prompter(tokenizer, PLAIN, 0)
    size = len(tokenizer) + 5
    for role in ROLES.values():
        allowed = prompter.allowed(role, size)
        assert allowed.dtype == torch.bool and allowed.shape == (size,)
        for token in range(size):
            name = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
            special = name in {"<pad>", "<bos>", "<unk>", "<turn>"}
            assert allowed[token].item() == (name is not None and not special), name
        assert allowed[prompter.end]
        assert allowed[prompter.target(role, STEP)].all(), "or a target's log-prob would be minus infinity"
    with pytest.raises(ValueError, match="a vocabulary of 4"):
        prompter.allowed(FWM, 4)


def test_a_target_outside_the_allowed_tokens_is_refused_and_a_prompt_of_anything_is_not():
    prompter = Prompter(whole_tokenizer(), PLAIN, 0)
    for text in ("fridge is open", "door <eos> open", "<pad>"):
        with pytest.raises(ValueError, match="transition e:0: y has the special token"):
            prompter.target(FWM, replace(STEP, y=text))
        assert prompter.prompt(IDM, replace(STEP, y=text))
    assert prompter.prompt(IDM, replace(STEP, y="")) and prompter.prompt(FWM, replace(STEP, z=""))
    assert prompter.prompt(IDM, replace(STEP, y="{x} } {"))


def test_a_missing_action_is_named():
    unlabelled = replace(STEP, z=None)
    prompter = Prompter(whole_tokenizer(), PLAIN, 0)
    for call in (lambda: prompter.prompt(FWM, unlabelled), lambda: prompter.target(IDM, unlabelled)):
        with pytest.raises(ValueError, match="transition e:0 has no action"):
            call()


GOOD_FWM, GOOD_IDM = "{x} {z}", "{x} {y}"
BAD_TEMPLATES = {
    "unknown field": ("{x} {z} {w}", GOOD_IDM, r"data\.fwm\.templates\[1\]: unknown field \{w\}"),
    "positional field": ("{x} {z} {}", GOOD_IDM, r"data\.fwm\.templates\[1\]: unknown field \{\}"),
    "attribute": ("{x.y} {z}", GOOD_IDM, r"unknown field \{x\.y\}"),
    "format": ("{x:5d} {z}", GOOD_IDM, "without format"),
    "conversion": ("{x!r} {z}", GOOD_IDM, "without format or conversion"),
    "open brace": ("{x} {z", GOOD_IDM, r"data\.fwm\.templates\[1\]: .*a brace itself"),
    "no x": (GOOD_FWM, "{y}", r"data\.idm\.templates\[1\]: has no \{x\}"),
    "no z": ("{x}", GOOD_IDM, r"data\.fwm\.templates\[1\]: has no \{z\}"),
    "no y": (GOOD_FWM, "{x}", r"data\.idm\.templates\[1\]: has no \{y\} or \{diff\}"),
    "z in IDM": (GOOD_FWM, "{x} {y} {z}", r"data\.idm\.templates\[1\]: \{z\} shows the z"),
    "y in FWM": ("{x} {z} {y}", GOOD_IDM, r"data\.fwm\.templates\[1\]: \{y\} shows the y"),
    "was in FWM": ("{x} {z} {was}", GOOD_IDM, r"data\.fwm\.templates\[1\]: \{was\} shows the y"),
    "diff in FWM": ("{x} {z} {diff}", GOOD_IDM, r"data\.fwm\.templates\[1\]: \{diff\} shows the y"),
}


@pytest.mark.parametrize("fwm, idm, message", BAD_TEMPLATES.values(), ids=BAD_TEMPLATES)
def test_bad_templates_are_refused_by_key_and_number(fwm, idm, message):
    with pytest.raises(ValueError, match=message) as error:
        Prompter(whole_tokenizer(), data_of([GOOD_FWM, fwm], [GOOD_IDM, idm]), 0)
    assert "\n" not in str(error.value)


def test_what_changed_can_be_shown_as_it_was():
    """{was} is what {diff} would be on the way back."""
    tokenizer = byte_tokenizer()
    prompter = Prompter(tokenizer, data_of([GOOD_FWM], ["{x} was {was} is {diff}"]), 0)
    x, y = "a ; b 1 ; c", "a ; b 2 ; c ; e"
    shown = tokenizer.decode(prompter.prompt(IDM, replace(STEP, x=x, y=y)))
    assert difference(y, x, " ; ") == "b 1 ; - e" and shown == f"{x} was b 1 ; - e is b 2 ; + e"


def test_the_fwm_may_write_what_changes_and_that_is_read_as_a_state():
    tokenizer = byte_tokenizer()
    data = replace(data_of([GOOD_FWM], [GOOD_IDM]), next_state=NextState.changes)
    prompter = Prompter(tokenizer, data, 0)
    step = replace(STEP, x="a ; lamp off ; c", y="a ; lamp on ; c ; d")
    written = prompter.target(FWM, step)
    assert prompter.decode(written) == "lamp on ; + d"
    assert prompter.completion(FWM, step, written) == step.y
    assert prompter.completion(IDM, step, prompter.target(IDM, step)) == step.z
    other = replace(step, x="z ; lamp off")
    assert prompter.completions(FWM, [step, other], [written] * 4) == [step.y] * 2 + ["z ; lamp on ; d"] * 2
    assert prompter.same_state("a ; b", "b ; a") and not prompter.same_state("a ; a ; b", "a ; b ; b")


def test_a_doubled_brace_is_text():
    tokenizer = byte_tokenizer()
    prompter = Prompter(tokenizer, data_of(["{{{x}}} {z}"], [GOOD_IDM]), 0)
    assert tokenizer.decode(prompter.prompt(FWM, STEP)) == f"{{{STEP.x}}} {STEP.z}"


def test_other_mistakes_of_construction_are_named():
    with pytest.raises(ValueError, match=r"data\.fwm\.templates is empty"):
        Prompter(whole_tokenizer(), data_of([], [GOOD_IDM]), 0)
    with pytest.raises(ValueError, match=r"data\.fact_separator is empty"):
        Prompter(whole_tokenizer(), data_of([GOOD_FWM], [GOOD_IDM], separator=""), 0)
    with pytest.raises(ValueError, match=r"data\.tokenizer=folder: has no eos token"):
        Prompter(word_tokenizer(bos_token="<bos>"), PLAIN, 0)


def test_a_tokenizer_folder_loads_and_its_absence_or_rubbish_is_one_line(tmp_path):
    whole_tokenizer().save_pretrained(tmp_path / "good")
    assert load_tokenizer(tmp_path / "good").get_vocab() == whole_tokenizer().get_vocab()
    with pytest.raises(ValueError, match="absent: no such folder"):
        load_tokenizer(tmp_path / "absent")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="bare: not a Hugging Face tokenizer folder") as error:
        load_tokenizer(tmp_path / "bare")
    assert "\n" not in str(error.value)
