"""`python -m cgpt_convert`."""

import sys

from cgpt_convert.cli import main

if __name__ == "__main__":
    sys.exit(main())
