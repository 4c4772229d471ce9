"""``rgbdseg hha``: compute the HHA images of a dataset once."""

from __future__ import annotations

import time

from rgbdseg.cli.common import Parser, add_workers, progress_bar, say


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("hha", "Compute the HHA images of a dataset once; complete ones are kept, so it can be repeated.")
    parser.add_argument("dataset", help="folder of the prepared dataset")
    parser.add_argument("--cache", metavar="DIR", help="write there instead of the dataset's own HHA folder")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these splits")
    add_workers(parser)
    parser.add_argument("--overwrite", action="store_true", help="compute all images anew")
    options = parser.parse_args(arguments)
    from rgbdseg.data.hha_cache import cache_hha

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
    return 0
