"""The imports of the process that `forked` forks."""

import atexit
import gc
from importlib import import_module

MODULES = [
    "accelerate",
    "bitsandbytes",
    "datasets",
    "evaluate",
    "huggingface_hub.constants",
    "huggingface_hub.hf_api",
    "matplotlib.pyplot",
    "optuna",
    "peft",
    "torch._dynamo",
    "torchvision.transforms.v2",
    "transformers.pipelines",
    "transformers.trainer_seq2seq",
    "transformers.models.auto.processing_auto",
    "transformers.models.blip.modeling_blip",
    "transformers.models.blip.processing_blip",
    "transformers.models.bert.tokenization_bert",
]

for name in MODULES:
    import_module(name)

# Nothing of this is ever garbage: a forked process need not look through it again and again, nor copy it for that.
gc.collect()
gc.freeze()
# Libraries complain of what is left at the end.
atexit.register(gc.unfreeze)
