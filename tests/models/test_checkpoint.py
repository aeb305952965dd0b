"""Wrong files of every kind give one clear error, from the command line as well; legacy and sharded files are read."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from checkpoints import SMALL, prefixed, random_lora, random_weights
from forcing_kv import CheckpointError
from forcing_kv.cli import cli
from forcing_kv.models import find_model
from forcing_kv.models.checkpoint import read_checkpoint
from forcing_kv.models.names import released_names
from forcing_kv.wan import TransformerConfig

CPU = torch.device("cpu")


class Evil:
    """Runs code when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def save(folder, weights, name="mine.pt"):
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


def truncated(folder):
    path = save(folder, {"generator": random_weights()})
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def truncated_safetensors(folder):
    path = save(folder, random_weights(), "mine.safetensors")
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def other_model(folder):
    return save(folder, random_weights(replace(SMALL, dim=56)))


def unet(folder):
    return save(folder, {"down_blocks.0.conv.weight": torch.zeros(3, 3)})


def lora_only(folder):
    return save(folder, random_lora(random_weights()))


def renamed_key(folder):
    weights = random_weights()
    weights["blocks.1.self_attention.q.weight"] = weights.pop("blocks.1.self_attn.q.weight")
    return save(folder, weights)


def of_dtype(dtype):
    def make(folder):
        weights = random_weights()
        weights["head.head.weight"] = weights["head.head.weight"].to(dtype)
        return save(folder, weights, "mine.safetensors")

    return make


def with_code(folder):
    return save(folder, {**random_weights(), "x": Evil(folder / "written by the pickle")})


def raw_pickle_with_code(folder):
    path = folder / "mine.pt"
    path.write_bytes(pickle.dumps(Evil(folder / "written by the pickle")))
    return path


def web_page(folder):
    path = folder / "mine.pt"
    path.write_text("\n<!DOCTYPE html><html><body>404</body></html>")
    return path


def web_page_safetensors(folder):
    return web_page(folder).rename(folder / "mine.safetensors")


def lfs_pointer(folder):
    path = folder / "mine.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    return path


def empty(folder):
    path = folder / "mine.pt"
    path.touch()
    return path


def folder_without_index(folder):
    save(folder, {"a": torch.zeros(1)}, "part-1.safetensors")
    save(folder, {"b": torch.zeros(1)}, "part-2.safetensors")
    return folder


def empty_folder(folder):
    (folder / "readme.md").touch()
    return folder


def sharded(folder, suffix="safetensors"):
    weights = random_weights()
    names = sorted(weights)
    halves = {f"half-1.{suffix}": names[::2], f"half-2.{suffix}": names[1::2]}
    for file, half in halves.items():
        save(folder, {name: weights[name] for name in half}, file)
    weight_map = {name: file for file, half in halves.items() for name in half}
    (folder / "model.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def shard_missing(folder):
    (sharded(folder) / "half-2.safetensors").unlink()
    return folder


def shard_without_its_weight(folder):
    sharded(folder)
    save(folder, {"a": torch.zeros(1)}, "half-2.safetensors")
    return folder


def index_without_map(folder):
    (sharded(folder) / "model.index.json").write_text("{}")
    return folder


def optimizer_only(folder):
    return save(folder, {"step": 3, "lr": 0.1})


def tensor_only(folder):
    return save(folder, torch.zeros(3))


def both_wrapped_and_bare(folder):
    weights = random_weights()
    return save(folder, weights | prefixed(weights, "module."))


def wrong_suffix(folder):
    return save(folder, random_weights()).rename(folder / "mine.gguf")


def no_file(folder):
    return folder / "nowhere.pt"


WRONG_FILES = [
    (truncated, "bytes are there, so the download may be incomplete"),
    (truncated_safetensors, "bytes are there, so the download may be incomplete"),
    (other_model, r"blocks.0.ffn.2.bias is \[56\], should be \[48\].*; and 46 more; it fits no other model"),
    (unet, "unexpected down_blocks.0.conv.weight|missing blocks.0.cross_attn.k.bias"),
    (lora_only, "holds a LoRA only: give the base with --weights and this file with --lora"),
    (
        renamed_key,
        r"\(2 of its weights\): missing blocks.1.self_attn.q.weight; unexpected blocks.1.self_attention.q.weight",
    ),
    (of_dtype(torch.int8), "head.head.weight is int8, should be a float of 16 bits or more"),
    (of_dtype(torch.bool), "head.head.weight is bool, should be a float of 16 bits or more"),
    (of_dtype(torch.float8_e4m3fn), "head.head.weight is float8_e4m3fn, should be a float of 16 bits or more"),
    (with_code, "mine.pt is refused: .* can run code when it is opened"),
    (raw_pickle_with_code, "mine.pt is refused: .* can run code when it is opened"),
    (web_page, "is a web page, not weights"),
    (web_page_safetensors, "is a web page, not weights"),
    (lfs_pointer, "is a git-lfs pointer, not the file"),
    (empty, "mine.pt is empty: download it again"),
    (folder_without_index, r"holds 2 weight files \(part-1.safetensors, part-2.safetensors\) and 0 indices"),
    (empty_folder, "holds no weight file"),
    (shard_missing, "lacks 1 of the 2 shards that model.index.json names: half-2.safetensors"),
    (shard_without_its_weight, "names .* in half-2.safetensors, where it is not"),
    (index_without_map, "is no index of shards"),
    (optimizer_only, "the entry 'step' is a int, not a tensor"),
    (tensor_only, "holds a Tensor, not weights by name"),
    (both_wrapped_and_bare, "twice, as .* and as module."),
    (wrong_suffix, "is no weight file: its name must end in one of .safetensors, .pt"),
    (no_file, "nowhere.pt does not exist"),
]


@pytest.mark.parametrize(("make", "message"), WRONG_FILES)
def test_wrong_files(make, message, tmp_path):
    source = replace(find_model("self-forcing-1.3b", weights=make(tmp_path)), config=SMALL)
    with pytest.raises(CheckpointError, match=message):
        source.load_transformer(dtype=torch.float32, device=CPU)
    assert not (tmp_path / "written by the pickle").exists()


@pytest.mark.parametrize("make", [make for make, _ in WRONG_FILES])
def test_wrong_files_on_the_command_line(make, tmp_path):
    output = tmp_path / "out.mp4"
    folder = tmp_path / "given"
    folder.mkdir()
    arguments = ["generate", "a cat", "--model", "self-forcing-1.3b", "--weights", str(make(folder)), "-o", str(output)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("forcing-kv: error: ")
    assert result.stderr.count("\n") == 1
    assert not output.exists()
    assert not (folder / "written by the pickle").exists()


def test_a_file_of_another_model_says_whose_it_is(tmp_path, monkeypatch):
    other = TransformerConfig(dim=40, ffn_dim=64, num_layers=3, num_heads=2)
    krea = find_model("krea-realtime-14b")
    from forcing_kv.models import RELEASED_MODELS

    monkeypatch.setitem(RELEASED_MODELS, krea.preset.name, replace(RELEASED_MODELS[krea.preset.name], config=other))
    path = save(tmp_path, random_weights(other))
    source = replace(find_model("self-forcing-1.3b", weights=path), config=SMALL)
    with pytest.raises(CheckpointError, match="it fits krea-realtime-14b: use --model krea-realtime-14b"):
        source.open_weights()


def test_a_long_list_is_cut(tmp_path):
    path = save(tmp_path, {f"extra.{number:02d}": torch.zeros(1) for number in range(30)} | random_weights())
    source = replace(find_model("raven-1.3b", weights=path), config=SMALL)
    with pytest.raises(CheckpointError) as caught:
        source.open_weights()
    assert str(caught.value).count("unexpected") == 20
    assert "(30 of its weights)" in str(caught.value)
    assert "; and 10 more" in str(caught.value)


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
def test_shards_and_single_files_in_folders(suffix, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "single").mkdir()
    save(tmp_path / "single", random_weights(), f"model.{suffix}")
    for path in (sharded(tmp_path / "shards", suffix), tmp_path / "shards" / "model.index.json", tmp_path / "single"):
        read = read_checkpoint(path)
        assert {name: entry.shape for name, entry in read.items()} == {
            name: tuple(tensor.shape) for name, tensor in random_weights().items()
        }
        assert all(torch.equal(read[name].read(), tensor) for name, tensor in random_weights().items())


def test_the_older_container_of_torch_is_read(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"generator": prefixed(random_weights(), "model.")}, path, _use_new_zipfile_serialization=False)
    read = released_names(read_checkpoint(path), source="old")
    assert all(torch.equal(read[name].read(), tensor) for name, tensor in random_weights().items())


def test_averaged_weights_are_preferred_in_flat_files_too(tmp_path):
    raw, averaged = random_weights(), random_weights(seed=3)
    flat = prefixed(raw, "generator.model.") | prefixed(averaged, "generator_ema.model.")
    read = released_names(read_checkpoint(save(tmp_path, flat, "flat.safetensors")), source="flat")
    assert all(torch.equal(read[name].read(), tensor) for name, tensor in averaged.items())
    assert read.keys() == averaged.keys()


@pytest.mark.parametrize(
    "stored",
    [
        "model.blocks.0.norm3.weight",
        "generator.model.blocks.0.norm3.weight",
        "model._fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.norm3.weight",
        "module.blocks.0.norm3.weight",
        "_orig_mod.blocks.0._orig_mod.norm3.weight",
        "base_model.model.blocks.0.norm3.weight",
        "module._orig_mod.model._fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.norm3.weight",
    ],
)
def test_prefixes(stored):
    assert released_names({stored: 1}, source="x") == {"blocks.0.norm3.weight": 1}
