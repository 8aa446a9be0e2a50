"""The files of a sandbox, as the caller works on them."""

from kavach_core.files.arguments import FileOptions
from kavach_core.files.sandbox_files import SandboxFiles
from kavach_core.files.transferred import Transferred

__all__ = ["FileOptions", "SandboxFiles", "Transferred"]
