"""``rgbdseg hha``: compute the HHA images of a dataset once."""

from __future__ import annotations

import time

from rgbdseg.cli.common import Parser, add_workers, progress_bar, say


def run(arguments: list[str]) -> int:
    """Run the command."""
    options = _parser().parse_args(arguments)
    from rgbdseg.data.hha_audit import audit_tree
    from rgbdseg.data.hha_cache import cache_hha, restate_hha

    stated = restate_hha(
        options.dataset,
        options.cache,
        parameters=options.parameters,
        missing=options.missing,
        largest_m=options.largest_depth,
        overwrite=options.overwrite,
    )
    if stated:
        say(f"{options.dataset}/dataset.json now says {stated}")
    start = time.monotonic()
    with progress_bar("HHA") as move:
        result = cache_hha(
            options.dataset,
            options.cache,
            options.splits,
            workers=options.workers,
            overwrite=options.overwrite,
            progress=move,
        )
    seconds = time.monotonic() - start
    say(f"{result.folder}: {result.computed} images computed in {seconds:.1f} s, {result.kept} were there already")
    audit = audit_tree(options.dataset)
    for text in (audit.fault, audit.difference, audit.saturation):
        if text is not None:
            say(f"WARNING {text}")
    return 0


def _parser() -> Parser:
    parser = Parser("hha", "Compute the HHA images of a dataset once; complete ones are kept, so it can be repeated.")
    parser.add_argument("dataset", help="folder of the prepared dataset")
    parser.add_argument("--cache", metavar="DIR", help="write there instead of the dataset's own HHA folder")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these splits")
    parser.add_argument(
        "--parameters",
        metavar="PARAMETERS",
        help="indoor, sensor or outdoor, or changes such as floor_percentile=1; put into dataset.json",
    )
    parser.add_argument(
        "--missing",
        metavar="VALUES",
        help="stored depth that means no reading: 0,65535 or none; put into dataset.json",
    )
    parser.add_argument(
        "--largest-depth", type=float, metavar="M", help="depth beyond is no reading; put into dataset.json"
    )
    add_workers(parser)
    parser.add_argument("--overwrite", action="store_true", help="compute all images anew")
    return parser
