"""Read images and captions from any source as one dataset with `image`, `image_id` and `captions`.

| module | contents |
|---|---|
| `load.py` | `load_split`, `load_splits`: a split of any source as rows |
| `layouts/` | files and folders on disk: a table of kinds, and a reader for each |
| `tables.py` | a split as a table: layouts, or Hub data sets and shards that `datasets` reads |
| `holdout.py` | hold out images for evaluation, and find images that splits share |
| `shapes.py` | the embedded generator of drawn scenes |
| `columns.py` | find the columns of pictures and captions |
| `captions.py` | read and clean captions |
| `images.py` | open pictures of any mode |
| `downloads.py` | download pictures, with limits on size, time and addresses |
| `checks.py` | check all rows before training |
| `augmentation.py` | BLIP's random crop, flip and RandAugment |
| `dataset.py` | `CaptionDataset`: the rows that the trainer reads |
| `shards.py` | a split as shards that are read lazily |
| `row_texts.py` | the texts of a task in the rows of a shard |
| `streaming.py` | `PictureStream`, `CaptionStream`: read rows from shards while training |
"""
