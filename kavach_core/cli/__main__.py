"""``python -m kavach_core.cli``."""

from kavach_core.cli import main

main()
