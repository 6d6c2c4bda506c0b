"""`python -m nextvlad` is `nextvlad`."""

from nextvlad.cli import main

main()
