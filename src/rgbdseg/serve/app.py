"""The page and the endpoint as one application."""

from __future__ import annotations

import gradio
from fastapi import FastAPI

from rgbdseg.serve.endpoint import make_endpoint
from rgbdseg.serve.frames import Limits
from rgbdseg.serve.page import CSS, make_page
from rgbdseg.serve.shelf import ModelShelf


def make_app(shelf: ModelShelf, limits: Limits, *, page: bool = True) -> FastAPI:
    """Return the application.

    Args:
        shelf: models to choose from.
        limits: of what is sent.
        page: with the page for people at ``/``; otherwise with the endpoint alone.
    """
    app = make_endpoint(shelf, limits)
    if not page:
        return app
    return gradio.mount_gradio_app(
        app,
        make_page(shelf, limits),
        path="/",
        max_file_size=int(limits.megabytes * 1e6),
        footer_links=[],
        css=CSS,
        show_error=False,
        ssr_mode=False,
    )
