from __future__ import annotations

import base64
import io
import json
import struct
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

fastapi = pytest.importorskip("fastapi")
pytest.importorskip("multipart")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient  # noqa: E402

from rgbdseg.serve.answers import answer, legend_style, points_as_glb  # noqa: E402
from rgbdseg.serve.endpoint import make_endpoint  # noqa: E402
from rgbdseg.serve.frames import Limits, Upload, read_frame  # noqa: E402
from tests.export.networks import ABC  # noqa: E402
from tests.serve.shelves import SIZE, camera_text, make_shelf, segmenter, write_room  # noqa: E402


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with TestClient(make_endpoint(make_shelf(), Limits(megabytes=0.5, megapixels=0.1))) as opened:
        yield opened


def sent(folder: Path, *names: str) -> dict[str, Any]:
    files = dict(zip(("color", "depth"), write_room(folder), strict=True))
    return {name: (f"my {name}.png", files[name].read_bytes()) for name in names}


def as_image(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_frame_is_labeled_as_by_the_model(client: Any, tmp_path: Path) -> None:
    files = sent(tmp_path, "color", "depth")
    found = client.post("/api/segment", files=files, data={"camera": camera_text()})
    assert found.status_code == 200, found.text
    color, depth = (np.asarray(Image.open(path)) for path in write_room(tmp_path))
    wanted = segmenter("depth")(color, depth, depth_unit="mm")
    said = found.json()
    assert np.array_equal(as_image(base64.b64decode(said["label_png"])), wanted.labels)
    assert (said["model"], said["height"], said["width"]) == ("depth", *SIZE)
    assert {one["name"]: one["share"] for one in said["classes"]} == pytest.approx(wanted.shares, abs=1e-6)
    assert said["classes"][0]["color"] == list(ABC.palette[ABC.classes.index(said["classes"][0]["name"])])
    assert said["mean_confidence"] == pytest.approx(float(wanted.confidence.mean()), abs=1e-3)
    images = {}
    for output in ("label", "overlay", "confidence"):
        answered = client.post("/api/segment", files=files, data={"output": output})
        assert answered.headers["content-type"] == "image/png"
        images[output] = as_image(answered.content)
    assert np.array_equal(images["label"], wanted.labels)
    assert np.array_equal(images["overlay"], wanted.overlay())
    assert np.abs(images["confidence"] / 65535 - wanted.confidence).max() < 1e-4


def test_all_there_is_in_one_archive(client: Any, tmp_path: Path) -> None:
    found = client.post("/api/segment", files=sent(tmp_path, "color", "depth"), data={"output": "zip"})
    with zipfile.ZipFile(io.BytesIO(found.content)) as archive:
        names = {name.removeprefix("my color") for name in archive.namelist()}
        assert names == {
            "_label.png", "_color.png", "_overlay.png", "_confidence.png", "_shares.csv", ".json", "_cloud.ply",
        }  # fmt: skip
        facts = json.loads(archive.read("my color.json"))
        assert archive.read("my color_cloud.ply").startswith(b"ply\n")
    assert facts["names"] == list(ABC.classes)
    assert any("63 degrees" in note for note in facts["notes"])
    assert 'filename="my_color.zip"' in found.headers["content-disposition"]


def test_models_and_what_they_look_at(client: Any) -> None:
    listed = client.get("/api/models").json()
    assert [one["name"] for one in listed] == ["depth", "optional", "camera", "absent"]
    assert [one["default"] for one in listed] == [True, False, False, False]
    details = client.get("/api/models/depth").json()
    assert (details["needs_depth"], details["needs_camera"], details["names"]) == (True, False, ["a", "b", "c"])
    assert client.get("/api/models/x").status_code == 404


@pytest.mark.parametrize(
    ("names", "form", "status", "kind"),
    [
        ((), {}, 422, "color-missing"),
        (("color",), {}, 422, "depth-missing"),
        (("color",), {"model": "camera"}, 422, "camera-missing"),
        (("color",), {"model": "x"}, 404, "model"),
        (("color",), {"model": "optional", "camera": "1,2"}, 422, "camera"),
        (("color", "depth"), {"camera": "5000,5000,2000,1000"}, 422, "camera"),
        (("color", "depth"), {"depth_unit": "inch"}, 422, "depth-unit"),
        (("color", "depth"), {"output": "gif"}, 422, "form"),
    ],
)
def test_refusals_say_why(
    client: Any, tmp_path: Path, names: tuple[str, ...], form: dict[str, str], status: int, kind: str
) -> None:
    found = client.post("/api/segment", files=sent(tmp_path, *names) or {"other": b"x"}, data=form)
    assert (found.status_code, found.json()["kind"]) == (status, kind)
    assert set(found.json()) == {"kind", "message"}


def test_bodies_that_are_too_large_are_not_read_to_the_end(client: Any) -> None:
    found = client.post("/api/segment", files={"color": ("big.png", bytes(600_000))})
    assert (found.status_code, found.json()["message"]) == (413, "big.png has 0.6 MB; at most 0.5 MB are taken")
    found = client.post("/api/segment", files={"color": ("big.png", bytes(3_000_000))})
    assert (found.status_code, found.json()["message"]) == (413, "at most 2 MB are taken in one request")

    taken = 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken
        yield b'--x\r\nContent-Disposition: form-data; name="color"; filename="a"\r\n\r\n'
        for _ in range(40):
            taken += 1
            yield bytes(100_000)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    found = client.post("/api/segment", content=pieces(), headers=headers)
    assert (found.status_code, found.json()["kind"]) == (413, "too-large")


def test_the_description_and_its_page(client: Any) -> None:
    described = client.get("/api/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    assert set(described["paths"]) == {"/api/models", "/api/models/{name}", "/api/segment"}
    page = client.get("/api/docs").text
    for word in ("/api/segment", "depth_unit", "16 bits", "413", "label_png", "json | label | overlay"):
        assert word in page
    assert "//" not in page.replace("http://", "")  # nothing comes from another server
    assert client.get("/api/nothing").json()["kind"] == "http"


def test_several_at_once_get_their_own(client: Any, tmp_path: Path) -> None:
    color = np.asarray(Image.open(write_room(tmp_path)[0]))
    pictures = [np.ascontiguousarray(np.roll(color, 5 * index, axis=1)) for index in range(6)]
    found: list[Any] = [None] * len(pictures)

    def ask(index: int) -> None:
        buffer = io.BytesIO()
        Image.fromarray(pictures[index]).save(buffer, format="PNG")
        files = {"color": (f"{index}.png", buffer.getvalue())}
        answered = client.post("/api/segment", files=files, data={"model": "optional", "output": "label"})
        found[index] = as_image(answered.content)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    model = segmenter("optional")
    for image, labels in zip(pictures, found, strict=True):
        assert np.array_equal(labels, model(image).labels)


# --- pictures


def test_classes_that_are_off_show_the_image(tmp_path: Path) -> None:
    color, depth = write_room(tmp_path)
    found = answer(make_shelf(), "depth", read_frame(Upload(color, "c.png"), Upload(depth, "d.png")))
    labels, image = found.frame.labels, np.asarray(Image.open(color))
    half = found.overlay(1.0, ["b"])
    assert np.array_equal(half[labels != 1], image[labels != 1])
    assert np.all(half[labels == 1] == ABC.palette[1])
    assert 0 < (labels == 1).mean() < 1
    cloud, limited = found.cloud(["b"]), found.cloud(None, 100)
    assert cloud is not None
    assert limited is not None
    assert len(cloud[0]) == SIZE[0] * SIZE[1]
    assert np.all(cloud[1][cloud[2] == 1] == ABC.palette[1])
    assert np.array_equal(cloud[1][cloud[2] != 1], image.reshape(-1, 3)[labels.ravel() != 1])
    assert 50 < len(limited[0]) <= 100


def test_points_as_gltf() -> None:
    xyz = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 4.0]], np.float32)
    content = points_as_glb(xyz, np.array([[255, 0, 188], [0, 10, 255]], np.uint8))
    magic, version, length, head_length = struct.unpack("<4I", content[:16])
    assert (magic, version, length, len(content) % 4) == (0x46546C67, 2, len(content), 0)
    head = json.loads(content[20 : 20 + head_length])
    body = content[20 + head_length + 8 :]
    assert head["meshes"][0]["primitives"][0]["mode"] == 0
    assert np.frombuffer(body[:24], "<f4").reshape(2, 3).tolist() == [[1, -2, -3], [-1, -0.5, -4]]
    # 188 of sRGB is half of the light.
    assert np.frombuffer(body[24:], np.uint8).reshape(2, 4)[0].tolist() == [255, 0, 128, 255]
    assert head["accessors"][0]["max"] == [1, -0.5, -3]
    assert head["buffers"][0]["byteLength"] == len(body)


def test_patches_of_the_legend() -> None:
    style = legend_style(["a", "b"], [(1, 2, 3), (4, 5, 6)], "x")
    assert "#x .wrap label:nth-of-type(2) span::before { background: rgb(4,5,6) }" in style


# --- the page


def test_the_page_answers_with_all_it_shows(tmp_path: Path) -> None:
    gradio = pytest.importorskip("gradio")
    from rgbdseg.serve.page import Asked, FileStore, _label, make_page  # noqa: PLC0415

    color, depth = write_room(tmp_path)
    shelf, store = make_shelf(), FileStore()
    page = make_page(shelf, Limits())
    assert isinstance(page, gradio.Blocks)
    asked = Asked(str(color), str(depth), camera_text(), "mm", "depth", 1.0)
    slider, confidence, style, legend, download, message, found = _label(shelf, Limits(), asked)
    assert np.array_equal(slider[1], found.frame.colors())
    assert confidence.shape == (*SIZE, 3)
    assert style.count("background") == len(legend.choices) == len(found.frame.shares)
    assert legend.value == list(found.frame.shares)
    assert "depth: " in message
    assert download.interactive
    assert not list(Path(store._folder.name).iterdir())  # packed for those who ask for it
    archive = Path(store.archive(found))
    assert archive.name == "color.zip"
    assert "color_label.png" in zipfile.ZipFile(archive).namelist()
    cloud = store.cloud(found, ["a"])
    assert cloud is not None
    assert Path(cloud).read_bytes().startswith(b"glTF")
    assert store.cloud(found, ["a"]) != cloud  # nobody guesses it


def test_page_and_endpoint_together() -> None:
    pytest.importorskip("gradio")
    from rgbdseg.serve.app import make_app  # noqa: PLC0415

    with TestClient(make_app(make_shelf(), Limits())) as opened:
        assert "gradio" in opened.get("/").text
        assert opened.get("/api/models").json()[0]["name"] == "depth"
        assert opened.get("/api/docs").status_code == 200
