"""`python -m backend.cli`: as a command line, and for the processes that it starts."""

import sys

from backend.cli import main

if __name__ == "__main__":
    sys.exit(main())
