"""oneDNN computes the linear layers of a model as torch does, on the processors where it is faster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import CAPTIONS, save_captioner
from peft import LoraConfig
from torch import nn
from torch.nn import functional as F

from blip_recipe.captioning.modeling import BlipForCaptioning, load_captioner
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.captioning.trainer import CaptionTrainer
from blip_recipe.captioning.training_arguments import CaptionTrainingArguments
from blip_recipe.models import linear
from blip_recipe.models.adapters import add_lora
from blip_recipe.models.attention import _attend, _attend_with_onednn
from blip_recipe.models.linear import OneDnnLinear, use_onednn
from blip_recipe.models.threads import TINY

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="This torch has no oneDNN.")


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this be a processor with which oneDNN is faster."""
    monkeypatch.setattr(linear, "_is_faster", lambda: True)


@pytest.fixture
def every_size(faster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no model be tiny."""
    monkeypatch.setattr(linear, "is_tiny", lambda model: False)


def layer_of(inputs: int, outputs: int, bias: bool = True) -> OneDnnLinear:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias)
    layer.__class__ = OneDnnLinear
    return layer  # type: ignore[return-value]


def build_captioner() -> BlipForCaptioning:
    torch.manual_seed(0)
    return build_tiny_captioner(CAPTIONS)[0]


def gradients(layer: nn.Linear, states: torch.Tensor, product: Any) -> list[torch.Tensor]:
    """The output and the gradients of states, weight and bias, in the precision of the states."""
    leaves = [each.detach().to(states.dtype).requires_grad_() for each in (states, *layer.parameters())]
    output = product(*leaves)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    (output * weights).sum().backward()
    return [output.detach(), *(each.grad for each in leaves if each.grad is not None)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (7,), (600,), (2, 9), (3, 2, 5), (0,), (2, 0)])
def test_outputs_and_gradients_are_those_of_a_product_in_float64(shape: tuple[int, ...], bias: bool) -> None:
    layer = layer_of(48, 80, bias)
    states = torch.randn(*shape, 48)

    def ours(states: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(("weight", "bias"), parameters, strict=False)), states)

    found = gradients(layer, states, ours)
    expected = gradients(layer, states.double(), F.linear)
    assert len(found) == len(expected) == 3 + bias
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=2e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(states), found[0], rtol=0, atol=0)


def test_states_may_lie_in_memory_in_any_way() -> None:
    layer = layer_of(6, 4)
    wide = torch.randn(6, 5, 3)
    for states in (wide.permute(1, 2, 0), wide.permute(2, 1, 0)[:, 1:4], wide[:, :1].expand(6, 5, 3).permute(1, 2, 0)):
        torch.testing.assert_close(layer(states), F.linear(states, layer.weight, layer.bias))
    gradient = torch.randn(4).expand(7, 4)  # as that of a sum over rows
    layer(states.reshape(-1, 6)[:7]).backward(gradient)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, gradient.t() @ states.reshape(-1, 6)[:7])


def test_a_bias_may_lie_in_memory_in_any_way() -> None:
    layer = layer_of(6, 4)
    layer.bias = nn.Parameter(torch.randn(8)[::2])
    states = torch.randn(5, 6)
    torch.testing.assert_close(layer(states), F.linear(states, layer.weight, layer.bias))


def test_a_gradient_can_be_differentiated() -> None:
    layer = layer_of(3, 2)
    states = torch.randn(4, 3, requires_grad=True)
    found = []
    for each in (layer, nn.Linear.forward.__get__(layer)):
        layer.zero_grad()
        (gradient,) = torch.autograd.grad(each(states).pow(2).sum(), states, create_graph=True)
        gradient.pow(2).sum().backward()
        assert layer.weight.grad is not None
        found.append(layer.weight.grad.clone())
    torch.testing.assert_close(*found)


def test_weights_on_another_device_are_refused_as_by_torch() -> None:
    with pytest.raises(RuntimeError, match="device"):
        layer_of(6, 4).to("meta")(torch.randn(5, 6))


def test_other_kinds_of_tensors_have_their_own_product() -> None:
    class Doubled(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            with torch._C.DisableTorchFunctionSubclass():
                found = function(*args, **(kwargs or {}))
            return 2 * found if function is F.linear else found

    layer = layer_of(6, 4)
    states = torch.randn(5, 6)
    expected = 2 * layer(states)
    torch.testing.assert_close(layer(states.as_subclass(Doubled)), expected, check_device=False)


@pytest.mark.parametrize("frozen", ["states", "weight", "bias"])
def test_what_is_frozen_has_no_gradient(frozen: str) -> None:
    layer = layer_of(6, 4)
    leaves: dict[str, torch.Tensor] = {"states": torch.randn(5, 6), **dict(layer.named_parameters())}
    for name, each in leaves.items():
        each.requires_grad_(name != frozen)
    layer(leaves["states"]).sum().backward()
    assert {name for name, each in leaves.items() if each.grad is not None} == set(leaves) - {frozen}


@pytest.mark.parametrize(("frozen", "kept"), [("weight", "weight"), ("states", "states")])
def test_only_what_a_gradient_needs_is_kept(frozen: str, kept: str) -> None:
    layer = layer_of(6, 4)
    leaves = {"states": torch.randn(5, 6, requires_grad=True), "weight": layer.weight}
    leaves[frozen].requires_grad_(False)
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(leaves["states"])
    assert [each.data_ptr() for each in found] == [leaves[kept].data_ptr()]


def test_other_precisions_are_left_to_torch() -> None:
    layer = layer_of(6, 4)
    states = torch.randn(5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(states).dtype == torch.bfloat16
    assert torch.equal(layer.double()(states.double()), F.linear(states.double(), layer.weight, layer.bias))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("export", [torch.export.export, torch.jit.trace])
def test_an_exported_graph_has_the_operators_of_torch(export: Any) -> None:
    graph = str(export(layer_of(6, 4), (torch.randn(5, 6),)).graph)
    assert re.search("aten(.|::)linear", graph)
    assert "mkldnn" not in graph


def test_states_of_another_width_are_refused_as_by_torch() -> None:
    with pytest.raises(RuntimeError, match="5x7 and 6x4"):
        layer_of(6, 4)(torch.randn(5, 7))


@pytest.mark.parametrize(("parameters", "expected"), [(TINY - 1, nn.Linear), (TINY, OneDnnLinear)])
def test_tiny_models_stay_as_they_are(parameters: int, expected: type, faster: None) -> None:
    model = nn.Sequential(nn.Linear(1, parameters, bias=False))
    use_onednn(model)
    assert type(model[0]) is expected


def test_models_on_other_devices_stay_as_they_are(every_size: None) -> None:
    model = nn.Sequential(nn.Linear(2, 3, device="meta"))
    use_onednn(model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("use", ["train", "load"])
def test_trained_and_loaded_models_use_it(use: str, every_size: None, tmp_path: Path) -> None:
    name = str(save_captioner(tmp_path / "captioner"))
    given: dict[str, Any] = {"use_cpu": True, "report_to": []}
    if use == "train":
        model: Any = CaptionTrainer(name, CaptionTrainingArguments(str(tmp_path), **given)).model
    else:
        model = load_captioner(name)[0]
    attention = model.text_decoder.bert.encoder.layer[0].crossattention.self
    assert type(attention.key) is OneDnnLinear
    assert attention.has_plain_weights  # captions are generated without keys and values


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(linear, "PROCESSOR", Path("/nowhere"))
    monkeypatch.setattr("platform.processor", lambda: "AuthenticAMD")
    assert linear._is_faster()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not linear._is_faster()


def test_a_captioner_learns_and_writes_the_same_with_the_same_names(every_size: None) -> None:
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    input_ids = torch.tensor([[1, 5, 6, 7]] * 2)
    found: list[dict[str, torch.Tensor]] = []
    for change in (lambda model: None, use_onednn):
        model = build_captioner().use_sdpa()
        change(model)
        model.eval()(pixel_values=pixels, input_ids=input_ids, labels=input_ids).token_losses.sum().backward()
        written = model.generate(pixel_values=pixels, num_beams=3, max_length=12)
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        found.append({"written": written, **gradients})
    first, second = found
    assert list(first) == list(second)
    for name, expected in first.items():
        torch.testing.assert_close(second[name], expected, rtol=1e-4, atol=1e-5, msg=name)
    assert torch.equal(first["written"], second["written"])


def test_attention_to_embeddings_is_the_same() -> None:
    torch.manual_seed(0)
    states, queries = torch.randn(3, 37, 48), torch.randn(3, 12, 48) / 7
    with torch.no_grad():
        torch.testing.assert_close(_attend_with_onednn(queries, states), _attend(queries, states))


def test_an_adapter_keeps_its_names(every_size: None) -> None:
    plain, changed = (add_lora(build_captioner(), LoraConfig(r=2, target_modules=["query", "fc1"])) for _ in range(2))
    use_onednn(changed)
    assert list(changed.state_dict()) == list(plain.state_dict())
    assert any(type(each) is OneDnnLinear for each in changed.modules())
    merged = changed.merge_and_unload()
    assert [name for name, _ in merged.named_parameters()] == [name for name, _ in build_captioner().named_parameters()]


@pytest.mark.parametrize(
    ("described", "capability", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\n", "AVX512", True),
        ("vendor_id\t: AuthenticAMD\n", "AVX2", False),
        ("vendor_id\t: GenuineIntel\n", "AVX512", False),
    ],
)
def test_only_processors_of_amd_with_avx512_gain(
    described: str, capability: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(described)
    monkeypatch.setattr(linear, "PROCESSOR", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert linear._is_faster() is expected
    monkeypatch.setattr(linear, "PROCESSOR", tmp_path / "none")
    monkeypatch.setattr("platform.processor", lambda: described)
    assert linear._is_faster() is expected
