"""Saved model folders: complete, strict, and clear about what is wrong."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from forcing_kv import CheckpointError, HeadMap, HeadMapError, PromptError, UnknownNameError, VideoPipeline
from forcing_kv.models import find_model, read_preset, save_model
from forcing_kv.models.folder import read_transformer_config
from forcing_kv.tiny.training.text import build_text_encoder, build_tokenizer
from forcing_kv.tiny.training.vae import build_vae
from forcing_kv.wan import CausalWanTransformer

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_weight(folder):
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    del weights[max(weights)]
    save_file(weights, path, metadata={"format": "pt"})


def edit_weights(folder, change):
    path = folder / "transformer" / WEIGHTS
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_what_is_saved_is_loaded(folder):
    weights = load_file(folder / "transformer" / WEIGHTS)
    transformer = find_model(folder).load_transformer(dtype=torch.float32, device=torch.device("cpu"))
    assert weights.keys() == transformer.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in transformer.state_dict().items())
    pipeline = VideoPipeline.from_pretrained(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in pipeline.transformer.parameters()} == {torch.bfloat16}
    assert pipeline.preset == read_preset(folder)
    assert pipeline.transformer.head_order == ((0, 2, 1, 3), (2, 3, 0, 1), (0, 1, 2, 3))


def test_a_model_with_coordinates_is_saved_with_them_and_makes_the_same_video(folder, tmp_path):
    pipeline = VideoPipeline.from_pretrained(folder, dtype="float32")
    config = replace(read_transformer_config(folder), coordinates=True)
    torch.manual_seed(3)
    transformer = CausalWanTransformer(config).eval()
    saved = tmp_path / "with"
    save_model(
        saved,
        preset=pipeline.preset,
        transformer=transformer,
        vae=build_vae(),
        text_encoder=build_text_encoder(len(build_tokenizer())),
        tokenizer=build_tokenizer(),
        head_map=pipeline.head_map,
    )
    assert json.loads((saved / "transformer" / "config.json").read_text())["coordinates"] is True
    loaded = find_model(saved).load_transformer(dtype=torch.float32, device=torch.device("cpu"))
    assert loaded.config == config
    weights = transformer.state_dict()
    assert "coordinate_embedding.weight" in weights
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())

    video = {"num_frames": 21, "resolution": (48, 32), "seed": 2}
    with_them = VideoPipeline.from_pretrained(saved, dtype="float32")
    frames = with_them.generate("a red circle", **video)
    with torch.no_grad():
        with_them.transformer.coordinate_embedding.weight.zero_()
        with_them.transformer.coordinate_embedding.bias.zero_()
    assert not torch.equal(frames, with_them.generate("a red circle", **video))  # they are read
    again = VideoPipeline.from_pretrained(saved, dtype="float32").generate("a red circle", **video)
    assert torch.equal(again, frames)

    edit_json(saved / "transformer" / "config.json", coordinates=False)
    with pytest.raises(
        CheckpointError, match=r"unexpected coordinate_embedding\.bias; unexpected coordinate_embedding\.weight"
    ):
        VideoPipeline.from_pretrained(saved)
    edit_json(folder / "transformer" / "config.json", coordinates=True)
    with pytest.raises(
        CheckpointError, match=r"missing coordinate_embedding\.bias; missing coordinate_embedding\.weight"
    ):
        VideoPipeline.from_pretrained(folder)


def test_weights_that_do_not_fit_are_all_listed(folder):
    def change(weights):
        del weights["blocks.0.self_attn.q.weight"]
        weights["extra.weight"] = torch.zeros(1)
        weights["head.head.bias"] = torch.zeros(3)

    edit_weights(folder, change)
    with pytest.raises(CheckpointError) as caught:
        VideoPipeline.from_pretrained(folder)
    for part in (
        "missing blocks.0.self_attn.q.weight",
        "unexpected extra.weight",
        "head.head.bias is [3], should be [64]",
    ):
        assert part in str(caught.value)


def test_long_lists_are_cut(folder):
    edit_weights(folder, lambda weights: weights.update({f"extra.{i}": torch.zeros(1) for i in range(30)}))
    with pytest.raises(CheckpointError, match="; and 10 more"):
        VideoPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: (f / "model_index.json").write_text("{"), CheckpointError, "model_index.json is not valid JSON"),
        (lambda f: edit_json(f / "model_index.json", format="x"), CheckpointError, "no model folder of this project"),
        (lambda f: edit_json(f / "model_index.json", colour=1), CheckpointError, "unknown entries .'colour'."),
        (
            lambda f: edit_json(f / "transformer" / "config.json", dim=50),
            CheckpointError,
            "does not describe a transformer",
        ),
        (lambda f: (f / "transformer" / "config.json").unlink(), CheckpointError, "cannot read"),
        (
            lambda f: (f / "transformer" / WEIGHTS).write_bytes(b"x"),
            CheckpointError,
            "cannot read",
        ),
        (lambda f: shutil.rmtree(f / "vae"), CheckpointError, "vae does not exist"),
        (lambda f: (f / "vae" / "config.json").unlink(), CheckpointError, "cannot load the VAE"),
        (lambda f: shutil.rmtree(f / "text_encoder"), CheckpointError, "text_encoder does not exist"),
        (lambda f: (f / "text_encoder" / "config.json").unlink(), CheckpointError, "cannot load the text encoder"),
        (lambda f: drop_weight(f / "vae"), CheckpointError, "cannot load the VAE .*its weights do not fit: missing "),
        (
            lambda f: drop_weight(f / "text_encoder"),
            CheckpointError,
            "cannot load the text encoder .*its weights do not fit: missing ",
        ),
        (
            lambda f: edit_json(f / "transformer" / "config.json", text_dim=32),
            CheckpointError,
            r"text_embedding.0.weight is \[48, 64\], should be \[48, 32\]",
        ),
        (lambda f: edit_json(f / "head_map.json", version=9), HeadMapError, "version 9"),
    ],
)
def test_broken_folders_are_named(folder, spoil, error, message):
    spoil(folder)
    with pytest.raises(error, match=message):
        next(
            VideoPipeline.from_pretrained(folder).stream("a red circle")
        )  # the text encoder is loaded by the first prompt


def test_unknown_names_list_the_choices(folder):
    with pytest.raises(UnknownNameError, match=r"unknown model 'huge'; choose one of: tiny, self-forcing-1.3b, "):
        VideoPipeline.from_pretrained("huge")
    with pytest.raises(UnknownNameError, match="unknown dtype 'int3'"):
        VideoPipeline.from_pretrained(folder, dtype="int3")
    with pytest.raises(UnknownNameError, match="unknown device 'abacus'"):
        VideoPipeline.from_pretrained(folder, device="abacus")


def test_a_prompt_of_unknown_words_is_refused(folder):
    pipeline = VideoPipeline.from_pretrained(folder)
    with pytest.raises(PromptError, match="knows no word of 'ein roter Kreis'"):
        next(pipeline.stream("ein roter Kreis"))
    next(pipeline.stream("ein red circle"))


def test_a_head_map_can_be_given(folder, tmp_path):
    HeadMap(model="mine", roles=("ssss",) * 3).save(tmp_path / "map.json")
    assert VideoPipeline.from_pretrained(folder, head_map=tmp_path / "map.json").head_map.num_static == 12
    with pytest.raises(HeadMapError, match="2 layers x 4 heads, the model has 3 x 4"):
        VideoPipeline.from_pretrained(folder, head_map=HeadMap(model="mine", roles=("ssss",) * 2))


def test_a_model_without_a_head_map_runs_the_other_policies(folder):
    (folder / "head_map.json").unlink()
    pipeline = VideoPipeline.from_pretrained(folder)
    assert next(pipeline.stream("a red circle", policy="full")).frames.shape == (1, 9, 64, 96, 3)
    with pytest.raises(ValueError, match="needs a head map"):
        pipeline.stream("a red circle")


def test_a_vae_that_lacks_weights_is_not_filled_with_random_ones(folder):
    path = folder / "vae" / WEIGHTS
    weights = load_file(path)
    decoder = {name: value for name, value in weights.items() if not name.startswith(("encoder.", "quant_conv."))}
    save_file(decoder, path, metadata={"format": "pt"})
    pipeline = VideoPipeline.from_pretrained(folder)
    assert pipeline.vae.encoder is None
    assert len(pipeline.generate("a red circle", num_frames=9)) == 1
    del decoder["decoder.conv_in.weight"]
    save_file(decoder, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"its weights do not fit: missing decoder\.conv_in\.weight"):
        VideoPipeline.from_pretrained(folder)
