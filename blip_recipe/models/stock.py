"""The base class of BLIP models that share weights and weight names with the stock classes of transformers."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedModel

from blip_recipe.models.attention import SDPA_CLASSES, SdpaVisionAttention

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from torch import nn

    Mixin = PreTrainedModel
else:
    Mixin = object


class StockModel(Mixin):
    """A BLIP model with the weights and weight names of a stock class.

    The saved configuration names the stock class, so saved models load without this package.

    Attributes:
        stock_class: The stock class.
        other_stock_classes: Other stock classes that a model can start from.
        lora_layers: A pattern of module names, the default targets of LoRA: every attention and feed-forward layer of
            the text.
        learnt_beside_lora: Names of parameters that are trained and saved with an adapter.
        decoding: The arguments of `DecodingSettings` whose defaults differ from a captioner's.
    """

    stock_class: ClassVar[type[PreTrainedModel]]
    other_stock_classes: ClassVar[tuple[type[PreTrainedModel], ...]] = ()
    lora_layers: ClassVar[str]
    learnt_beside_lora: ClassVar[tuple[str, ...]] = ()
    decoding: ClassVar[dict[str, Any]] = {}

    def use_sdpa(self) -> Self:
        """Switch all attention layers to `scaled_dot_product_attention`."""
        return self._switch_attention(SDPA_CLASSES)

    def _switch_attention(self, classes: Mapping[type, type]) -> Self:
        for module in self.modules():
            # Changing the class of a module keeps its weights, names, adapters and quantised layers.
            module.__class__ = classes.get(type(module), type(module))
        return self

    @classmethod
    def from_stock(cls, stock: PreTrainedModel) -> Self:
        """Convert a model of the stock class; both models share all modules."""
        model = cls.__new__(cls)
        # Share configuration, quantisation and modules, but copy the dictionaries of modules.
        model.__dict__ = dict(stock.__dict__)
        for table in ("_modules", "_parameters", "_buffers"):
            model.__dict__[table] = dict(stock.__dict__[table])
        model.init_from_stock()
        return model

    def init_from_stock(self) -> None:
        """Add the parts that the stock class does not have; called by `from_stock`."""

    @property
    def uses_sdpa(self) -> bool:
        """Whether attention uses `scaled_dot_product_attention`."""
        return any(isinstance(module, SdpaVisionAttention) for module in self.modules())

    @property
    def is_gradient_checkpointing(self) -> bool:
        """The older name of `is_activation_checkpointing`, which peft asks for and transformers 5.23 warns of."""
        return self.is_activation_checkpointing

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Save weights and configuration with the stock class as architecture."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            self.config.architectures = [self.stock_class.__name__]
            self.config.save_pretrained(save_directory)


# transformers before 5.23 calls activation checkpointing gradient checkpointing.
for _name in ("is_activation_checkpointing", "activation_checkpointing_enable", "activation_checkpointing_disable"):
    if not hasattr(PreTrainedModel, _name):
        setattr(StockModel, _name, getattr(PreTrainedModel, _name.replace("activation", "gradient")))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count trained and all parameters. A 4-bit weight holds two parameters per element."""
    sizes = [
        (p.requires_grad, p.numel() * (2 if p.__class__.__name__ == "Params4bit" else 1)) for p in model.parameters()
    ]
    return sum(size for trained, size in sizes if trained), sum(size for _, size in sizes)
