"""The web page for people, made with gradio."""

from __future__ import annotations

import dataclasses
import html
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio
from PIL import Image

from rgbdseg.depth import METERS_PER_UNIT
from rgbdseg.serve.answers import Answer, answer, legend_style
from rgbdseg.serve.frames import (
    AUTOMATIC_UNIT,
    Limits,
    RequestError,
    Upload,
    parse_camera,
    read_frame,
    read_stored_depth,
)
from rgbdseg.serve.shelf import ModelShelf
from rgbdseg.visualize import depth_image, picture

KEPT_S = 3600
_WAITING = 30
_LEGEND = "legend"
INTRODUCTION = """# rgbdseg
Drop a color image and, if you have it, a depth map of the same pixels. What you send is removed within an hour or so.
For programs: [HTTP endpoint](/api/docs).
"""
CSS = """
.gradio-container { max-width: 1400px !important; margin: auto }
#message { min-height: 1.6rem }
#message .problem { background: #fdecea; color: #8a1c12; border-left: 4px solid #c0392b; padding: .6rem 1rem;
  border-radius: 4px }
#message .said { color: var(--body-text-color) }
#patches { display: none }
#legend .wrap label span::before { content: ''; display: inline-block; width: 14px; height: 14px; border-radius: 3px;
  margin-right: 8px; vertical-align: -2px; border: 1px solid rgba(0, 0, 0, .25) }
#model input, #unit input { padding-right: 2.2rem; text-overflow: ellipsis }
"""
_CLICK_ARCHIVE = "() => { document.querySelector('#archive').click() }"


def make_page(shelf: ModelShelf, limits: Limits) -> gradio.Blocks:
    """Return the page; all that belongs to a visitor is in the state of the visitor's session.

    Args:
        shelf: models to choose from.
        limits: of what is sent.
    """
    store = FileStore()
    with gradio.Blocks(title="rgbdseg", analytics_enabled=False, delete_cache=(600, KEPT_S)) as page:
        gradio.Markdown(INTRODUCTION)
        found = gradio.State(None, time_to_live=KEPT_S)
        in_cloud_tab = gradio.State(False)
        with gradio.Row():
            with gradio.Column(scale=2, min_width=320):
                sent = _Sent(shelf)
            with gradio.Column(scale=4, min_width=480):
                shown = _Shown()
        _connect(sent, shown, found, in_cloud_tab, shelf=shelf, limits=limits, store=store)
    page.queue(max_size=_WAITING)
    return page


class _Sent:
    """What a visitor puts in."""

    def __init__(self, shelf: ModelShelf) -> None:
        self.color = gradio.File(label="Color: PNG, JPEG, ..", elem_id="color", height=130)
        self.depth = gradio.File(label="Depth: 16-bit PNG, TIFF or .npy (optional)", elem_id="depth", height=130)
        with gradio.Row():
            self.camera = gradio.Textbox(
                label="Camera: fx, fy, cx, cy in pixels (optional)",
                placeholder="525, 525, 319.5, 239.5",
                elem_id="camera",
                scale=3,
            )
            self.camera_file = gradio.UploadButton(
                "From file", file_types=[".txt", ".json"], scale=1, min_width=110, size="sm"
            )
        self.unit = gradio.Dropdown(
            [AUTOMATIC_UNIT, *METERS_PER_UNIT],
            value=AUTOMATIC_UNIT,
            label="Unit of depth: m, cm, mm or meters per stored unit",
            allow_custom_value=True,
            elem_id="unit",
        )
        self.model = gradio.Dropdown(
            [(f"{one.name} ({one.note})", one.name) for one in shelf.entries.values()],
            value=shelf.default,
            label="Model",
            elem_id="model",
        )
        self.button = gradio.Button("Label", variant="primary", elem_id="go")
        self.message = gradio.HTML(elem_id="message")
        self.preview = gradio.Gallery(
            label="What was sent",
            columns=2,
            height=190,
            show_label=False,
            object_fit="contain",
            visible=False,
            buttons=[],
        )


class _Shown:
    """What a visitor gets."""

    def __init__(self) -> None:
        with gradio.Tab("Overlay") as self.overlay_tab:
            self.slider = gradio.ImageSlider(label="image | labels", elem_id="overlay", format="png", max_height=620)
            self.alpha = gradio.Slider(0, 1, value=0.6, step=0.05, label="Strength of the labels", elem_id="alpha")
        with gradio.Tab("Confidence") as self.confidence_tab:
            self.confidence = gradio.Image(
                label="dark: unsure, bright: sure",
                elem_id="confidence",
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
                height=560,
            )
        with gradio.Tab("Point cloud") as self.cloud_tab:
            self.cloud = gradio.Model3D(
                label="drag to turn, wheel to zoom", elem_id="cloud", clear_color=(0.09, 0.1, 0.12, 1.0), height=560
            )
        self.patches = gradio.HTML(elem_id="patches")
        self.legend = gradio.CheckboxGroup(
            [], label="Classes: share of the pixels", elem_id=_LEGEND, show_select_all=True
        )
        self.download = gradio.Button("Download all", interactive=False, elem_id="download")
        self.archive = gradio.DownloadButton("Archive", elem_id="archive", visible="hidden")


_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_AT_WORK: dict[str, Any] = {"concurrency_limit": 2, "show_progress": "minimal", "api_visibility": "private"}


def _connect(
    sent: _Sent,
    shown: _Shown,
    found: gradio.State,
    in_cloud_tab: gradio.State,
    *,
    shelf: ModelShelf,
    limits: Limits,
    store: FileStore,
) -> None:
    """Say what happens when."""

    def label(*given: Any) -> list[Any]:
        try:
            return _label(shelf, limits, Asked(*given))
        except RequestError as error:
            nothing = [gradio.CheckboxGroup(choices=[], value=[]), gradio.Button(interactive=False)]
            return [None, None, "", *nothing, _problem(error), None]

    labeled = sent.button.click(
        label,
        [sent.color, sent.depth, sent.camera, sent.unit, sent.model, shown.alpha],
        [shown.slider, shown.confidence, shown.patches, shown.legend, shown.download, sent.message, found],
        **_AT_WORK,
    )
    gradio.on(
        [sent.color.change, sent.depth.change],
        lambda color, depth: _preview(color, depth, limits),
        [sent.color, sent.depth],
        [sent.preview, sent.message],
        **_QUIET,
    )
    gradio.on(
        [shown.alpha.release, shown.legend.change],
        lambda answer, alpha, names: None if answer is None else _slider(answer, alpha, names),
        [found, shown.alpha, shown.legend],
        [shown.slider],
        concurrency_limit=4,
        trigger_mode="always_last",
        **_QUIET,
    )
    _connect_cloud(labeled, shown, found, in_cloud_tab, store)
    _connect_download(shown, found, store)
    sent.camera_file.upload(_camera_text, [sent.camera_file], [sent.camera, sent.message], **_QUIET)


def _connect_cloud(
    labeled: gradio.events.Dependency,
    shown: _Shown,
    found: gradio.State,
    in_cloud_tab: gradio.State,
    store: FileStore,
) -> None:
    """Show the point cloud in its tab alone: browsers draw a cloud without rest."""

    def cloud(answer: Answer | None, names: Sequence[str], visible: bool) -> str | None:
        return store.cloud(answer, names) if visible and answer is not None else None

    looked_at = [found, shown.legend, in_cloud_tab]
    labeled.then(cloud, looked_at, [shown.cloud], **_QUIET)
    shown.legend.change(cloud, looked_at, [shown.cloud], trigger_mode="always_last", **_QUIET)
    for tab, is_cloud in ((shown.overlay_tab, False), (shown.confidence_tab, False), (shown.cloud_tab, True)):
        tab.select(lambda is_cloud=is_cloud: is_cloud, None, [in_cloud_tab], **_QUIET).then(
            cloud, looked_at, [shown.cloud], **_QUIET
        )


def _connect_download(shown: _Shown, found: gradio.State, store: FileStore) -> None:
    """Pack an answer for those who ask for it; the browser then takes it by a click of its own."""

    def archive(answer: Answer | None) -> str:
        if answer is None:
            raise gradio.Error("This answer is more than an hour old; press Label again.")
        return store.archive(answer)

    shown.download.click(archive, [found], [shown.archive], **_AT_WORK).success(
        None, None, None, js=_CLICK_ARCHIVE, **_QUIET
    )


class FileStore:
    """Files that pages offer, each in a folder whose name cannot be guessed; removed after an hour."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rgbdseg-page-")

    def new(self, name: str) -> Path:
        """Return a path in a folder of its own, and remove what is old."""
        root = Path(self._folder.name)
        for old in root.iterdir():
            if time.time() - old.stat().st_mtime > KEPT_S:
                for file in old.iterdir():
                    file.unlink(missing_ok=True)
                old.rmdir()
        path = root / uuid.uuid4().hex / name
        path.parent.mkdir()
        return path

    def archive(self, found: Answer) -> str:
        """Write the archive of an answer; return its path."""
        path = self.new(f"{found.frame.sample.sample_id}.zip")
        path.write_bytes(found.archive())
        return str(path)

    def cloud(self, found: Answer, names: Sequence[str]) -> str | None:
        """Write the point cloud of an answer; return its path, None without depth."""
        path = found.save_glb(self.new("cloud.glb"), names)
        return None if path is None else str(path)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a visitor has put into the page, in the order of its fields."""

    color: str | None
    depth: str | None
    camera: str
    unit: str
    model: str
    alpha: float


def _label(
    shelf: ModelShelf,
    limits: Limits,
    asked: Asked,
) -> list[Any]:
    sample = read_frame(_upload(asked.color), _upload(asked.depth), asked.camera, asked.unit, limits)
    start = time.monotonic()
    found = answer(shelf, asked.model, sample)
    seconds = time.monotonic() - start
    shares = found.frame.shares
    names = list(shares)
    palette = [found.frame.palette[found.frame.names.index(name)] for name in names]
    legend = gradio.CheckboxGroup(
        choices=[(f"{name}  {_percent(share)}", name) for name, share in shares.items()], value=names
    )
    size = "x".join(map(str, found.frame.labels.shape))
    said = (
        f"{found.model}: {len(names)} classes in {size} pixels, mean confidence {found.mean_confidence:.0%}, "
        f"{seconds:.1f} s. {' '.join(found.notes)}"
    )
    return [
        _slider(found, asked.alpha, names),
        found.confidence(),
        legend_style(names, palette, _LEGEND),
        legend,
        gradio.Button(interactive=True),
        f'<div class="said" role="status">{html.escape(said)}</div>',
        found,
    ]


def _slider(found: Answer, alpha: float, names: Sequence[str]) -> tuple[Any, Any]:
    return picture(found.frame.sample.rgb), found.overlay(alpha, names)


def _preview(color: str | None, depth: str | None, limits: Limits) -> tuple[Any, str]:
    """Show what was sent as far as it can be read; what cannot is said when it is labeled, or at once."""
    pictures: list[tuple[Any, str]] = []
    problem = ""
    if color:
        try:
            sample = read_frame(_upload(color), limits=limits)
            pictures.append((_small(Image.fromarray(picture(sample.rgb))), "color"))
        except RequestError as error:
            problem = _problem(error)
    if depth and not problem:
        try:
            values = read_stored_depth(Upload(Path(depth), Path(depth).name), limits)
            pictures.append((_small(Image.fromarray(depth_image(values))), "depth"))
        except RequestError as error:
            problem = _problem(error)
    return gradio.Gallery(value=pictures, visible=bool(pictures)), problem


def _small(image: Image.Image) -> Image.Image:
    image.thumbnail((360, 360))
    return image


def _camera_text(file: str | None) -> tuple[str, str]:
    if not file:
        return "", ""
    try:
        with open(file, encoding="utf-8") as opened:
            camera = parse_camera(opened.read(10_000))
    except (RequestError, UnicodeDecodeError):
        name = html.escape(Path(file).name)
        return "", _problem(RequestError("camera", f"{name} holds no camera; expected fx, fy, cx, cy or a 3x3 matrix"))
    return "" if camera is None else ", ".join(f"{value:g}" for value in camera.as_tuple()), ""


def _upload(path: str | None) -> Upload | None:
    return None if path is None else Upload(Path(path), Path(path).name)


def _problem(error: RequestError) -> str:
    return f'<div class="problem" role="alert" data-kind="{error.kind}">{html.escape(str(error))}</div>'


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "< 0.1 %"
