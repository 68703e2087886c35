"""Every source of pictures and captions becomes one dataset of `image`, `image_id` and `captions`.

| module | what lives there |
|---|---|
| `load.py` | `load_split`, `load_splits`: a split of any source as rows |
| `tables.py` | what Hugging Face's `datasets` reads: Hub ids and directories |
| `files.py` | captions files: COCO and Karpathy JSON |
| `shapes.py` | the embedded generator of drawn scenes |
| `columns.py` | which columns hold pictures and captions |
| `captions.py` | captions in any shape, and their cleaning |
| `images.py` | pictures in any mode |
| `downloads.py` | pictures behind URLs, within limits |
| `checks.py` | what is wrong with rows, before training |
| `augmentation.py` | the original's random crop, flip and RandAugment |
| `dataset.py` | `CaptionDataset`: the rows as a trainer sees them |
| `shards.py` | a split as shards, read lazily from any row on |
| `streaming.py` | `CaptionStream`: rows that are read from shards while training |
"""
