"""`python -m tunesmith` is the same command as `tunesmith`."""

import sys

from tunesmith.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
