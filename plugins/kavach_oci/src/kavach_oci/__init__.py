"""kavach backends for OCI runtimes: ``runc``, ``crun``, and ``oci``, the better of the two here."""

from kavach_oci.backend import CrunBackend, OciBackend, RuncBackend

__all__ = ["CrunBackend", "OciBackend", "RuncBackend"]
