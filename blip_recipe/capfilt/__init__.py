"""CapFilt (arXiv 2201.12086, section 3.3): a captioner writes texts for web pictures, a filter keeps those that match.

| module | what lives there |
|---|---|
| `__main__.py` | the command |
| `arguments.py` | the keys of its recipe |
| `source.py` | a data set of any kind as shards with names |
| `sampling.py` | captions by nucleus sampling, of random numbers that belong to the picture |
| `judging.py` | captioner and filter: a picture becomes judged texts |
| `shard_output.py` | what is written for a shard, whole or not at all |
| `run.py` | whose output directory it is, and what is left to do |
| `report.py` | rates and examples of all shards |
"""
