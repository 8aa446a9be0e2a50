"""Boxes started ahead, so that whoever needs one does not wait for it.

A pool keeps a number of boxes really started and paused: an idle gVisor box burns a few per cent of a core otherwise.
Each is used once unless the caller says otherwise, so that nothing passes from one user to the next.
"""

from kavach_core.pool.keeping import Pool as Pool
from kavach_core.pool.opening import open_pool as open_pool
from kavach_core.pool.records import PoolOptions as PoolOptions
from kavach_core.pool.records import PoolStats as PoolStats
