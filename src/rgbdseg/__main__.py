"""``python -m rgbdseg``: the same as the ``rgbdseg`` command."""

import sys

from rgbdseg.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
