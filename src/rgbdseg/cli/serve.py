"""``rgbdseg serve``: models behind a web page for people and an HTTP endpoint for machines."""

from __future__ import annotations

from rgbdseg.cli.common import Parser, say
from rgbdseg.errors import UsageError


def run(arguments: list[str]) -> int:
    """Run the command."""
    options = _parser().parse_args(arguments)
    if not 0 < options.port < 65536:
        raise UsageError(f"--port is {options.port}; expected 1 to 65535")
    for name in ("max_megabytes", "max_megapixels"):
        if not getattr(options, name) > 0:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(options, name)}; expected a positive number")
    _require(*(("fastapi", "uvicorn") if options.no_page else ("gradio", "fastapi", "uvicorn")))
    import uvicorn

    from rgbdseg.device import choose_device
    from rgbdseg.serve.frames import Limits
    from rgbdseg.serve.shelf import ModelShelf, shelf_entries

    choose_device(options.device)
    shelf = ModelShelf(shelf_entries(options.models, zoo=options.zoo), device=options.device)
    shelf.get()  # what cannot be opened is said here, not to the first visitor
    limits = Limits(options.max_megabytes, options.max_megapixels)
    if options.no_page:
        from rgbdseg.serve.endpoint import make_endpoint

        app = make_endpoint(shelf, limits)
    else:
        from rgbdseg.serve.app import make_app

        app = make_app(shelf, limits)
    place = f"http://{'127.0.0.1' if options.host == '0.0.0.0' else options.host}:{options.port}"
    say(f"models: {', '.join(shelf.entries)}")
    say(f"{'' if options.no_page else f'page: {place}   '}endpoint: {place}/api/docs   (Ctrl-C ends)")
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")
    return 0


def _require(*names: str) -> None:
    for name in names:
        try:
            __import__(name)
        except ImportError as error:
            raise UsageError(f"{name} is not installed, which serve needs: pip install 'rgbdseg[serve]'") from error


def _parser() -> Parser:
    parser = Parser("serve", "Label frames on a web page, and by HTTP for machines.")
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="runs, folders of runs, checkpoints, exported graphs (.onnx) or names of the zoo; the first is the "
        "default; the model that comes with rgbdseg is always there",
    )
    parser.add_argument("--zoo", action="store_true", help="also all models of the zoo that a program can download")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; there is no password")
    parser.add_argument("--port", type=int, default=7860, help="of the page")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--max-megabytes", type=float, default=32, help="of each file")
    parser.add_argument("--max-megapixels", type=float, default=4, help="of each image")
    parser.add_argument("--no-page", action="store_true", help="the HTTP endpoint alone")
    return parser
