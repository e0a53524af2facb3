"""`python -m longcat` is the `longcat` command."""

import sys

from longcat.cli import main

if __name__ == "__main__":
    sys.exit(main())
