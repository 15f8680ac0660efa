"""Folders of a few made-up items in the exact layout of each public release, some of them missing or damaged."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet


def picture(seed: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Four flat fields of colour."""
    fields = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(fields).resize(size, Image.NEAREST)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def aurora(folder: Path) -> Path:
    """Six sound entries; ag has one without its output's file and one whose input is cut, kubric one without an
    instruction; clevr, which the paper does not report, has one too."""
    entries = []

    def add(task: str, source: str, target: str, **others) -> None:
        paths = {"input": f"data/{task}/images/{source}", "output": f"data/{task}/images/{target}"}
        for number, path in enumerate(paths.values()):
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(picture(2 * len(entries) + number)))
        entries.append({**paths, "instruction": f"change number {len(entries)}", "task": task} | others)

    add("magicbrush", "242679/242679-input.png", "242679/242679-output1.png")
    add("magicbrush", "242679/242679-output1.png", "242679/242679-output2.png")
    add("ag", "ZY2B1.mp4_27_left.png", "ZY2B1.mp4_27_right.png")
    add("ag", "W4MEA.mp4_0_left.png", "W4MEA.mp4_0_right.png")
    add("ag", "6ALEL.mp4_3_left.png", "6ALEL.mp4_3_right.png")
    add("something", "36/first.jpg", "36/last.jpg", id="36")
    add("clevr", "CLEVR_default_005422.png", "unused.png", id="005422")
    del entries[-1]["output"]
    add("whatsup", "pear_on_table.jpeg", "pear_under_table.jpeg", caption="A pear under a table")
    add("kubric", "location/1/image0.jpg", "location/1/image1.jpg")
    add("kubric", "location/2/image0.jpg", "location/2/image1.jpg")
    entries[-1]["instruction"] = ""
    (folder / entries[3]["output"]).unlink()
    cut = folder / entries[4]["input"]
    cut.write_bytes(cut.read_bytes()[:60])
    (folder / "test.json").write_text(json.dumps(entries, indent=2))
    return folder


def bytemorph(folder: Path) -> Path:
    """Three sound rows and one of a type that no list names; one row without a prompt, one without a target, one whose
    source is no picture, and one that is there twice."""

    def row(number: int, kind: str, **others) -> dict:
        stored = [{"bytes": encoded(picture(number + shift)), "path": f"{number}.png"} for shift in (0, 100)]
        texts = {"edit_prompt": f"turn {number}", "edit_prompt_rewrite_instruction": f"Turn it, {number}"}
        captions = {"src_img_caption": f"a thing {number}", "tgt_img_caption": f"a turned thing {number}"}
        images = {"src_img": stored[0], "tgt_img": stored[1]}
        return {"edit_type": kind, "image_id": f"{number:04d}", **images, **texts, **captions} | others

    rows = [
        row(0, "0_camera_zoom"),
        row(1, "3_human_motion", edit_prompt_rewrite_instruction=""),
        row(2, "3_human_motion", src_img_caption=None),
        row(3, "something new"),
        row(4, "4_interaction", edit_prompt_rewrite_instruction="", edit_prompt=""),
        row(5, "4_interaction", tgt_img=None),
        row(6, "4_interaction", src_img={"bytes": b"GIF8 and no more", "path": "6.png"}),
        row(0, "0_camera_zoom"),
    ]
    (folder / "data").mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), folder / "data" / "test-00000-of-00001.parquet")
    return folder


def worldprediction(folder: Path) -> Path:
    """A plan of three steps whose frames are pictures, one of two out of a video; one plan without a frame, one whose
    ground truth is no candidate, one that misses an action."""

    def sample(video: str, labels: list[str], truth: object = 2) -> dict:
        uids = [f"segment|COIN|{video}_{number:03d}" for number in range(len(labels))]
        segments = {
            uid: {
                "video": f"{video}.mp4",
                "segment_start_time": 0.4 * number,
                "segment_end_time": 0.4 * number + 0.2,
                "action_label": label,
            }
            for number, (uid, label) in enumerate(zip(uids, labels, strict=True))
        }
        return {
            "states": {"segment_uid": uids[0]},
            "ground_truth": truth,
            "candidates": [uids[::-1], uids],
            "action_segments": segments,
            "original_segments": [{"segment_uid": uid, **segment} for uid, segment in segments.items()],
        }

    coin = {"plan-0": sample("a", ["open the lid", "pour the tea", "close the lid"])}
    for number in range(3):
        name = ("segment_COIN_a_000.png", "segment/COIN/a_001.jpg", "segment|COIN|a_002.png")[number]
        (folder / "frames" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / "frames" / name)
    film(folder / "videos" / "COIN" / "b.mp4")
    coin["plan-1"] = sample("b", ["lift the box", "lower the box"], truth="2")
    coin["plan-2"] = sample("c", ["cut the paper", "fold the paper"])
    coin["plan-3"] = sample("b", ["lift the box"], truth=3)
    coin["plan-4"] = sample("b", ["lift the box", "lower the box"])
    del coin["plan-4"]["action_segments"]["segment|COIN|b_001"]
    (folder / "metadata.json").write_text(json.dumps({"COIN": coin}))
    return folder


def film(path: Path) -> None:
    """A second at 10 frames each, every frame grey and brighter than the one before by 20."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * number + 20, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def stabletoolbench(folder: Path) -> Path:
    """G1_instruction: a query of two calls one after the other, one of two side by side, one without an answer, one
    whose answer is damaged. G1_tool: no recorded answers at all, for two queries."""

    def node(role: str, message: object, *following: dict) -> dict:
        return {"role": role, "message": message, "next": list(following)}

    def call(name: str, arguments: str, response: str, *following: dict) -> dict:
        return node("tool", {"name": name, "arguments": arguments, "response": response}, *following)

    def answer(query: str, *calls: dict) -> dict:
        parameters = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"], "optional": []}
        tools = [
            {"name": "sites_for_web", "description": "Sites of a query.", "parameters": parameters},
            {"name": "Finish", "description": "Ends.", "parameters": parameters},
        ]
        details = [node("system", "", node("user", "", *calls))]
        method = {"method": "CoT@1", "total_steps": 4, "final_answer": "", "answer_details": details}
        return {"query": query, "available_tools": tools, "answer": method}

    finish = call("Finish", '{"return_type": "give_answer"}', "")
    second = call("words_for_web", '{"q": "tea"}', '{"error": "", "response": "green"}', node("assistant", "", finish))
    answers = {
        "588": answer("tea?", call("sites_for_web", '{\n"q": "tea"\n}', '{"error": "", "response": "a.org"}', second)),
        "608": answer(
            "both?",
            call("sites_for_web", "not json", '{"error": "parse", "response": ""}'),
            call("words_for_web", '{"q": "x"}', '{"error": "", "response": "y"}'),
        ),
        "700": {"query": "broken?", "available_tools": [], "answer": {"method": "CoT@1"}},
    }
    ids = folder / "solvable_queries" / "test_query_ids"
    ids.mkdir(parents=True)
    (ids / "G1_instruction.json").write_text(json.dumps(dict.fromkeys(["588", "608", "700", "1073"], 0)))
    (ids / "G1_tool.json").write_text(json.dumps(dict.fromkeys(["1", "2"], 0)))
    converted = folder / "data_example" / "model_predictions_converted" / "virtual_chatgpt_cot"
    converted.mkdir(parents=True)
    (converted / "G1_instruction.json").write_text(json.dumps(answers))
    return folder


RELEASES = {
    "aurora": aurora,
    "bytemorph": bytemorph,
    "worldprediction": worldprediction,
    "stabletoolbench": stabletoolbench,
}
