"""`python -m luthier` is the same program as `luthier`."""

from luthier.cli.main import main

main()
