"""`python -m autocompress`, the same as the command `autocompress`."""

from autocompress.cli import main

if __name__ == "__main__":
    main()
