"""Archives of any size: recordings are shared out among workers, and each gives one row (docs/scale.md).

inputs.py lists what is to be heard, ledger.py sorts it into shards, worker.py transcribes a shard, store.py
keeps what is finished, driver.py leads, and ray_pool.py finds the workers in a Ray cluster, of which nothing
else knows.
"""
