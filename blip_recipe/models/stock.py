"""BLIP models with the weights, and the names of weights, of the stock classes of transformers."""

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
    """A BLIP with the weights, and the names of weights, of a stock class.

    What it saves names the stock class, which everybody has, and so loads without this package.

    Attributes:
        stock_class: That class.
        lora_layers: The default targets of LoRA, as a pattern of module names: every attention and feed-forward layer
            of the text.
        decoding: How it usually generates, where that is not as a captioner does (`DecodingSettings`).
    """

    stock_class: ClassVar[type[PreTrainedModel]]
    lora_layers: ClassVar[str]
    decoding: ClassVar[dict[str, Any]] = {}

    def use_sdpa(self) -> Self:
        """Switch every attention to `scaled_dot_product_attention` (the stock classes only have eager attention)."""
        return self._switch_attention(SDPA_CLASSES)

    def _switch_attention(self, classes: Mapping[type, type]) -> Self:
        for module in self.modules():
            # Another class on the same module keeps weights, names, adapters and quantised layers as they are.
            module.__class__ = classes.get(type(module), type(module))
        return self

    @classmethod
    def from_stock(cls, stock: PreTrainedModel) -> Self:
        """A model of this class with the modules of `stock`, a model of the stock class; both share all weights."""
        model = cls.__new__(cls)
        # Configuration, quantisation and tied names stay as they are; modules are shared, and not their list.
        model.__dict__ = dict(stock.__dict__)
        for table in ("_modules", "_parameters", "_buffers"):
            model.__dict__[table] = dict(stock.__dict__[table])
        model.init_from_stock()
        return model

    def init_from_stock(self) -> None:
        """Add what this class has beside the stock class; called by `from_stock`."""

    @property
    def uses_sdpa(self) -> bool:
        """Whether attention goes through `scaled_dot_product_attention`."""
        return any(isinstance(module, SdpaVisionAttention) for module in self.modules())

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Save weights and configuration, which names the stock class."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            self.config.architectures = [self.stock_class.__name__]
            self.config.save_pretrained(save_directory)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of trained and of all parameters; a 4-bit weight counts as what it stands for."""
    sizes = [
        (p.requires_grad, p.numel() * (2 if p.__class__.__name__ == "Params4bit" else 1)) for p in model.parameters()
    ]
    return sum(size for trained, size in sizes if trained), sum(size for _, size in sizes)
