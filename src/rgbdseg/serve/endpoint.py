"""The HTTP endpoint for machines, described by OpenAPI: ``/api/segment``, ``/api/models``, ``/api/docs``."""

from __future__ import annotations

import base64
import contextlib
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

import rgbdseg
from rgbdseg.png import encode_png
from rgbdseg.segmenter import Segmenter
from rgbdseg.serve.answers import Answer, answer
from rgbdseg.serve.frames import AUTOMATIC_UNIT, Limits, RequestError, Upload, read_frame
from rgbdseg.serve.openapi_page import openapi_page
from rgbdseg.serve.shelf import ModelShelf

Kind = Literal["json", "label", "overlay", "confidence", "zip"]
_STATUS = {"too-large": 413, "busy": 503, "model": 404}
_FORM_OVERHEAD_BYTES = 1_000_000
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class ModelInfo(BaseModel):
    """One model that can be asked for."""

    name: str
    note: str
    default: bool


class ModelDetails(ModelInfo):
    """What a model looks at and tells apart."""

    inputs: list[str] = Field(description="rasters that it looks at")
    needs_depth: bool
    needs_camera: bool
    names: list[str] = Field(description="of the classes, by index")
    palette: list[list[int]] = Field(description="red, green and blue of 0 to 255 for each class")


class ClassShare(BaseModel):
    """One class that was found."""

    index: int
    name: str
    color: list[int]
    share: float = Field(description="of the pixels, 0 to 1")


class Segmentation(BaseModel):
    """The answer as JSON."""

    model: str
    height: int
    width: int
    mean_confidence: float = Field(description="0 to 1")
    classes: list[ClassShare] = Field(description="the largest first")
    notes: list[str] = Field(description="what was assumed")
    label_png: str = Field(description="base64 of an 8-bit PNG of class indices")


class Problem(BaseModel):
    """Why there is no answer."""

    kind: str = Field(description="a short word for programs, such as depth-size")
    message: str = Field(description="what was got, what is expected, and the remedy")


_MODEL_RESPONSES: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "there is no such model"},
    422: {"model": Problem, "description": "the model cannot be opened"},
}
_SEGMENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "by output: JSON; a PNG of class indices (label), of colors over the image (overlay) or "
        "of 16 bits (confidence, 65535 is 1); or all there is (zip)",
        "content": {"image/png": {}, "application/zip": {}},
    },
    404: {"model": Problem, "description": "there is no such model"},
    413: {"model": Problem, "description": "too many bytes or pixels"},
    422: {"model": Problem, "description": "the files cannot be used; kind says why"},
    503: {"model": Problem, "description": "too many others are waiting"},
}


def make_endpoint(shelf: ModelShelf, limits: Limits) -> FastAPI:
    """Return the application with the endpoint alone; the page is mounted on it.

    Args:
        shelf: models to choose from.
        limits: of what is sent.
    """
    app = FastAPI(
        title="rgbdseg",
        version=rgbdseg.__version__,
        description="Semantic segmentation of RGB-D frames: send a color image and a depth map, get labels.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.add_middleware(LimitedBody, limit_bytes=int(2 * limits.megabytes * 1e6) + _FORM_OVERHEAD_BYTES)
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(HTTPException, _not_http)

    @app.get("/api/docs", response_class=HTMLResponse, include_in_schema=False)
    def documentation() -> str:
        return openapi_page(app.openapi())

    _add_models(app, shelf)
    _add_segment(app, shelf, limits)
    return app


def _add_models(app: FastAPI, shelf: ModelShelf) -> None:
    """Add what lists and describes the models."""

    @app.get("/api/models", summary="List the models", response_description="all of them")
    def models() -> list[ModelInfo]:
        return [
            ModelInfo(name=one.name, note=one.note, default=one.name == shelf.default) for one in shelf.entries.values()
        ]

    @app.get(
        "/api/models/{name:path}",
        summary="Say what a model looks at and tells apart",
        response_description="the model",
        responses=_MODEL_RESPONSES,
    )
    def model(name: str) -> ModelDetails:
        return _details(name, shelf.get(name), shelf)


def _add_segment(app: FastAPI, shelf: ModelShelf, limits: Limits) -> None:
    """Add what labels a frame."""

    @app.post("/api/segment", summary="Label one frame", response_model=Segmentation, responses=_SEGMENT_RESPONSES)
    def segment(
        *,
        color: Annotated[UploadFile, File(description="an 8-bit image: PNG, JPEG, ..")],
        depth: Annotated[
            UploadFile | None, File(description="z-depth of the same pixels: an image of 16 bits or .npy; 0 = none")
        ] = None,
        camera: Annotated[str, Form(description="fx, fy, cx, cy in pixels counted from 0; or a 3x3 matrix")] = "",
        depth_unit: Annotated[
            str, Form(description="m, cm, mm or meters per stored unit; automatic: mm for whole numbers, else m")
        ] = AUTOMATIC_UNIT,
        model: Annotated[str, Form(description="a name of /api/models; empty for the default")] = "",
        output: Annotated[Kind, Form(description="what is returned")] = "json",
    ) -> Any:
        with _stored(color, depth) as (color_file, depth_file):
            sample = read_frame(color_file, depth_file, camera, depth_unit, limits)
        return _rendered(answer(shelf, model, sample), output)


class LimitedBody:
    """Refuses bodies that are too large, before they are read to the end; what is uploaded for the page has its own.

    Args:
        app: what comes next.
        limit_bytes: of a body.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], limit_bytes: int) -> None:
        self.app = app
        self.limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not scope["path"].startswith("/api/"):
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope.get("headers", [])}
        length = headers.get(b"content-length", b"0")
        seen, started = 0, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit_bytes:
                raise _TooLargeError
            return message

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if seen <= self.limit_bytes:  # else the application tells of an error in reading
                started = True
                await send(message)

        if length.isdigit() and int(length) > self.limit_bytes:
            await self._refuse(scope, receive, send)
            return
        with contextlib.suppress(_TooLargeError):
            await self.app(scope, counted, watched)
        if seen > self.limit_bytes and not started:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = Problem(kind="too-large", message=f"at most {self.limit_bytes / 1e6:.0f} MB are taken in one request")
        await JSONResponse(problem.model_dump(), 413)(scope, receive, send)


class _TooLargeError(Exception):
    """Ends the reading of a body without a length that is too large."""


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    problem = Problem(kind=error.kind, message=str(error))
    headers = {"Retry-After": "30"} if error.kind == "busy" else None
    return JSONResponse(problem.model_dump(), _STATUS.get(error.kind, 422), headers=headers)


def _not_understood(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = str(first["loc"][-1])
    kind, message = "form", f"{field}: {first['msg']}"
    if field == "color":
        kind, message = "color-missing", "there is no color image; send a file as form field 'color'"
    return JSONResponse(Problem(kind=kind, message=message).model_dump(), 422)


def _not_http(request: Request, error: Exception) -> Response:
    """Word what the framework itself refuses: unknown addresses, bodies that are no form."""
    assert isinstance(error, HTTPException)
    problem = Problem(kind="http", message=str(error.detail))
    return JSONResponse(problem.model_dump(), error.status_code, headers=error.headers)


def _details(name: str, segmenter: Segmenter, shelf: ModelShelf) -> ModelDetails:
    spec = segmenter.input_spec
    return ModelDetails(
        name=name,
        note=shelf.entries[name].note,
        default=name == shelf.default,
        inputs=list(spec.rasters),
        needs_depth=spec.needs_depth,
        needs_camera=spec.asks_for_camera,
        names=list(segmenter.names),
        palette=[list(color) for color in segmenter.label_set.palette],
    )


@contextlib.contextmanager
def _stored(*files: UploadFile | None) -> Iterator[tuple[Upload | None, ...]]:
    """Put what was sent into files of its kind, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="rgbdseg-") as folder:
        stored: list[Upload | None] = []
        for index, file in enumerate(files):
            if file is None:
                stored.append(None)
                continue
            name = Path(file.filename or "").name or f"file {index + 1}"
            path = Path(folder) / f"{index}{_plain(Path(name).suffix.lower()[:8])}"
            path.write_bytes(file.file.read())
            stored.append(Upload(path, name))
        yield tuple(stored)


def _rendered(found: Answer, output: Kind) -> Response:
    if output == "json":
        label_png = base64.b64encode(encode_png(found.frame.labels)).decode()
        return JSONResponse({**found.to_dict(), "label_png": label_png})
    if output == "zip":
        name = f'attachment; filename="{_plain(found.frame.sample.sample_id)}.zip"'
        return Response(found.archive(), media_type="application/zip", headers={"Content-Disposition": name})
    images: dict[str, Callable[[], NDArray[Any]]] = {
        "label": lambda: found.frame.labels,
        "overlay": found.overlay,
        "confidence": lambda: np.rint(65535 * found.frame.confidence).astype(np.uint16),
    }
    return Response(encode_png(images[output]()), media_type="image/png")


def _plain(name: str) -> str:
    """Return a name that stands in a header."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "_" for letter in name)
