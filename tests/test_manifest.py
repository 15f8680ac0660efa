"""Checkpoints that are whole, and nothing in them that runs: what is planted is refused with its name.

The manifest is looked at without Megatron; what a distributed checkpoint may hold, on one that `swirl import` made.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from workers.layouts import run_module

from swirl_nemo.checkpoint import manifest


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sealed checkpoint of three files."""
    folder = tmp_path / "00000003"
    (folder / "fwm" / "empty folder").mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    (folder / "fwm" / "weights").write_bytes(os.urandom(3 * manifest.BLOCK + 5))
    (folder / "fwm" / "nothing").touch()
    manifest.write(folder, manifest.describe(folder, manifest.files(folder)))
    return folder


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def rewrite(folder: Path, change) -> None:
    """`change` takes the manifest's files, and may change them."""
    path = folder / manifest.NAME
    listed = json.loads(path.read_text())
    change(listed["files"])
    path.write_text(json.dumps(listed))


def test_a_manifest_states_sizes_and_checksums(folder):
    """By hashlib over the whole file; files are named with their folders."""
    listed = json.loads((folder / manifest.NAME).read_text())["files"]
    assert list(listed) == ["fwm/nothing", "fwm/weights", "state.json"]
    for name, entry in listed.items():
        content = (folder / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert manifest.fault(folder) is None


class _Attribute:
    """Pickled as Python 3.11.0 to 3.11.3, Debian 12's among them, write a member of an enumeration."""

    def __init__(self, owner, name: str):
        self.pair = owner, name

    def __reduce__(self):
        return getattr, self.pair


def test_an_attribute_in_metadata_is_a_member_of_an_enumeration_or_refused(tmp_path):
    """The first was how a checkpoint of Debian's own Python refused itself."""
    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import WriteItemType

    from swirl_nemo.checkpoint import metadata

    path = tmp_path / ".metadata"
    path.write_bytes(pickle.dumps(Metadata({}, storage_data={"k": _Attribute(WriteItemType, "TENSOR")})))
    assert metadata._unpickled(path).storage_data["k"] is WriteItemType.TENSOR
    for owner, name in ((Metadata, "__init__"), (WriteItemType, "__class__"), (WriteItemType, "mro")):
        path.write_bytes(pickle.dumps(Metadata({}, storage_data={"k": _Attribute(owner, name)})))
        with pytest.raises(ValueError, match=r"names builtins\.getattr"):
            metadata._unpickled(path)


@pytest.mark.parametrize(
    "damage, told",
    {
        "missing": (lambda f: (f / "fwm" / "weights").unlink(), "fwm/weights is missing"),
        "truncated": (lambda f: os.truncate(f / "fwm" / "weights", 7), "fwm/weights has 7 bytes, not 12582917"),
        "grown": (lambda f: (f / "fwm" / "nothing").write_bytes(b"x"), "fwm/nothing has 1 bytes, not 0"),
        "first bit": (lambda f: flip(f / "fwm" / "weights", 0), "fwm/weights is not what was written"),
        "last bit": (lambda f: flip(f / "fwm" / "weights", -1), "fwm/weights is not what was written"),
        "added": (lambda f: (f / "fwm" / "common.pt").touch(), "fwm/common.pt is not in manifest.json"),
        "no manifest": (lambda f: (f / manifest.NAME).unlink(), "manifest.json No such file"),
        "half a manifest": (lambda f: os.truncate(f / manifest.NAME, 40), "manifest.json is not readable"),
        "a list": (lambda f: (f / manifest.NAME).write_text("[]"), "manifest.json is not readable"),
        "a link": (lambda f: _link(f / "state.json"), "state.json is missing"),
        "upwards": (lambda f: rewrite(f, lambda e: e.update({"../x": e["state.json"]})), "names '../x', which is out"),
        "absolute": (lambda f: rewrite(f, lambda e: e.update({"/etc/x": e["state.json"]})), "names '/etc/x', which is"),
    }.values(),
)
def test_damage_is_named(folder, damage, told):
    damage(folder)
    assert told in manifest.fault(folder)


def _link(path: Path) -> None:
    """The same content, but elsewhere: it could change, or be someone else's."""
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def test_processes_share_the_files(folder):
    """Each damaged file is seen by exactly one of two processes."""
    flip(folder / "fwm" / "weights", 9)
    assert [bool(manifest.fault(folder, part, 2)) for part in (0, 1)] == [False, True]


class Planted:
    """Unpickled, it would make the file `proof`."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def _sharded(tensor, thing) -> dict:
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    return {"w": ShardedTensor.from_rank_offsets("w", tensor), "o": ShardedObject("o", thing, (1,), (0,))}


def _plant_metadata(folder: Path, proof: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Planted(proof)))


def _plant_common(folder: Path, proof: Path) -> None:
    import torch

    torch.save({"step": Planted(proof)}, folder / "common.pt")


def _plant_old_common(folder: Path, proof: Path) -> None:
    (folder / "common.pt").write_bytes(pickle.dumps(Planted(proof)))


def _plant_object(folder: Path, proof: Path) -> None:
    """Over the honest object's bytes, with the metadata made to fit."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(Planted(proof), buffer)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    (info,) = [info for index, info in metadata.storage_data.items() if index.fqn.startswith("o")]
    file = folder / info.relative_path
    info.offset, info.length = file.stat().st_size, len(buffer.getvalue())
    file.write_bytes(file.read_bytes() + buffer.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def _plant_path(folder: Path, proof: Path) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = f"../{folder.name}/{info.relative_path}"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def _plant_member(folder: Path, proof: Path) -> None:
    with zipfile.ZipFile(folder / "common.pt", "a") as archive:
        archive.writestr("../../planted", "x")


def _plant_backend(folder: Path, proof: Path) -> None:
    """zarr's arrays of objects are pickles."""
    (folder / "metadata.json").write_text('{"sharded_backend": "zarr", "common_backend": "torch"}')


def _cut(folder: Path, proof: Path) -> None:
    for path in folder.glob("*.distcp"):
        os.truncate(path, path.stat().st_size - 1)


PLANTED = {
    _plant_metadata: r"\.metadata: names posix\.system",
    _plant_common: r"common\.pt: .*posix\.system",
    _plant_old_common: r"common\.pt: missing or damaged",
    _plant_object: r"an object in its \.distcp files",
    _plant_path: r"\.metadata: names '\.\./_plant_path/__0_0\.distcp'",
    _plant_member: r"common\.pt: its member '\.\./\.\./planted'",
    _plant_backend: r"metadata\.json: format .*zarr",
    _cut: r"\.distcp: missing or cut short",
}


def _pruned(root: Path) -> list[str]:
    """What is left of six checkpoints, of which three have a score, and a named one."""
    from swirl_nemo.checkpoint import saving

    for name, score in {"1": 0.5, "2": None, "3": 0.75, "4": 0.25, "5": None, "6": None, "warmup": 0.0}.items():
        (root / name).mkdir(parents=True)
        (root / name / "state.json").write_text(json.dumps({"score": score}))
    saving._prune(root, keep=2, keep_best=2)
    return sorted(path.name for path in root.iterdir())


def _load_planted(work: Path) -> None:
    """What loading the honest checkpoint gave, what was said of each planted one, and which ran: work/said.json.

    A process of its own: the patches for CPUs change torch for good.
    """
    from swirl_nemo.stack import prepare

    prepare()
    import torch
    from megatron.core import dist_checkpointing

    from swirl_nemo.checkpoint import saving, trusted

    def read(folder: Path, load=trusted.load) -> dict:
        return load(_sharded(torch.zeros(6), None), folder)

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    honest = work / "honest"
    saving.save_tensors(_sharded(torch.arange(6.0), {"a": 1}) | {"step": 3}, honest)
    loaded = read(honest)
    said = {"honest": [loaded["w"].tolist(), loaded["o"], loaded["step"]], "forced": trusted.WEIGHTS_ONLY in os.environ}
    for plant in PLANTED:
        folder, proof = work / plant.__name__, work / f"{plant.__name__}.proof"
        shutil.copytree(honest, folder)
        plant(folder, proof)
        try:
            read(folder)
        except ValueError as error:
            said[plant.__name__] = [str(error), proof.exists()]
    read(work / "_plant_common", lambda sharded, folder: dist_checkpointing.load(sharded, str(folder)))
    said["unguarded"] = (work / "_plant_common.proof").exists()
    said["kept"] = _pruned(work / "checkpoints")
    (work / "said.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict:
    work = tmp_path_factory.mktemp("planted")
    run_module("test_manifest", work)
    return json.loads((work / "said.json").read_text())


@pytest.mark.megatron
def test_an_honest_checkpoint_is_read(said):
    assert said["honest"] == [[0, 1, 2, 3, 4, 5], {"a": 1}, 3] and not said["forced"]


@pytest.mark.megatron
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_what_is_planted_is_refused_with_its_name_and_does_not_run(said, plant):
    told, ran = said[plant.__name__]
    assert re.search(PLANTED[plant], told) and "\n" not in told and not ran


@pytest.mark.megatron
def test_without_the_guard_it_would_run(said):
    """Megatron's own load runs what common.pt names: the guard is what keeps it from that."""
    assert said["unguarded"]


@pytest.mark.megatron
def test_the_newest_and_the_best_checkpoints_are_kept(said):
    assert said["kept"] == ["1", "3", "5", "6", "warmup"]


def test_a_tag_in_model_config_yaml_is_refused_with_its_name(tmp_path):
    from swirl_nemo.checks import check_files
    from swirl_nemo.settings import compose

    proof, model = tmp_path / "proof", tmp_path / "model"
    model.mkdir()
    (model / "model_config.yaml").write_text(f"a: !!python/object/apply:os.system ['touch {proof}']\n")
    for name in ("labelled", "unlabelled", "validation", "test"):
        (tmp_path / name).touch()
    data = [f"data.{name}={tmp_path / name}" for name in ("labelled", "unlabelled", "validation", "test")]
    cfg = compose([*data, f"data.tokenizer={model}", f"model.fwm={model}", f"model.idm={model}"])
    with pytest.raises(ValueError, match=r"model_config\.yaml is no plain YAML.*python/object/apply") as error:
        check_files(cfg)
    assert "\n" not in str(error.value) and not proof.exists()


def test_a_tokenizer_with_code_of_its_own_is_refused(tmp_path):
    """The remote-code flag: tokenizer_config.json that names a class in a file beside it."""
    from swirl_nemo.data.prompts import load_tokenizer

    proof = tmp_path / "proof"
    (tmp_path / "mine.py").write_text(f"open({str(proof)!r}, 'w')\nclass Mine: pass\n")
    flags = {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(flags))
    with pytest.raises(ValueError, match=str(tmp_path)) as error:
        load_tokenizer(str(tmp_path))
    assert not proof.exists() and "\n" not in str(error.value)


if __name__ == "__main__":
    _load_planted(Path(sys.argv[1]))
