"""`python -m erase`, and so `accelerate launch -m erase` over several processes."""

from erase.cli import main

main()
