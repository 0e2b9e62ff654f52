"""`python -m autocompress`, the same as the command `autocompress`."""

import sys

from autocompress.cli import main

if __name__ == "__main__":
    sys.exit(main())
