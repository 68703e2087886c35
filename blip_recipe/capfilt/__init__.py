"""CapFilt (arXiv 2201.12086, section 3.3): clean web data with a captioner and a filter.

| module | contents |
|---|---|
| `__main__.py` | the command |
| `arguments.py` | the keys of its recipe |
| `source.py` | a data set of any kind as named shards |
| `sampling.py` | sample captions of pictures |
| `judging.py` | the captioner and the filter: write captions, and score all texts |
| `shard_output.py` | write the results of a shard atomically |
| `run.py` | resume a run, or refuse another recipe's output directory |
| `tally.py` | counts and examples of a shard |
| `report.py` | rates and examples of all shards |
"""
