"""Pictures to codes and back: transformers' tokenizers against transformers, our own against its own promises; frames
of folders and videos; tokenizing in parts.
"""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    ChameleonImageProcessor,
    ChameleonVQVAE,
    ChameleonVQVAEConfig,
    Emu3ImageProcessor,
    Emu3VQVAE,
    Emu3VQVAEConfig,
)

from swirl_nemo.data.images import tokenize as tokenizing
from swirl_nemo.data.images.chameleon_decoder import ChameleonDecoder
from swirl_nemo.data.images.config import TokenizeConfig, TrainTokenizerConfig
from swirl_nemo.data.images.frames import clips, fitted, read_picture
from swirl_nemo.data.images.loading import load_image_tokenizer
from swirl_nemo.data.images.tokenize import tokenize
from swirl_nemo.data.images.training import distinct_frames, train_tokenizer
from swirl_nemo.data.images.vqvae import Shape, VqVae
from swirl_nemo.settings import compose

CHAMELEON = ChameleonVQVAEConfig(
    embed_dim=8, num_embeddings=64, latent_channels=8, resolution=16, base_channels=32, channel_multiplier=[1, 2],
    num_res_blocks=1, attn_resolutions=[8],
)  # fmt: skip
EMU3 = Emu3VQVAEConfig(
    codebook_size=64, embed_dim=4, latent_channels=4, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1,
    attn_resolutions=[1], hidden_size=32, temporal_downsample_factor=2,
)  # fmt: skip
TOLERANCE = 1  # a byte: values that lie between two bytes may be rounded either way


def pictures(count: int, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def chameleon(tmp_path_factory):
    """transformers' own folder, and the decoder that Chameleon's release has beside it."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("chameleon"), ChameleonVQVAE(CHAMELEON)
    torch.nn.init.normal_(model.quantize.embedding.weight, std=0.2)
    model.save_pretrained(folder)
    ChameleonImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def with_decoder(chameleon, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder") / "model"
    shutil.copytree(chameleon[0], folder)
    state = {f"decoder.{name}": tensor for name, tensor in ChameleonDecoder(CHAMELEON).state_dict().items()}
    torch.save({"state_dict": state | {"loss.logvar": torch.zeros(1)}}, folder / "vqgan.ckpt")
    return folder, state


def test_chameleon_encodes_as_transformers_does(chameleon):
    folder, model = chameleon
    images = pictures(3)
    values = ChameleonImageProcessor.from_pretrained(folder)(list(images.numpy()), return_tensors="pt").pixel_values
    expected = model.encode(values)[2].view(3, -1)
    tokenizer = load_image_tokenizer(folder)
    assert (tokenizer.codebook_size, tokenizer.size, tokenizer.grid) == (64, (16, 16), (8, 8))
    codes = tokenizer.encode(images)
    assert codes.dtype is torch.int64 and torch.equal(codes, expected) and len(codes.unique()) > 10
    assert torch.equal(tokenizer.encode(images), codes)
    with pytest.raises(ValueError, match=r"no decoder tensors.*vqgan\.ckpt"):
        tokenizer.decode(codes)


def test_chameleon_within_the_whole_model(chameleon, tmp_path):
    folder, _ = chameleon
    tensors = load_file(folder / "model.safetensors")
    save_file({f"model.vqmodel.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "b.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chameleon", "vq_config": config}))
    shutil.copy(folder / "preprocessor_config.json", tmp_path)
    images = pictures(2)
    assert torch.equal(load_image_tokenizer(tmp_path).encode(images), load_image_tokenizer(folder).encode(images))


def taming_decoder(state: dict[str, torch.Tensor], latent: torch.Tensor) -> torch.Tensor:
    """VQGAN's decoder for two levels, one block a level in the encoder and attention at the lower, written out."""

    def conv(x, name):
        weight = state[f"decoder.{name}.weight"]
        return F.conv2d(x, weight, state[f"decoder.{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(x, name):
        return F.group_norm(x, 32, state[f"decoder.{name}.weight"], state[f"decoder.{name}.bias"], eps=1e-6)

    def block(x, name):
        inner = conv(F.silu(norm(x, f"{name}.norm1")), f"{name}.conv1")
        inner = conv(F.silu(norm(inner, f"{name}.norm2")), f"{name}.conv2")
        shortcut = f"decoder.{name}.nin_shortcut.weight" in state
        return inner + (conv(x, f"{name}.nin_shortcut") if shortcut else x)

    def attention(x, name):
        normed = norm(x, f"{name}.norm")
        q, k, v = (conv(normed, f"{name}.{part}").flatten(2).transpose(1, 2)[:, None] for part in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
        return x + conv(mixed, f"{name}.proj_out")

    x = conv(latent, "conv_in")
    x = block(attention(block(x, "mid.block_1"), "mid.attn_1"), "mid.block_2")
    for number in (0, 1):
        x = attention(block(x, f"up.1.block.{number}"), f"up.1.attn.{number}")
    x = conv(F.interpolate(x, scale_factor=2.0), "up.1.upsample.conv")
    x = block(block(x, "up.0.block.0"), "up.0.block.1")
    return conv(F.silu(norm(x, "norm_out")), "conv_out")


def test_chameleon_decodes_as_vqgan_does(chameleon, with_decoder):
    folder, state = with_decoder
    model = chameleon[1]
    codes = torch.randint(0, 64, (2, 64))
    with torch.no_grad():
        latent = model.post_quant_conv(model.quantize.embedding(codes).view(2, 8, 8, 8).permute(0, 3, 1, 2))
        values = taming_decoder(state, latent)
    stated = json.loads((folder / "preprocessor_config.json").read_text())
    expected = (values.permute(0, 2, 3, 1) + 1) / stated["rescale_factor"]
    decoded = load_image_tokenizer(folder).decode(codes)
    assert decoded.dtype is torch.uint8 and decoded.shape == (2, 16, 16, 3)
    assert (decoded - expected.round().clamp(0, 255)).abs().max() <= TOLERANCE
    assert decoded.float().std() > 1, "a decoder of zeros would agree too"


def test_emu3_encodes_and_decodes_as_transformers_does(tmp_path):
    torch.manual_seed(0)
    model = Emu3VQVAE(EMU3).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight)
    model.save_pretrained(tmp_path)
    processor = Emu3ImageProcessor(do_resize=False, image_mean=[0.4, 0.5, 0.6], image_std=[0.5, 0.5, 0.4])
    processor.save_pretrained(tmp_path)
    images = pictures(3)
    values = processor(list(images.numpy()), return_tensors="pt").pixel_values
    tokenizer = load_image_tokenizer(tmp_path, size=(16, 16))
    with torch.no_grad():
        expected = torch.stack(model.encode(values, torch.tensor([[16, 16]] * 3)))
        decoded = processor.postprocess(list(model.decode(expected)), do_rescale=True, return_tensors="PIL.Image.Image")
    codes = tokenizer.encode(images)
    assert torch.equal(codes, expected.flatten(1)) and len(codes.unique()) > 20 and tokenizer.grid == (8, 8)
    shown = np.stack([np.asarray(picture) for picture in decoded["pixel_values"]]).astype(int)
    assert np.abs(tokenizer.decode(codes).numpy().astype(int) - shown).max() <= TOLERANCE
    with pytest.raises(ValueError, match=r"give size=\[HEIGHT,WIDTH\]"):
        load_image_tokenizer(tmp_path)


def test_folders_that_hold_no_tokenizer(chameleon, tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        load_image_tokenizer(tmp_path)
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="'llama' is no image tokenizer: give one of swirl_vqvae, chameleon_vqgan"):
        load_image_tokenizer(tmp_path)
    config.write_text(CHAMELEON.to_json_string(use_diff=False))
    with pytest.raises(ValueError, match="give the folder of an image tokenizer"):
        load_image_tokenizer(tmp_path)
    tensors = load_file(chameleon[0] / "model.safetensors")
    save_file(tensors | {"quant_conv.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"tensor quant_conv.bias is \[3\], its config.json says \[8\]"):
        load_image_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"size=\[16, 17\].*2 x 2 pixels"):
        load_image_tokenizer(chameleon[0], size=(16, 17))


# our own


def tiles(folder, count: int) -> None:
    """Pictures of 3 x 2 tiles of eight colours, with a mark where the tile is lit."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        image = np.zeros((12, 8, 3), dtype=np.uint8)
        for row, column in np.ndindex(3, 2):
            colour, lit = generator.integers(0, 2, 3) * 200 + 20, generator.integers(2)
            image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = colour
            image[4 * row + 1 : 4 * row + 3, 4 * column + 1] = 255 if lit else colour
        Image.fromarray(image).save(folder / f"{number:03d}.png")


def training(tmp_path, **changes) -> TrainTokenizerConfig:
    settings = {"frames": tmp_path / "frames", "out": tmp_path / "vq", "size": "[12,8]", "patch": 4, "codes": 32}
    settings |= {"hidden": 32, "dim": 8, "steps": 200, "batch": 16, "lr": 0.005, **changes}
    return compose([f"{key}={value}" for key, value in settings.items()], "train_tokenizer", TrainTokenizerConfig)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    tiles(folder / "frames", 60)
    return folder, train_tokenizer(training(folder))


def test_own_tokenizer_gives_frames_back(trained):
    folder, figures = trained
    tokenizer = load_image_tokenizer(folder / "vq")
    frames = distinct_frames(folder / "frames", 1, (12, 8), 0)
    assert figures["frames"] + figures["held_out_frames"] == len(frames) and figures["held_out_frames"] == 6
    assert figures == json.loads((folder / "vq" / "reconstruction.json").read_text())
    codes = tokenizer.encode(frames)
    assert codes.shape == (len(frames), 6) and codes.dtype is torch.int64
    patches = {tuple(p.flatten().tolist()) for p in frames.unfold(1, 4, 4).unfold(2, 4, 4).flatten(0, 2)}
    assert len(codes.unique()) == len(patches) == 16, "a code for each kind of tile"
    near = torch.cdist(tokenizer.codebook, tokenizer.codebook) < 0.01
    assert near.sum() > len(near), "k-means left twins, or the next line says nothing"
    for size in (1, 3, 16):
        assert torch.equal(torch.cat([tokenizer.encode(part) for part in frames.split(size)]), codes)
    error = (tokenizer.decode(codes).float() - frames.float()).abs().mean().item()
    assert error == pytest.approx(figures["mean_absolute_error"], rel=0.3) and error < 12


def test_a_change_of_one_patch_changes_one_code(trained):
    tokenizer = load_image_tokenizer(trained[0] / "vq")
    frame = torch.full((1, 12, 8, 3), 20, dtype=torch.uint8)
    changed = frame.clone()
    changed[0, 4:8, 4:8] = 220
    assert (tokenizer.encode(frame) != tokenizer.encode(changed))[0].tolist() == [False] * 3 + [True] + [False] * 2


def test_with_context_patches_see_their_neighbours():
    torch.manual_seed(0)
    model = VqVae(Shape((12, 8), 4, 16, 4, 8, context=1))
    frame = torch.rand(1, 3, 12, 8)
    changed = frame.clone()
    changed[..., :4, :4] = 0
    moved = (model.encoder(frame) - model.encoder(changed)).abs().sum(1)[0] > 0
    assert moved.tolist() == [[True, True], [True, True], [False, False]]


def test_training_is_repeated_and_refuses_what_it_cannot_meet(trained, tmp_path):
    folder = trained[0]
    for name in ("a", "b"):
        train_tokenizer(training(folder, out=tmp_path / name, steps=3))
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    for changes, message in {
        "out": ({}, r"out=.*exists"),
        "patch": ({"out": tmp_path / "c", "patch": 5}, r"size=\[12, 8\].*patches of 5"),
        "frames": ({"out": tmp_path / "c", "frames": tmp_path / "none"}, "no such folder or video"),
        "held_out": ({"out": tmp_path / "c", "held_out": 1}, r"held_out=1.0: out of range"),
        "few": ({"out": tmp_path / "c", "max_frames": 1}, r"1 distinct frame\(s\)"),
    }.values():
        with pytest.raises(ValueError, match=message):
            train_tokenizer(training(folder, **changes))


def test_bytes_of_a_decoded_picture():
    """Of a decoder that says -1, 0.5 and 2 of each channel: [-1, 1] is 0 to 255, and what lies beyond is cut."""
    model = VqVae(Shape((8, 8), 4, 4, 4, 2, context=0))
    with torch.no_grad():
        model.decoder[-1].weight.zero_()
        model.decoder[-1].bias.copy_(torch.tensor([-1.0, 0.5, 2.0]))
    picture = model.decode(torch.zeros(1, 4, dtype=torch.int64))[0]
    assert picture.shape == (8, 8, 3) and picture.flatten(0, 1).unique(dim=0).tolist() == [[0, 191, 255]]


def test_the_first_of_codes_in_one_place_stands_for_all():
    model = VqVae(Shape((4, 8), 4, 4, 2, 4, context=0))
    model.set_codebook(torch.tensor([[9.0, 9.0], [1.0, 0.0], [1.001, 0.0], [0.0, 1.0]]))
    vectors = torch.tensor([[1.001, 0.0], [0.0, 1.0]]).T[None, :, None]  # [1, 2, 1, 2]
    model.encoder.register_forward_hook(lambda *given: vectors)
    assert model.encode(torch.zeros(1, 4, 8, 3, dtype=torch.uint8)).tolist() == [[1, 3]]


# frames


def video(path, levels: list[int]) -> None:
    """A lossless video, each frame of one level of grey."""
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "bgr0"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), level, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_video_frames_come_at_the_stride(tmp_path):
    video(tmp_path / "a.mkv", list(range(0, 200, 20)))
    (clip,) = clips(tmp_path)
    frames = list(clip.frames(3, (8, 8)))
    assert [frame.shape for frame in frames] == [(8, 8, 3)] * 4
    assert [int(frame.mean()) for frame in frames] == [0, 60, 120, 180]
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"b\.mp4: cannot be read as a video"):
        list(clips(tmp_path / "b.mp4")[0].frames(1, (8, 8)))


def test_folders_are_sequences_in_the_order_of_names(tmp_path):
    for folder, names in {"two": ["2.png", "10.png", "1.png"], "one": ["a.jpg"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            level = 0 if name == "a.jpg" else int(name.removesuffix(".png"))
            Image.new("RGB", (4, 4), (level,) * 3).save(tmp_path / folder / name)
    (tmp_path / "two" / "notes.txt").write_text("")
    found = {clip.name.split("/")[-1]: [file.name for file in clip.files] for clip in clips(tmp_path)}
    assert found == {"one": ["a.jpg"], "two": ["1.png", "10.png", "2.png"]}
    levels = [int(frame.mean()) for frame in clips(tmp_path)[-1].frames(2, (4, 4))]
    assert levels == [1, 2], "of 1, 10 and 2 every second"
    video(tmp_path / "z.mkv", [0])
    assert [clip.name for clip in clips(tmp_path)] == [f"{tmp_path.name}/one", f"{tmp_path.name}/two", "z.mkv"]
    (tmp_path / "one" / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.jpg: cannot be read as a picture"):
        read_picture(tmp_path / "one" / "a.jpg", (4, 4))
    with pytest.raises(ValueError, match="no picture or video in it"):
        clips(tmp_path / "two" / "notes.txt")


def test_pictures_are_fitted_around_their_middle():
    wide = np.zeros((10, 40, 3), dtype=np.uint8)
    wide[:, 15:25] = 200
    assert (fitted(Image.fromarray(wide), (4, 4)) > 180).all()
    assert (fitted(Image.fromarray(wide.transpose(1, 0, 2)), (4, 4)) > 180).all()
    assert (fitted(Image.fromarray(wide), (10, 40)) == wide).all()
    assert fitted(Image.fromarray(wide), (7, 13)).shape == (7, 13, 3)


# to disk


def settings(folder, trained, **changes) -> TokenizeConfig:
    given = {"source": trained[0] / "frames", "out": folder / "codes", "tokenizer": trained[0] / "vq", "part": 7}
    given |= {"processes": 1, "batch": 3, **changes}
    return compose([f"{key}={value}" for key, value in given.items()], "tokenize", TokenizeConfig)


def test_codes_on_disk_are_the_tokenizer_s(trained, tmp_path):
    assert tokenize(settings(tmp_path, trained, world_name="tiles")) == 60
    codes = np.load(tmp_path / "codes" / "codes.npy", mmap_mode="r")
    files = sorted((trained[0] / "frames").iterdir())
    frames = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files]))
    assert codes.dtype == np.uint16 and (codes == load_image_tokenizer(trained[0] / "vq").encode(frames).numpy()).all()
    (row,) = (json.loads(line) for line in (tmp_path / "codes" / "states.jsonl").read_text().splitlines())
    assert row["states"] == [{"image": f"codes.npy#{number}"} for number in range(60)] and row["world"] == "tiles"
    about = json.loads((tmp_path / "codes" / "codes.json").read_text())
    assert (about["codebook_size"], about["grid"]) == (32, [3, 2]) and not (tmp_path / "codes" / "parts").exists()


def test_folders_of_pictures_are_read_at_the_stride_and_one_state_is_no_sequence(trained, tmp_path):
    """The first state of the second folder has a code of its own place in codes.npy, and no row."""
    files = sorted((trained[0] / "frames").iterdir())
    for folder, some in (("a", files[:5]), ("b", files[5:7]), ("c", files[7:10])):
        (tmp_path / "source" / folder).mkdir(parents=True)
        for file in some:
            shutil.copy(file, tmp_path / "source" / folder)
    assert tokenize(settings(tmp_path, trained, source=tmp_path / "source", stride=2, part=2)) == 3 + 1 + 2
    rows = [json.loads(line) for line in (tmp_path / "codes" / "states.jsonl").read_text().splitlines()]
    numbers = {row["id"]: [int(state["image"].removeprefix("codes.npy#")) for state in row["states"]] for row in rows}
    assert numbers == {"source/a": [0, 1, 2], "source/c": [4, 5]}
    read = torch.from_numpy(np.stack([np.asarray(Image.open(files[place])) for place in (0, 2, 4, 5, 7, 9)]))
    codes = load_image_tokenizer(trained[0] / "vq").encode(read).numpy()
    assert (np.load(tmp_path / "codes" / "codes.npy") == codes).all()


def test_codes_of_other_settings_or_of_a_tokenizer_trained_anew_are_not_taken_for_these(trained, tmp_path):
    """A tokenizer trained with another seed has files of the same sizes."""
    (tmp_path / "videos").mkdir()
    video(tmp_path / "videos" / "a.mkv", [20, 220, 20, 220, 20])
    shutil.copytree(trained[0] / "vq", tmp_path / "vq")
    given = {"source": tmp_path / "videos", "tokenizer": tmp_path / "vq", "stride": 2}
    assert tokenize(settings(tmp_path, trained, **given)) == tokenize(settings(tmp_path, trained, **given)) == 3
    with pytest.raises(ValueError, match="holds codes of other pictures or settings"):
        tokenize(settings(tmp_path, trained, **given | {"stride": 1}))
    weights = load_file(tmp_path / "vq" / "model.safetensors")
    save_file({name: tensor.flip(0) for name, tensor in weights.items()}, tmp_path / "vq" / "model.safetensors")
    with pytest.raises(ValueError, match="holds codes of other pictures or settings"):
        tokenize(settings(tmp_path, trained, **given))


def test_transitions_with_pictures_are_rewritten(trained, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(trained[0] / "frames", source / "frames")
    rest = {"world": "tiles", "episode": "e", "t": 0}
    row = {"id": "a", "x": {"image": "frames/005.png"}, "z": "go", "y": {"image": "frames/002.png"}, **rest}
    text = {"id": "b", "x": "a room", "z": None, "y": {"image": "frames/005.png"}, **rest}
    text["history"] = [{"image": "frames/001.png"}, {"image": "frames/005.png"}, "a hall"]
    (source / "labelled.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(text)}\n")
    (source / "unlabelled_actions.jsonl").write_text('{"id": "b", "z": "é"}\n')
    assert tokenize(settings(tmp_path, trained, source=source)) == 3
    rows = [json.loads(line) for line in (tmp_path / "codes" / "labelled.jsonl").read_text().splitlines()]
    first, second, fifth = ({"image": f"codes.npy#{number}"} for number in range(3))
    assert rows == [row | {"x": fifth, "y": second}, text | {"y": fifth, "history": [first, fifth, "a hall"]}]
    assert (tmp_path / "codes" / "unlabelled_actions.jsonl").read_text() == '{"id": "b", "z": "é"}\n'


def test_tokenizing_goes_on_where_it_stopped(trained, tmp_path, monkeypatch):
    tokenize(settings(tmp_path / "whole", trained))
    encoded = []
    original = tokenizing._encode_part

    def failing(part):
        if len(encoded) == 4:
            raise KeyboardInterrupt
        encoded.append(part.number)
        original(part)

    monkeypatch.setattr(tokenizing, "_encode_part", failing)
    with pytest.raises(KeyboardInterrupt):
        tokenize(settings(tmp_path, trained))
    with pytest.raises(ValueError, match="holds codes of other pictures or settings"):
        tokenize(settings(tmp_path, trained, stride=2))
    monkeypatch.setattr(tokenizing, "_encode_part", lambda part: (encoded.append(part.number), original(part)))
    tokenize(settings(tmp_path, trained))
    assert encoded == list(range(9))
    for name in ("codes.npy", "states.jsonl"):
        assert (tmp_path / "codes" / name).read_bytes() == (tmp_path / "whole" / "codes" / name).read_bytes()
    assert tokenize(settings(tmp_path, trained)) == 60 and encoded == list(range(9)), "nothing is done twice"


@pytest.mark.slow
def test_two_processes_write_what_one_does(trained, tmp_path):
    tokenize(settings(tmp_path / "one", trained))
    tokenize(settings(tmp_path / "two", trained, processes=2))
    one, two = ((tmp_path / name / "codes" / "codes.npy").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_video_is_a_sequence_and_what_cannot_be_tokenized_is_named(trained, tmp_path):
    (tmp_path / "videos").mkdir()
    video(tmp_path / "videos" / "a.mkv", [20, 220, 20, 220, 20])
    assert tokenize(settings(tmp_path, trained, source=tmp_path / "videos", stride=2)) == 3
    (row,) = (json.loads(line) for line in (tmp_path / "codes" / "states.jsonl").read_text().splitlines())
    assert row["id"] == "a.mkv" and len(row["states"]) == 3
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "labelled.jsonl").write_text('{"id": "a", "x": "b", "y": "c"}\n')
    with pytest.raises(ValueError, match="none of its 1 transitions files has a picture"):
        tokenize(settings(tmp_path, trained, source=tmp_path / "texts", out=tmp_path / "other"))
    with pytest.raises(ValueError, match="is there and not of swirl tokenize"):
        tokenize(settings(tmp_path, trained, out=tmp_path / "texts"))
    with pytest.raises(ValueError, match="device=tpu: this machine has no such device"):
        tokenize(settings(tmp_path, trained, device="tpu"))
    with pytest.raises(ValueError, match="part=0: out of range"):
        tokenize(settings(tmp_path, trained, part=0))
