"""What every backend that boots an OCI bundle shares: the spec, the root, cgroups, ids, and the runtime's process.

Nothing here knows a particular runtime; plugins describe theirs with ``runtime.OciRuntime``.
"""
