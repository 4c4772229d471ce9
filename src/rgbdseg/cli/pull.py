"""``rgbdseg pull``: a model from a repository of the Hugging Face hub to a file."""

from __future__ import annotations

import shutil
from pathlib import Path

from rgbdseg.cli.common import Parser, say
from rgbdseg.errors import UsageError
from rgbdseg.files import atomic_path


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("pull", "Download a model that 'rgbdseg push' uploaded; hf:OWNER/NAME does so on the way, too.")
    parser.add_argument("repository", help="OWNER/NAME")
    parser.add_argument("out", help="file to write, .safetensors")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    options = parser.parse_args(arguments)
    out = Path(options.out)
    if out.suffix != ".safetensors":
        raise UsageError(f"{out} does not end in .safetensors, the format of these files")
    if out.exists() and not options.force:
        raise UsageError(f"{out} exists; choose another name or add --force")
    from rgbdseg.weights.checkpoint import read_stored_model
    from rgbdseg.weights.hub import pull

    path = pull(options.repository)
    facts = read_stored_model(path).facts
    with atomic_path(out) as temporary:
        shutil.copyfile(path, temporary)
    say(f"wrote {out}: {facts.model_name}, {len(facts.label_set)} classes of {facts.label_set.name}")
    return 0
