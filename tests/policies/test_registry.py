"""Policies by name, as they are written on a command line."""

import pytest

from forcing_kv import (
    ConfigurationError,
    ForcingKV,
    FrameGeometry,
    Full,
    HeadMap,
    UnknownNameError,
    Window,
    parse_policy,
)
from forcing_kv.policies import POLICIES, describe_settings, split_policies

MAP = HeadMap(model="test", roles=("sd", "ds"))


def test_settings_are_read_by_type():
    policy = parse_policy(
        "forcing-kv:sink_frames=3,similarity_pruning=false,dense_layers=0+1,selected_segments=none", head_map=MAP
    )
    assert policy == ForcingKV(
        head_map=MAP, sink_frames=3, similarity_pruning=False, dense_layers=frozenset({0, 1}), selected_segments=None
    )
    assert parse_policy("window:window_frames=6,sink_frames=1") == Window(window_frames=6, sink_frames=1)
    assert parse_policy("full") == Full()


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_can_be_named_planned_and_spelled(name):
    policy = parse_policy(name, head_map=MAP)
    geometry = FrameGeometry(num_layers=2, num_heads=2, head_dim=4, frame_rows=2, frame_cols=3)
    for grouped in (False, True):
        plan = policy.plan(geometry, grouped=grouped)
        assert [sorted(order) for order in plan.head_order()] == [[0, 1], [0, 1]]
    assert parse_policy(policy.spec(), head_map=MAP) == policy
    settings = describe_settings(name)
    assert "head_map" not in settings
    written = name + ":" + ",".join(f"{key}={value}" for key, value in settings.items())
    assert parse_policy(written, head_map=MAP) == policy


@pytest.mark.parametrize(
    "spec",
    [
        "forcing-kv:sink_frames=3,dense_layers=none,similarity_pruning=false",
        "forcing-kv:selected_segments=4",
        "window:window_frames=9",
    ],
)
def test_spec_is_what_was_written(spec):
    policy = parse_policy(spec, head_map=MAP)
    assert parse_policy(policy.spec(), head_map=MAP) == policy


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("fulll", UnknownNameError, "unknown policy 'fulll'; choose one of: forcing-kv, full, window"),
        ("window:sinks=3", UnknownNameError, "unknown setting of policy 'window' 'sinks'.*window_frames, sink_frames"),
        ("window:sink_frames", ConfigurationError, "'sink_frames' is not of the form setting=value"),
        ("window:sink_frames=many", ConfigurationError, "sink_frames='many' is not a number"),
        ("window:sink_frames=1,sink_frames=2", ConfigurationError, "sink_frames is given twice"),
        ("forcing-kv:similarity_pruning=maybe", ConfigurationError, "must be true or false"),
        ("full:x=1", UnknownNameError, "it has none"),
    ],
)
def test_bad_spellings_are_named(spec, error, message):
    with pytest.raises(error, match=message):
        parse_policy(spec, head_map=MAP)


def test_missing_head_map_says_what_to_do():
    with pytest.raises(ConfigurationError, match="forcing-kv calibrate"):
        parse_policy("forcing-kv")


def test_a_window_too_small_says_how_large():
    geometry = FrameGeometry(num_layers=1, num_heads=1, head_dim=4, frame_rows=1, frame_cols=1)
    with pytest.raises(ConfigurationError, match="make it at least 6"):
        Window(window_frames=5, sink_frames=3).check(geometry)


def test_a_list_of_policies_whose_settings_have_commas_too():
    assert split_policies("full") == ["full"]
    assert split_policies("full, forcing-kv:sink_frames=3,warmup_chunks=3 ,window:window_frames=6") == [
        "full",
        "forcing-kv:sink_frames=3,warmup_chunks=3",
        "window:window_frames=6",
    ]


@pytest.mark.parametrize("specs", ["", "full,,window", "sink_frames=3,full", "full,window,full", "full,"])
def test_a_list_of_policies_that_is_none(specs):
    with pytest.raises(ConfigurationError, match="policies"):
        split_policies(specs)
