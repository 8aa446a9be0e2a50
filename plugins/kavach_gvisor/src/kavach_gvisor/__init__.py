"""kavach backend for gVisor: boxes whose kernel is a program, runsc."""

from kavach_gvisor.backend import GvisorBackend

__all__ = ["GvisorBackend"]
