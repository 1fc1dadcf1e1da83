"""`python -m tagpr_rl` is the command `tagpr`."""

import sys

from tagpr_rl.cli import main

if __name__ == "__main__":
    sys.exit(main())
