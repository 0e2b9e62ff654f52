"""`python -m autocompress.cli`: the command line where its script is not on the path."""

import sys

from autocompress.cli import main

sys.exit(main())
