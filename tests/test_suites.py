"""Suites on made-up releases: every item of the layout is read, and each that cannot be is named."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import ImageChops
from releases import RELEASES, picture

from swirl_nemo.evaluation.suites import SUITES, find
from swirl_nemo.evaluation.suites.base import Contents, Damaged, Item
from swirl_nemo.settings import compose


def read(name: str, folder, *overrides: str) -> Contents:
    return find(compose([f"suite={name}", f"suite.folder={folder}", *overrides]).suite).read()


def keys(items: list[Item]) -> list[str]:
    return [item.key for item in items]


def faults(contents: Contents) -> list[tuple[str, str]]:
    return [(f"{fault.part}/{fault.id}", fault.what) for fault in contents.faults]


def same(one, other) -> bool:
    return ImageChops.difference(one, other).getbbox() is None


def test_aurora(tmp_path):
    contents = read("aurora", RELEASES["aurora"](tmp_path))
    assert keys(contents.items) == [
        "magicbrush/aurora_00000",
        "magicbrush/aurora_00001",
        "ag/aurora_00002",
        "ag/aurora_00004",
        "something/aurora_00005",
        "whatsup/aurora_00007",
        "kubric/aurora_00008",
    ]
    assert faults(contents) == [
        ("ag/aurora_00003", "test.json, entry 3: data/ag/images/W4MEA.mp4_0_right.png: no such file"),
        ("kubric/aurora_00009", "test.json, entry 9: no instruction"),
    ]
    assert contents.other_parts == {"clevr": 1}
    (step,) = contents.items[2].steps
    assert step.action == "change number 2"
    assert same(contents.items[2].start.load(), picture(4)) and same(step.target.load(), picture(5))
    with pytest.raises(Damaged, match=r"^data/ag/images/6ALEL.mp4_3_left.png: not to be decoded \("):
        contents.items[3].start.load()


def test_aurora_of_some_parts_counts_the_others(tmp_path):
    contents = read("aurora", RELEASES["aurora"](tmp_path), "suite.parts=[ag]")
    assert {item.part for item in contents.items} == {fault.part for fault in contents.faults} == {"ag"}
    assert contents.other_parts == {"magicbrush": 2, "something": 1, "clevr": 1, "whatsup": 1, "kubric": 2}


def test_bytemorph(tmp_path):
    contents = read("bytemorph", RELEASES["bytemorph"](tmp_path))
    assert keys(contents.items) == [
        "0_camera_zoom/0000",
        "3_human_motion/0001",
        "3_human_motion/0002",
        "something new/0003",
        "4_interaction/0006",
    ]
    shard = "test-00000-of-00001.parquet"
    assert faults(contents) == [
        ("4_interaction/0004", f"{shard}, row 4: no edit_prompt"),
        ("4_interaction/0005", f"{shard}, row 5: tgt_img has no bytes"),
        ("0_camera_zoom/0000", f"{shard}, row 7: a second row of this edit_type and image_id"),
    ]
    zoom, human, uncaptioned, _, broken = contents.items
    assert zoom.steps[0].action == "Turn it, 0" and zoom.steps[0].captions == ("a thing 0", "a turned thing 0")
    assert human.steps[0].action == "turn 1"
    assert uncaptioned.steps[0].captions is None
    assert same(zoom.start.load(), picture(0)) and same(zoom.steps[0].target.load(), picture(100))
    with pytest.raises(Damaged, match=r"^src_img: not to be decoded"):
        broken.start.load()


def test_worldprediction(tmp_path):
    contents = read("worldprediction", RELEASES["worldprediction"](tmp_path))
    assert keys(contents.items) == ["COIN/segment|COIN|a_000", "COIN/segment|COIN|b_000"]
    assert [what for _, what in faults(contents)] == [
        "metadata.json, segment|COIN|c_000: segment|COIN|c_000: no picture in frames/ or images/, and no file "
        "videos/COIN/c.mp4",
        "metadata.json, segment|COIN|b_000: ground_truth is 3, of 2 candidates",
        "metadata.json, segment|COIN|b_000: action_segments has no segment|COIN|b_001",
    ]
    stills, filmed = contents.items
    assert [step.action for step in stills.steps] == ["open the lid", "pour the tea", "close the lid"]
    assert same(stills.start.load(), picture(0)) and same(stills.steps[2].target.load(), picture(2))
    # At seconds 0.1 and 0.5: the second and the sixth frame.
    shown = [np.asarray(step.target.load()).mean() for step in filmed.steps]
    assert shown == pytest.approx([40, 120], abs=3)


def test_worldprediction_video_that_ends_too_soon(tmp_path):
    folder = RELEASES["worldprediction"](tmp_path)
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["COIN"]["plan-1"]["original_segments"][1] |= {"segment_start_time": 9.0, "segment_end_time": 11.0}
    (folder / "metadata.json").write_text(json.dumps(metadata["COIN"]))  # samples alone are read as well
    _, filmed = read("worldprediction", folder).items
    assert filmed.part == "COIN"
    with pytest.raises(Damaged, match=r"^videos/COIN/b.mp4: ends before second 10$"):
        filmed.steps[1].target.load()


def test_stabletoolbench(tmp_path):
    contents = read("stabletoolbench", RELEASES["stabletoolbench"](tmp_path))
    assert keys(contents.items) == [f"G1_instruction/{id}" for id in ("588-1", "588-2", "608-1", "608-2")]
    place = "data_example/model_predictions_converted/virtual_chatgpt_cot"
    no_queries = {"G1_category", "G2_instruction", "G2_category", "G3_instruction"}
    assert [fault for fault in faults(contents) if fault[0].split("/")[0] not in no_queries] == [
        ("G1_instruction/700", f"{place}/G1_instruction.json, query 700: no answer_details"),
        ("G1_instruction/1073", f"{place}/G1_instruction.json, query 1073: not in it"),
        ("G1_tool/1", f"{place}/G1_tool.json, query 1: no such file"),
        ("G1_tool/2", f"{place}/G1_tool.json, query 2: no such file"),
    ]
    assert {fault.part for fault in contents.faults if fault.id == "all"} == no_queries
    first, second, unparsed, beside = contents.items
    assert (
        first.start.startswith("query: tea?\ntool sites_for_web: Sites of a query. {") and "Finish" not in first.start
    )
    assert second.start == f'{first.start}\ncall: sites_for_web({{"q": "tea"}})\nresponse: {first.steps[0].target}'
    assert second.steps[0].action == 'words_for_web({"q": "tea"})'
    assert second.steps[0].target == '{"error": "", "response": "green"}'
    assert unparsed.steps[0].action == "sites_for_web(not json)"
    assert "call:" not in beside.start  # the call at its side did not come before


def test_stabletoolbench_without_tools_and_earlier_calls(tmp_path):
    folder = RELEASES["stabletoolbench"](tmp_path)
    contents = read("stabletoolbench", folder, "suite.tools=false", "suite.calls=0")
    assert {item.start for item in contents.items} == {"query: tea?", "query: both?"}


@pytest.mark.parametrize("name", SUITES)
def test_a_folder_of_something_else_is_one_line(name, tmp_path):
    with pytest.raises(ValueError, match=rf"^suite.folder={tmp_path}: no .* in it: give .* release") as error:
        read(name, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", '{"a": 1}'])
def test_an_index_that_is_no_list_is_one_line(text, tmp_path):
    (tmp_path / "test.json").write_text(text)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/test.json: (no JSON|a dict, not a list).*: fetch"):
        read("aurora", tmp_path)


def test_a_parquet_file_without_a_column_names_it(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "data").mkdir()
    parquet.write_table(pa.table({"edit_type": ["x"]}), tmp_path / "data" / "test-0.parquet")
    with pytest.raises(ValueError, match=r"test-0.parquet: has no column image_id: fetch the release's own file$"):
        read("bytemorph", tmp_path)
    (tmp_path / "data" / "test-0.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"test-0.parquet: no Parquet file \(.*\): fetch it again$"):
        read("bytemorph", tmp_path)


def test_suites_import_neither_nemo_nor_megatron():
    code = (
        "import sys, pkgutil, importlib, swirl_nemo.evaluation.suites as s\n"
        "for m in pkgutil.iter_modules(s.__path__): importlib.import_module(f'{s.__name__}.{m.name}')\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'nemo', 'nemo_aligner', 'megatron'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
