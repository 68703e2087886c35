"""Run exported models with numpy, pillow, tokenizers and ONNX Runtime (or OpenVINO), without torch and transformers.

| module | contents |
|---|---|
| `folder.py` | the folder of an exported model: `export.json`, tokenizer and graphs |
| `record.py` | the name of that file |
| `engines.py` | run a graph with ONNX Runtime or OpenVINO |
| `pixels.py` | pictures to pixels, as the image processor does |
| `resizing.py` | resize pictures as torchvision does |
| `texts.py` | texts to token ids, and back |
| `decoder.py` | the text decoder with its cache |
| `settings.py` | what is searched for |
| `search.py` | greedy search, sampling, beam search |
| `scores.py` | repetition controls, minimum length, samples |
| `captioner.py` | `ExportedCaptioner` |
| `answerer.py` | `ExportedAnswerer` |
| `matcher.py` | `ExportedMatcher` |
"""

import os

# From its import on, ONNX Runtime 1.32 reports its use to Microsoft unless this is set.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
