"""Prompts: cleaned as Wan does, encoded once, remembered."""

import html

import ftfy
import pytest
import torch

from forcing_kv.models import find_model
from forcing_kv.prompt_cache import PromptCache, cache_folder
from forcing_kv.text import LazyTextEncoder, clean_prompt, encode_within

CPU = torch.device("cpu")


@pytest.fixture
def encoder(tiny_model_folder):
    source = find_model(tiny_model_folder)
    return source.components.load_text_encoder(source.config, dtype=torch.float32, device=CPU, preferred=CPU)


class Load:
    """Loads the encoder, and counts that and what it is asked for."""

    def __init__(self, encoder):
        self.encoder = encoder
        self.num_loads = 0
        self.texts = []

    def __call__(self):
        self.num_loads += 1
        return self.Encoder(self)

    class Encoder:
        def __init__(self, load):
            self.load = load
            self.model = load.encoder.model

        def __call__(self, texts):
            self.load.texts += texts
            return self.load.encoder(texts)


@pytest.fixture
def load(encoder):
    return Load(encoder)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a  red\tcircle\n", "a red circle"),
        ("caf\u00c3\u00a9", "café"),
        ("black &amp; white", "black & white"),
        ("black &amp;amp; white", "black & white"),
        ("“quoted” text", '"quoted" text'),
        ("full\u3000width ＡＢＣ", "full width ABC"),
    ],
)
def test_prompts_are_cleaned(text, cleaned):
    assert clean_prompt(text) == cleaned
    assert clean_prompt(cleaned) == cleaned


def test_cleaning_is_that_of_the_wan_pipeline():
    """diffusers holds Wan's own steps; ours must give the same on awkward texts."""
    wan = pytest.importorskip("diffusers.pipelines.wan.pipeline_wan")
    wan.ftfy = ftfy
    for text in ("  a &lt;b&gt;  c ", "schÃ¶n\u00a0Wetter", html.escape(html.escape('"x" & y')), "🎬 ok\r\n\r\nnext"):
        assert clean_prompt(text) == wan.prompt_clean(text)


def test_states_are_padded_with_zeros_to_the_full_length(encoder):
    short, long = encoder(["a red circle", "a large red circle circling clockwise slowly on a plain white background"])
    assert short.shape == (encoder.text_len, 64)
    num_tokens = len(encoder.tokenizer("a red circle").input_ids)
    assert short[:num_tokens].abs().amax(dim=1).min() > 0
    assert not short[num_tokens:].any()
    assert long[num_tokens:].any()


def test_the_encoder_is_loaded_when_it_is_needed(load, encoder):
    lazy = LazyTextEncoder(load, device=CPU)
    assert load.num_loads == 0
    states = lazy(["a red circle", "a blue square", "a  red circle "])
    assert load.texts == ["a red circle", "a blue square"]
    assert torch.equal(states, encoder(["a red circle", "a blue square", "a red circle"]))
    lazy(["a blue square"])
    assert lazy.bytes_on(CPU) == sum(tensor.nbytes for tensor in encoder.model.parameters()) > 0
    assert lazy.bytes_on(torch.device("meta")) == 0
    lazy.release()
    assert lazy.bytes_on(CPU) == 0
    assert torch.equal(lazy(["a red circle"])[0], states[0])
    assert load.num_loads == 1
    lazy(["a green triangle"])
    assert load.num_loads == 2


def test_the_encoder_is_freed_where_memory_is_short(load):
    lazy = LazyTextEncoder(load, device=CPU)
    encode_within(lazy.bytes_on(CPU) + 1e12, lazy, ["a red circle"], device=CPU, coming=["a blue square"])
    size = lazy.bytes_on(CPU)
    assert size > 0
    assert load.texts == ["a red circle"]
    encode_within(size, lazy, ["a red circle"], device=CPU)
    assert lazy.bytes_on(CPU) == size
    encode_within(size - 1, lazy, ["a red circle"], device=CPU, coming=["a red circle", "a blue square"])
    assert lazy.bytes_on(CPU) == 0
    lazy(["a blue square"])  # encoded while the encoder was there
    assert load.num_loads == 1


def test_states_do_not_depend_on_the_batch(load):
    together = LazyTextEncoder(load, device=CPU)(["a red circle", "a large blue square bouncing vertically quickly"])
    alone = LazyTextEncoder(load, device=CPU)(["a red circle"])
    assert torch.equal(together[:1], alone)


def test_a_prompt_seen_by_an_earlier_run_needs_no_encoder(load, tmp_path):
    states = LazyTextEncoder(load, device=CPU, cache=PromptCache("a", folder=tmp_path))(["a red circle"])

    def never():
        raise AssertionError("the encoder is not needed")

    later = LazyTextEncoder(never, device=CPU, cache=PromptCache("a", folder=tmp_path))
    assert torch.equal(later([" a red  circle"]), states)
    with pytest.raises(AssertionError, match="not needed"):
        LazyTextEncoder(never, device=CPU, cache=PromptCache("b", folder=tmp_path))(["a red circle"])


def test_what_is_forgotten_is_encoded_anew(load, tmp_path):
    """Neither what this run knows nor what an earlier one left is used, and nothing is taken from other runs."""
    lazy = LazyTextEncoder(load, device=CPU, cache=PromptCache("a", folder=tmp_path))
    states = lazy(["a red circle"])
    lazy.forget()
    assert torch.equal(lazy(["a red circle"]), states)
    assert load.texts == ["a red circle"] * 2
    assert load.num_loads == 1
    lazy(["a red circle"])
    assert load.texts == ["a red circle"] * 2
    LazyTextEncoder(load, device=CPU, cache=PromptCache("a", folder=tmp_path))(["a red circle"])
    assert load.num_loads == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_used", [0, 1, 5, 8])
def test_the_cache_is_exact_and_stores_no_padding(dtype, num_used, tmp_path):
    states = torch.randn(8, 16).to(dtype)
    states[num_used:] = 0
    cache = PromptCache("a", folder=tmp_path)
    assert cache.get("x") is None
    cache.put("x", states)
    assert torch.equal(cache.get("x"), states)
    assert cache.get("x").dtype == dtype
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 300 + num_used * 16 * dtype.itemsize


def test_the_oldest_prompts_go_when_the_cache_is_full(tmp_path):
    import os

    states = torch.randn(8, 128)
    cache = PromptCache("a", folder=tmp_path, max_bytes=3 * 4500)
    for number in range(3):
        cache.put(str(number), states)
        os.utime(cache._path(str(number)), (number, number))
    assert cache.get("0") is not None  # used just now: the oldest is 1
    cache.put("3", states)
    assert [cache.get(str(number)) is not None for number in range(4)] == [True, False, True, True]


def test_a_broken_entry_is_made_again(load, tmp_path):
    cache = PromptCache("a", folder=tmp_path)
    states = LazyTextEncoder(load, device=CPU, cache=cache)(["a red circle"])
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"broken")
    with pytest.warns(UserWarning, match="cannot be used and is made again"):
        again = LazyTextEncoder(load, device=CPU, cache=cache)(["a red circle"])
    assert torch.equal(again, states)
    assert load.num_loads == 2
    assert torch.equal(cache.get("a red circle"), states[0])


def test_a_folder_that_cannot_be_written_stops_nothing(load, tmp_path):
    (tmp_path / "file").touch()
    cache = PromptCache("a", folder=tmp_path / "file" / "prompts")
    with pytest.warns(UserWarning, match="the prompt was not cached"):
        LazyTextEncoder(load, device=CPU, cache=cache)(["a red circle"])


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("FORCING_KV_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("FORCING_KV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "forcing-kv"


def test_a_large_encoder_is_cached_and_a_small_one_is_not(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCING_KV_CACHE", str(tmp_path))
    source = find_model(tiny_model_folder)

    def states():
        return source.components.prompt_encoder(source.config, dtype=torch.float32, device=CPU)(["a red circle"])

    states()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("forcing_kv.models.components.MIN_CACHED_ENCODER_BYTES", 1)
    first = states()
    assert len(list((tmp_path / "prompts").iterdir())) == 1
    assert torch.equal(states(), first)


def test_the_encoder_goes_to_the_cpu_where_the_device_has_no_room(tiny_model_folder, monkeypatch):
    source = find_model(tiny_model_folder)
    monkeypatch.setattr("forcing_kv.models.components.free_bytes", lambda device: 0)
    encoder = source.components.load_text_encoder(
        source.config, dtype=torch.float32, device=None, preferred=torch.device("meta")
    )
    assert encoder.model.device.type == "cpu"
