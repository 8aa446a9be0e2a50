"""Nothing is left behind: who owns what on this host, and how it is removed by what the kernel knows.

All of it needs little more than ``os``, so that a box can be started without importing more.
"""
