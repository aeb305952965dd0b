"""Linear layers in fp8: what the rounding does, what stays as it is, and who is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from forcing_kv import ConfigurationError, UnknownNameError, VideoPipeline
from forcing_kv.bench import random_transformer
from forcing_kv.models import find_model, save_model
from forcing_kv.wan import WAN_1_3B, CausalWanTransformer, TransformerConfig, check_precision, weights_bytes
from forcing_kv.wan.fp8 import FP8, LARGEST, QUANTISED, Fp8Linear, fp8_linear, quantise_rows
from small_transformer import Dense

CPU = torch.device("cpu")
CONFIG = TransformerConfig(
    dim=96, ffn_dim=160, num_layers=4, num_heads=4, in_dim=4, out_dim=4, text_dim=8, text_len=6, freq_dim=16
)
LAYER_ERROR = 0.045
"""Of a layer's output, norm over norm: weights and inputs each lose up to 1/16 of a value, 2.6 % in the mean square."""

MODEL_ERROR = 0.06


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative_error(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def test_rows_have_their_own_scale():
    x = torch.tensor([[1.0, -2.0, 0.5], [1000.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    numbers, scales = quantise_rows(x)
    assert numbers.dtype == FP8
    assert scales.shape == (3, 1)
    assert numbers.float().abs().amax(dim=1).tolist() == [LARGEST, LARGEST, 0.0]
    restored = numbers.float() * scales
    torch.testing.assert_close(restored[:2, 0], torch.tensor([1.0, 1000.0]))  # 224 and 448 are among the numbers
    assert ((restored - x).abs() <= x.abs() / 16 + scales * 2**-10).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_error_of_a_layer(dtype):
    linear = nn.Linear(512, 48).to(dtype).requires_grad_(False)
    linear.weight.mul_(torch.logspace(-3, 3, 48, base=2)[:, None])  # rows of different size
    x = drawn(2, 7, 512, dtype=dtype) * torch.logspace(-2, 2, 7)[:, None].to(dtype)  # tokens of different size
    exact = F.linear(x.double(), linear.weight.double())
    layer = Fp8Linear.of(linear)
    out = layer(x)
    assert (out.shape, out.dtype) == ((2, 7, 48), dtype)
    error = (out.double() - linear.bias.double() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert 0.01 < float(error.mean()) < LAYER_ERROR  # of every token
    numbers, scales = quantise_rows(x)
    by_hand = (numbers.double() * scales) @ (layer.weight.double() * layer.scale).T + linear.bias
    assert relative_error(out, by_hand) < {torch.float32: 1e-6}.get(dtype, 4e-3)


def models(precision):
    return random_transformer(CONFIG, device="cpu", dtype=torch.bfloat16, precision=precision)


@torch.no_grad()
def velocity(model):
    return model.at_level(
        drawn(1, 3, 4, 4, 6),
        700.0,
        text=model.encode_text(drawn(1, 6, 8, seed=1)),
        positions=model.token_positions(range(3), 2, 3),
        memory=Dense(),
    )


def test_error_of_a_whole_model():
    plain, quantised = models(None), models("fp8")
    error = relative_error(velocity(quantised), velocity(plain))
    assert 1e-4 < error < MODEL_ERROR


def test_error_of_the_embedded_model():
    prompt, sizes = "a large red circle bouncing sideways", {"resolution": (48, 32), "num_frames": 9, "decode": False}
    on_cpu = {"dtype": "bfloat16", "device": "cpu"}
    plain, quantised = (
        next(VideoPipeline.from_pretrained("tiny", **on_cpu, precision=precision).stream(prompt, **sizes))
        for precision in (None, "fp8")
    )
    assert 1e-3 < relative_error(quantised.latents, plain.latents) < 0.25


def test_the_first_and_last_block_and_all_else_stay():
    model = models("fp8")
    assert model.precision == "fp8"
    for layer, block in enumerate(model.blocks):
        in_fp8 = {name for name, module in block.named_modules() if isinstance(module, Fp8Linear)}
        assert in_fp8 == (set(QUANTISED) if layer in (1, 2) else set())
    others = {name: weight for name, weight in model.named_parameters() if weight.dtype not in (FP8, torch.float32)}
    assert others["blocks.1.ffn.0.bias"].dtype == others["head.head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("config", [CONFIG, WAN_1_3B])
@pytest.mark.parametrize("precision", [None, "fp8"])
def test_bytes_are_what_the_weights_take(config, precision):
    with torch.device("meta"):
        model = CausalWanTransformer(config).bfloat16()
        if precision:
            model.quantise_linears()
    held = sum(weight.nbytes for weight in model.parameters())
    assert weights_bytes(config, dtype=torch.bfloat16, precision=precision) == held


def test_heads_are_moved_before_or_after():
    order = [(2, 0, 3, 1)] * CONFIG.num_layers
    late, early = models("fp8"), models(None)
    late.set_head_order(order)
    early.set_head_order(order)
    early.quantise_linears()
    assert torch.equal(velocity(late), velocity(early))
    natural = models("fp8").state_dict()
    for name, weight in late.released_weights():
        assert torch.equal(weight.float(), natural[name].float()), name


def test_conversions_leave_numbers_and_scales_alone():
    layer = Fp8Linear.of(nn.Linear(32, 16))
    numbers, scale = layer.weight.float(), layer.scale.clone()
    layer.to(torch.bfloat16)
    assert (layer.weight.dtype, layer.scale.dtype, layer.bias.dtype) == (FP8, torch.float32, torch.bfloat16)
    assert torch.equal(layer.weight.float(), numbers)
    assert torch.equal(layer.scale, scale)
    assert fp8_linear(torch.zeros(1, 32, dtype=torch.bfloat16), layer.weight, layer.scale, layer.bias).shape == (1, 16)


def test_weights_are_quantised_as_they_are_read(tiny_model_folder, tmp_path):
    source = find_model(tiny_model_folder)
    loaded = source.load_transformer(dtype=torch.bfloat16, device=CPU, precision="fp8")
    read = source.open_weights()["blocks.1.ffn.2.weight"].read()
    numbers, scale = quantise_rows(read)
    assert torch.equal(loaded.blocks[1].ffn[2].weight.float(), numbers.float())
    assert torch.equal(loaded.blocks[1].ffn[2].scale, scale)
    with pytest.raises(ValueError, match="as it was loaded"):
        save_model(tmp_path, preset=source.preset, transformer=loaded, vae=None, text_encoder=None, tokenizer=None)


def test_what_cannot_be_computed_is_refused():
    sizes = {"dtype": torch.bfloat16, "device": CPU}
    check_precision(None, TransformerConfig(dim=24, ffn_dim=8, num_layers=1, num_heads=2), **sizes)
    check_precision("fp8", WAN_1_3B, **sizes)
    with pytest.raises(UnknownNameError, match="unknown precision 'fp4'; choose one of: fp8"):
        check_precision("fp4", WAN_1_3B, **sizes)
    with pytest.raises(ConfigurationError, match="so 2 layers have nothing"):
        check_precision("fp8", TransformerConfig(dim=24, ffn_dim=8, num_layers=2, num_heads=2), **sizes)
    with pytest.raises(ConfigurationError, match="not for mps"):
        check_precision("fp8", WAN_1_3B, dtype=torch.bfloat16, device=torch.device("mps"))


@pytest.mark.parametrize(
    ("capability", "dtype", "config", "message"),
    [
        ((8, 9), torch.bfloat16, WAN_1_3B, r"compute capability 9.0 \(H100 or newer\); Some GPU has 8.9"),
        ((9, 0), torch.float16, WAN_1_3B, "the model is float16; use --dtype bfloat16"),
        ((9, 0), torch.bfloat16, TransformerConfig(dim=24, ffn_dim=8, num_layers=3, num_heads=2), "multiples of 16"),
    ],
)
def test_a_gpu_that_cannot(monkeypatch, capability, dtype, config, message):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    with pytest.raises(ConfigurationError, match=message):
        check_precision("fp8", config, dtype=dtype, device=torch.device("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
def test_a_gpu_multiplies_the_same_numbers():
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("the GPU does not multiply e4m3 with scales per row")
    layer = Fp8Linear.of(nn.Linear(512, 256).bfloat16())
    x = drawn(3, 70, 512, dtype=torch.bfloat16)
    expected = layer(x)
    assert relative_error(layer.cuda()(x.cuda()).cpu(), expected) < 1e-2  # rounded once, and summed in another order
