"""Images in transitions files, prompts, completions and masks, with a word tokenizer and a byte-level one."""

import json
from dataclasses import replace
from operator import ne
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from swirl_nemo.annotation import Annotated
from swirl_nemo.annotation import read as read_annotations
from swirl_nemo.annotation import write as write_annotations
from swirl_nemo.collection.tokenizers import bpe_tokenizer, word_tokenizer
from swirl_nemo.config import DataConfig, NextState, PretrainConfig, RoleDataConfig, Tokens
from swirl_nemo.data.images.characters import code_text, image_codes, image_difference, image_text, readable
from swirl_nemo.data.images.vocabulary import ImageTokens
from swirl_nemo.data.prompts import Prompter, load_tokenizer
from swirl_nemo.data.transition import Transition
from swirl_nemo.data.transitions import TransitionFile
from swirl_nemo.evaluation.metrics import exact_match, token_f1
from swirl_nemo.pretraining import StateOnlyRows
from swirl_nemo.roles import FWM, IDM
from swirl_nemo.rollout.sampling import Distribution

X, Y = [3, 0, 9, 1, 1, 5, 0, 4], [3, 0, 2, 1, 1, 7, 0, 4]
STEP = Transition("e:0", image_text(X), "left", image_text(Y), "w", "e", 0)
WORDS = ["left", "right", *map(str, range(4)), "<boi>", "<eoi>"]
FIRST, CODES = 500, 10
TEMPLATES = {"fwm": "<fwm> {x} <act> {z} <next>", "idm": "<idm> {x} <next> {y} <diff> {diff} <act>"}


@pytest.fixture(params=["words", "bytes"])
def folder(request, tmp_path):
    """A tokenizer's folder as `swirl import --images` makes it: 10 codes, images of 2 x 4."""
    words = request.param == "words"
    tokenizer = word_tokenizer(WORDS) if words else bpe_tokenizer(["left right 0 1"], 300)
    tokenizer.save_pretrained(tmp_path)
    begin, end = tokenizer.convert_tokens_to_ids(["<boi>", "<eoi>"]) if words else (FIRST - 2, FIRST - 1)
    ImageTokens(begin, end, FIRST, CODES, rows=2, columns=4).write(tmp_path)
    return tmp_path


def settings(folder, fwm: str = TEMPLATES["fwm"], idm: str = TEMPLATES["idm"], **changes) -> DataConfig:
    fixed = {"templates": [fwm], "tokens": Tokens.image, "min_length": 8, "max_length": 8}
    return DataConfig(
        tokenizer=str(folder),
        fact_separator=" ; ",
        fwm=RoleDataConfig(**fixed | changes),
        idm=RoleDataConfig([idm], Tokens.text, min_length=1, max_length=8),
    )  # fmt: skip


def prompter_of(folder, **changes) -> Prompter:
    return Prompter(load_tokenizer(folder), settings(folder, **changes), seed=0)


def image_tokens(folder, codes: list[int]) -> list[int]:
    tokens = ImageTokens.read(folder)
    return [tokens.begin, *(FIRST + code for code in codes), tokens.end]


@pytest.mark.parametrize(
    "other", ["", "left", image_text(X) + image_text(Y), image_text(X)[:-1], "left " + image_text(X)]
)
def test_an_image_is_codes_between_its_ends_and_nothing_else(other):
    assert image_codes(image_text(X)) == X
    assert image_codes(other) is None
    assert image_codes(image_text(X).replace(code_text(9), "left")) is None


def test_characters_and_tokens_are_inverse():
    images = ImageTokens(begin=7, end=9, first_code=FIRST, codes=CODES, rows=2, columns=4)
    text = image_text(X) + image_text(Y)
    tokens = images.encode(text, "t")
    assert tokens == [7, *(FIRST + code for code in X), 9, 7, *(FIRST + code for code in Y), 9]
    assert "".join(map(images.character, tokens)) == text
    assert [images.character(token) for token in (0, FIRST - 1, FIRST + CODES)] == [None] * 3


def test_prompts_hold_images_between_begin_and_end(folder):
    """Token by token against the tokenizer's own encoding of what stands between images."""
    tokenizer, prompter = load_tokenizer(folder), prompter_of(folder)

    def text(part: str) -> list[int]:
        return tokenizer(part, add_special_tokens=False)["input_ids"]

    bos, x, y = [tokenizer.bos_token_id], image_tokens(folder, X), image_tokens(folder, Y)
    fwm = [*bos, *text("<fwm> "), *x, *text(" <act> left <next>"), ImageTokens.read(folder).begin]
    assert prompter.prompt(FWM, STEP) == fwm
    changes = [*text("0 2 "), FIRST + 9, FIRST + 2, *text(" 1 1 "), FIRST + 5, FIRST + 7]
    idm = [*bos, *text("<idm> "), *x, *text(" <next> "), *y, *text(" <diff> "), *changes, *text(" <act>")]
    if tokenizer.vocab_size < 100:  # words: where a text is divided does not change its tokens
        assert prompter.prompt(IDM, STEP) == idm
    images = [token for token in idm if token >= FIRST]
    assert [token for token in prompter.prompt(IDM, STEP) if token >= FIRST] == images
    assert prompter.prompt(FWM, replace(STEP, y=image_text([0] * 8))) == fwm, "the FWM's prompt knows nothing of y"


def test_a_target_is_exactly_the_codes_and_the_end(folder):
    prompter = prompter_of(folder)
    assert prompter.target(FWM, STEP) == image_tokens(folder, Y)[1:]
    assert prompter.target(IDM, STEP)[-1] == prompter.end
    prompt, target = prompter.prompt(FWM, STEP), prompter.target(FWM, STEP)
    assert [prompt[-1], *target] == image_tokens(folder, Y), "prompt and target make a whole image"
    for completion in (target, target[:-1], [*target, prompter.end, 5]):
        assert prompter.decode(completion) == STEP.y
    assert prompter.decode(prompter.target(IDM, STEP)) == "left"


def test_masks_keep_text_and_images_apart(folder):
    """A whole rollout from noise under each role's distribution."""
    prompter, size = prompter_of(folder), 640
    fwm, idm = prompter.allowed(FWM, size), prompter.allowed(IDM, size)
    assert not (fwm & idm).any() and fwm.nonzero().flatten().tolist() == [*range(FIRST, FIRST + CODES)]
    tokens = ImageTokens.read(folder)
    assert not idm[[tokens.begin, tokens.end]].any() and idm[prompter.end] and not idm[FIRST - 2 :].any()
    distribution = Distribution(fwm, 1.0, prompter.end, min_length=8, top_k=0, top_p=1.0)
    weights = distribution.log_weights(torch.randn(500, size) * 10, torch.zeros(500, dtype=torch.long))
    drawn = weights.softmax(-1).multinomial(8, replacement=True)
    assert all(image_codes(prompter.decode(row)) == [token - FIRST for token in row] for row in drawn.tolist())
    with pytest.raises(ValueError, match="vocabulary of 505"):
        prompter.allowed(FWM, 505)


@pytest.mark.parametrize("ends", [{"begin": FIRST}, {"end": FIRST}, {"begin": 8, "end": 8}])
def test_ends_of_an_image_are_two_tokens_and_no_codes(ends):
    numbers = {"begin": FIRST - 2, "end": FIRST - 1, "first_code": FIRST, "codes": CODES, "rows": 2, "columns": 4}
    ImageTokens(**numbers).check("here")
    with pytest.raises(ValueError, match="here: begin .* must be two tokens below the codes"):
        ImageTokens(**numbers | ends).check("here")


def test_a_model_cannot_make_up_a_code_in_text(tmp_path):
    """Byte by byte, a byte-level tokenizer can spell every character."""
    bpe_tokenizer(["left"], 300).save_pretrained(tmp_path)
    ImageTokens(FIRST - 2, FIRST - 1, FIRST, CODES, 2, 4).write(tmp_path)
    prompter, tokenizer = prompter_of(tmp_path), load_tokenizer(tmp_path)
    spelled = tokenizer(f"a{code_text(3)}b", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(spelled) == f"a{code_text(3)}b" and prompter.decode(spelled) == "a\ufffdb"


def test_differences_stand_in_an_action_s_place(folder):
    """Pre-training: the IDM copies codes out, the FWM carries them out."""
    prompter = prompter_of(folder)
    cfg = PretrainConfig(without_action=0.0, renamed=0.5)
    (_, row), (_, same) = StateOnlyRows(cfg, [STEP], " ; ", 1, prompter.image_columns).pairs([STEP], 0)
    assert row == same and (row.x, row.y) == (STEP.x, STEP.y), "an image has no words to rename"
    changes = [FIRST + code for code in (9, 2, 5, 7)]
    assert [token for token in prompter.target(IDM, row) if token >= FIRST] == changes
    codes = [token for token in prompter.prompt(FWM, row) if token >= FIRST]
    assert codes == [FIRST + code for code in X] + changes
    assert prompter.decode(prompter.target(IDM, row)).replace(" ", "") == row.z.replace(" ", "")


def test_a_difference_tells_the_next_image():
    """Applied to x it gives y, whatever the images; one that would be longer than an image is y's codes."""
    rng = Random(0)
    for _ in range(200):
        x = [rng.randrange(8) for _ in range(12)]
        y = [rng.randrange(8) if rng.random() < 0.2 else code for code in x]
        told = image_difference(image_text(x), image_text(y), columns=4)
        if sum(map(ne, x, y)) > 3:
            assert told == image_text(y)[1:-1]
            continue
        words = told.split(" ")
        made = list(x)
        for row, column, codes in zip(words[::3], words[1::3], words[2::3], strict=False):
            place = int(row) * 4 + int(column)
            assert codes == code_text(x[place]) + code_text(y[place])
            made[place] = y[place]
        assert made == y and (words == ["="]) == (x == y)
    assert image_difference("a room", image_text(X), 3) is None
    assert image_difference(image_text(X), image_text(X[:3]), 3) is None


def test_history_makes_prompts_of_several_images(folder):
    prompter = prompter_of(folder, fwm="{history} <fwm> {x} <act> {z} <next>")
    earlier = [[0] * 8, [1] * 8]
    step = replace(STEP, history=tuple(map(image_text, earlier)))
    codes = [token - FIRST for token in prompter.prompt(FWM, step) if token >= FIRST]
    assert codes == [*earlier[0], *earlier[1], *X]
    begins = prompter.prompt(FWM, step).count(ImageTokens.read(folder).begin)
    assert begins == 4 and prompter.prompt(FWM, STEP).count(ImageTokens.read(folder).begin) == 2


def test_what_does_not_fit_the_model_is_one_line(folder):
    prompter = prompter_of(folder)
    cases = {
        "an image of 5 codes, the model's have 2 x 4": replace(STEP, x=image_text(X[:5])),
        "image code 10, the model has 10": replace(STEP, x=image_text([10] * 8)),
    }
    for message, row in cases.items():
        with pytest.raises(ValueError, match=f"transition e:0: {message}"):
            prompter.prompt(FWM, row)
    with pytest.raises(ValueError, match=r"its y is not an image, which data.fwm.tokens=image completes"):
        prompter.target(FWM, replace(STEP, y="left"))
    with pytest.raises(ValueError, match=r"its z is not text, which data.idm.tokens=text completes"):
        prompter.target(IDM, replace(STEP, z=STEP.x))
    with pytest.raises(ValueError, match=r"data.fwm.max_length=9: an image of this model has 2 x 4 codes: give 8"):
        prompter_of(folder, max_length=9)
    (folder / "image_tokens.json").write_text('{"begin": 1}')
    with pytest.raises(ValueError, match=r"image_tokens\.json: not as swirl import writes it"):
        prompter_of(folder)
    (folder / "image_tokens.json").unlink()
    with pytest.raises(ValueError, match=r"data\.fwm\.tokens=image: .* has no image_tokens\.json"):
        prompter_of(folder)
    with pytest.raises(ValueError, match=r"transition e:0: has an image, and data\.tokenizer no image_tokens\.json"):
        prompter_of(folder, tokens=Tokens.text).prompt(FWM, STEP)


# files


def test_rows_of_codes_and_of_a_memory_map(tmp_path):
    np.save(tmp_path / "codes.npy", np.array([Y, X], dtype=np.uint16))
    rest = {"z": "left", "world": "w", "t": 0}
    rows = [
        {"id": "a", "x": {"image": X}, "y": {"image": "codes.npy#0"}, "episode": "e", **rest},
        {"id": "b", "x": "a room", "y": {"image": "codes.npy#1"}, "episode": "e", **rest},
        {"id": "s", "states": [{"image": "codes.npy#1"}, {"image": Y}, {"image": X}], "world": "w", "episode": "f"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(TransitionFile(path, None, history=3))
    x, y = image_text(X), image_text(Y)
    assert [(row.x, row.y, row.history) for row in found] == [
        (x, y, ()), ("a room", x, ()), (x, y, ()), (y, x, (x,)),
    ]  # fmt: skip
    many, none = "the file has 2 images: tokenize again", "is a picture, not its codes"
    for number, message in {2: many, 9: many, "x": none}.items():
        path.write_text(json.dumps(rows[0] | {"x": {"image": f"codes.npy#{number}"}}) + "\n")
        with pytest.raises(ValueError, match=f"rows.jsonl:1: x: codes.npy#{number}.*{message}"):
            TransitionFile(path, None)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros(8, dtype=np.uint16), r"uint16 of shape \[8\] are no codes: tokenize again"),
        (np.zeros((2, 8)), r"float64 of shape \[2, 8\] are no codes: tokenize again"),
        (None, "cannot be read as codes"),
    ],
)
def test_a_file_of_codes_holds_rows_of_whole_numbers(tmp_path, codes, message):
    (tmp_path / "codes.npy").write_bytes(b"no array")
    if codes is not None:
        np.save(tmp_path / "codes.npy", codes)
    row = {"id": "a", "x": {"image": "codes.npy#0"}, "y": "b", "z": "left", "world": "w", "t": 0, "episode": "e"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"rows.jsonl:1: x: .*codes.npy: {message}"):
        TransitionFile(tmp_path / "rows.jsonl", None)


def test_images_of_one_file_have_one_length(tmp_path):
    path, row = tmp_path / "rows.jsonl", {"z": "left", "world": "w", "t": 0, "episode": "e"}
    rows = [{"id": "a", "x": {"image": X}, "y": {"image": Y}, **row}, {"id": "b", "x": {"image": X}, "y": "x", **row}]
    rows.append({"id": "c", "x": "x", "y": {"image": Y[:-1]}, **row})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"rows.jsonl:3: y: an image of 7 codes, the first has 8: give one length"):
        TransitionFile(path, None)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert len(TransitionFile(path, None)) == 2


def test_an_image_tokenizer_must_be_the_models_own(folder):
    prompter, own = prompter_of(folder), SimpleNamespace(codebook_size=CODES, grid=(2, 4))
    prompter.check_image_tokenizer(own, "here")
    for other in (
        SimpleNamespace(codebook_size=CODES + 1, grid=(2, 4)),
        SimpleNamespace(codebook_size=CODES, grid=(4, 2)),
    ):
        with pytest.raises(ValueError, match=r"^data.image_tokenizer=here: .* the model has \(10, 2, 4\): give .*$"):
            prompter.check_image_tokenizer(other, "here")


def test_annotations_come_back_as_they_were(tmp_path):
    """In memory an image is characters, in a file it is codes."""
    rows = [replace(STEP, history=(STEP.y, "text")), Transition("e:1", "a", "", "é", "w", "e", 1)]
    annotated = [Annotated(row, -0.5, -1.0) for row in rows]
    write_annotations(annotated, tmp_path / "rows.jsonl", tmp_path / "scores.jsonl")
    assert read_annotations(tmp_path / "rows.jsonl", tmp_path / "scores.jsonl") == annotated
    first, second = (json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines())
    assert first["x"] == {"image": X} and first["history"] == [{"image": Y}, "text"]
    assert "history" not in second and second["y"] == "é"


def test_code_accuracy_and_exact_frames():
    assert token_f1(STEP.y, STEP.x) == pytest.approx(6 / 8) and token_f1(STEP.x, STEP.x) == 1
    assert exact_match(STEP.x, image_text(X)) and not exact_match(STEP.x, STEP.y)
    assert token_f1(image_text(X[:5]), STEP.x) == token_f1("left", STEP.x) == 0


def test_people_read_codes():
    assert readable(f"a {image_text([3, 17])} b {code_text(4)}") == "a [image 3 17] b [4]"
    assert readable(f"next {image_text([3])[0]}") == "next [image"


def test_an_image_is_written_whole(folder):
    with pytest.raises(ValueError, match=r"^data\.next_state=changes: an image is written whole: give"):
        Prompter(load_tokenizer(folder), replace(settings(folder), next_state=NextState.changes), seed=0)
