"""``python -m liftopt``: the command line."""

import sys

from liftopt.cli import main

if __name__ == "__main__":
    sys.exit(main())
