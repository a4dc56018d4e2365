"""A Dask cluster of two worker processes, and one without workers, that live until standard input closes.

Prints the address of the scheduler, of something else there, and of the scheduler without workers.
"""

import sys

from distributed import LocalCluster

if __name__ == "__main__":  # the workers are spawned: they import this file
    options = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=2, **options) as cluster, LocalCluster(n_workers=0, **options) as empty:
        print(cluster.scheduler_address, cluster.workers[0].address, empty.scheduler_address, flush=True)
        sys.stdin.read()
