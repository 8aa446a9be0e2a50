"""A backend whose module ends the program that imports it."""

import sys

sys.exit("no licence for this machine")
