"""What is predicted of a GPU: tiles, launches and bytes that can be counted by hand, and the order of the rungs."""

import json
from dataclasses import replace

import pytest
import torch
from predictions import ASSUMED, _busiest, _makespan, layer_groups, predict, product_share
from rows import ALONE, LARGE, OVERLAPPED, POLICIES, Run, Way, ladder, quickest_way, stages

from forcing_kv.bench import pass_work
from forcing_kv.bench.steady_state import SteadyState
from forcing_kv.models import find_model
from forcing_kv.policies import parse_policy

COMPILED = Run(name="compiled", execution="compile+cuda-graphs", attention="fa3")


def rung(**settings):
    return predict(replace(COMPILED, **settings), "forcing-kv")


def test_a_product_is_cut_into_waves():
    # 4,680 rows are 37 tiles of 128, and 1,536 columns 6 of 256: 222 tiles on 132 multiprocessors, so two waves.
    assert product_share(4680, 1536, 132) == pytest.approx(4680 * 1536 / (2 * 132 * 128 * 256))
    assert product_share(128 * 132, 256, 132) == 1


def test_tiles_go_to_whoever_is_free():
    assert _busiest(((6, 2), (5, 2)), 2) == 11
    assert _busiest(((6, 1), (5, 1), (1, 1)), 2) == 6


@pytest.mark.parametrize("together", [True, False])
def test_short_heads_fill_the_end_of_the_long_ones(together):
    # Tiles of 6, 6, 6, 4, 4, 4 keys on two multiprocessors: 6 + 6 + 4 and 6 + 4 + 4; one after the other 12 + 8.
    two = replace(ASSUMED, multiprocessors=2, query_tile=1)
    assert _makespan([(1, 4), (1, 6)], together, 3, two) == 16
    assert _makespan([(1, 6)], together, 3, two) + _makespan([(1, 4)], together, 3, two) == 20


def test_how_much_of_the_chip_the_pages_say_is_busy():
    """docs/attention.md, docs/gpu.md: launches one after the other, side by side, and one launch."""
    source = find_model("self-forcing-1.3b")
    geometry = source.preset.geometry(source.config, (832, 480))
    layers = layer_groups(parse_policy("forcing-kv", head_map=source.head_map), geometry)
    queries = geometry.chunk_tokens
    tiles = -(-queries // ASSUMED.query_tile)
    ideal = tiles * sum(heads * keys for groups in layers for heads, keys in groups) / ASSUMED.multiprocessors
    after = sum(_makespan([group], False, queries, ASSUMED) for groups in layers for group in groups)
    beside, one = (sum(_makespan(groups, way, queries, ASSUMED) for groups in layers) for way in (False, True))
    shares = [ideal / keys for keys in (after, beside, one)]
    assert shares == pytest.approx([0.746, 0.846, 0.852], abs=6e-4)


@pytest.mark.parametrize("model", ["self-forcing-1.3b", LARGE])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_arithmetic_is_that_of_bench(model, policy):
    """At rates that tiles do not spoil, the parts of a pass are its operations."""
    source = find_model(model)
    geometry = source.preset.geometry(source.config, (832, 480))
    rule = parse_policy(policy, head_map=source.head_map)
    history = SteadyState.of(rule, geometry).history_tokens
    read = sum(heads * keys for groups in layer_groups(rule, geometry) for heads, keys in groups)
    heads = source.config.num_layers * source.config.num_heads
    assert read == history + heads * geometry.chunk_tokens
    ideal = replace(ASSUMED, multiprocessors=1, query_tile=1)  # nothing left over
    rates = {"bf16": 1.0, "fp8": 1.0}, dict.fromkeys(ASSUMED.attention_tflops, 1.0)
    ideal = replace(ideal, linear_tflops=rates[0], attention_tflops=rates[1])
    parts = predict(Run(name="ideal", model=model, attention="sdpa"), policy, ideal)["parts_ms"]
    flops = pass_work(source.config, geometry, history_tokens=history, dtype=torch.bfloat16).flops
    attention = parts["attention"] + parts["cross_attention"]
    linear = 2 * geometry.chunk_tokens * source.config.num_layers
    linear *= 6 * source.config.dim**2 + 2 * source.config.dim * source.config.ffn_dim
    assert 1e9 * attention == pytest.approx(flops - linear, rel=2e-3)
    assert 1e9 * parts["linear"] == pytest.approx(linear, rel=0.05)  # edges of tiles


def test_every_rung_is_a_step_up():
    eager, graphs, *rivals, compiled, fp8 = (predict(run, "forcing-kv") for run in ladder())
    assert fp8["chunk_ms"] < compiled["chunk_ms"] < min(rival["chunk_ms"] for rival in rivals)
    assert max(rival["chunk_ms"] for rival in rivals) < graphs["chunk_ms"] < eager["chunk_ms"]
    assert fp8["launches"] > compiled["launches"] < graphs["launches"] == eager["launches"]
    assert eager["frames_read"] == pytest.approx(5.6, abs=0.02)


def test_launches_side_by_side_are_nearly_as_full_as_one():
    two = predict(replace(COMPILED, attention="cudnn"), "forcing-kv")
    same_rate = replace(ASSUMED, attention_tflops={**ASSUMED.attention_tflops, "triton": 600})
    one = predict(replace(COMPILED, attention="triton"), "forcing-kv", same_rate)
    assert 0.98 * two["parts_ms"]["attention"] < one["parts_ms"]["attention"] < two["parts_ms"]["attention"]
    assert one["launches"] == two["launches"] - 29 * 2  # 29 layers with two groups: a launch less, and no joining


def test_speed_falls_and_the_gain_rises_with_resolution():
    gains = []
    for resolution in ("480p", "720p", "1080p"):
        run = replace(COMPILED, resolution=resolution)
        full, window, ours = (predict(run, policy) for policy in POLICIES)
        assert full["chunk_ms"] > window["chunk_ms"] > ours["chunk_ms"]
        assert full["cache_bytes"] > window["cache_bytes"] > 2 * ours["cache_bytes"]
        gains.append(window["chunk_ms"] / ours["chunk_ms"])
    assert gains == sorted(gains)


def test_the_vae_is_after_the_passes():
    run = rung(compile_vae=True)
    assert run["fps_end_to_end"] == pytest.approx(12e3 / (run["chunk_ms"] + 223 / 1.5), rel=1e-3)


def test_the_stages():
    made = stages(Way(attention="cudnn"))
    assert list(made) == [
        "ladder",
        "vae",
        *(f"{p}-{b}" for p in ("480p", "720p", "1080p") for b in ("bf16", "fp8")),
        "14b",
    ]
    alone, overlapped = made["720p-fp8"]
    assert (alone.name, alone.overlap, overlapped.name, overlapped.overlap) == (ALONE, False, OVERLAPPED, True)
    assert alone.policies == POLICIES
    assert {(run.precision, run.attention) for run in made["720p-fp8"]} == {("fp8", "cudnn")}
    arguments = overlapped.arguments(repeats=3, device="cuda")
    assert " ".join(arguments).startswith("bench --model self-forcing-1.3b --device cuda --dtype bfloat16 --random-wei")
    assert arguments[-6:] == ["--overlap", "--vae-layout", "auto", "--precision", "fp8", "--compile-vae"]
    assert [run.compared for run in (alone, overlapped, *made["vae"])] == [
        "chunk_ms",
        "fps_end_to_end",
        *["vae_ms"] * 3,
    ]


def test_the_quickest_way_comes_from_the_ladder(tmp_path):
    assert quickest_way(tmp_path, {}).execution == "compile+cuda-graphs"
    rows = [
        {"options": {"execution": way, "attention": "cudnn", "precision": precision}, "measured": measured}
        for way, precision, measured in (
            ("eager", None, {"chunk_ms": 200}),
            ("cuda-graphs", None, {"chunk_ms": 150}),
            ("compile", "fp8", {"chunk_ms": 100}),
            ("compile+cuda-graphs", None, None),
        )
    ]
    (tmp_path / "ladder.json").write_text(json.dumps({"dry_run": False, "rows": rows}))
    assert quickest_way(tmp_path, {}) == Way(execution="cuda-graphs", attention="cudnn", known_from="the ladder")
    assert quickest_way(tmp_path, {"ATTENTION": "fa3"}).attention == "fa3"
    (tmp_path / "ladder.json").write_text(json.dumps({"dry_run": True, "rows": rows}))
    assert quickest_way(tmp_path, {}).execution == "compile+cuda-graphs"
