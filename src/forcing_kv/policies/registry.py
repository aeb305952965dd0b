"""Policies by name, and the way they are written: `name` or `name:setting=value,setting=value`."""

import types
import typing
from dataclasses import MISSING, fields
from typing import Any

from forcing_kv.errors import ConfigurationError, UnknownNameError
from forcing_kv.heads import HeadMap
from forcing_kv.policies.base import CachePolicy, spell
from forcing_kv.policies.dummy_forcing import DummyForcing
from forcing_kv.policies.forcing_kv import ForcingKV
from forcing_kv.policies.full import Full
from forcing_kv.policies.window import Window

POLICIES: dict[str, type[CachePolicy]] = {policy.name: policy for policy in (ForcingKV, Full, Window, DummyForcing)}


def parse_policy(spec: str, *, head_map: HeadMap | None = None) -> CachePolicy:
    """Builds a policy from its spelling.

    Args:
        spec: For example `forcing-kv:sink_frames=3,segments_per_frame=4`. Sets are joined by `+`: `dense_layers=0+1`,
            an empty one is `none`, and so is a number left to the default.
        head_map: For the policies that need one.

    Raises:
        UnknownNameError: No such policy or setting.
        ConfigurationError: A value that cannot be read or cannot work, or a missing head map.
    """
    name, _, settings = spec.strip().partition(":")
    if name not in POLICIES:
        raise UnknownNameError("policy", name, POLICIES)
    policy = POLICIES[name]
    types_of_settings = {key: kind for key, kind in _settings(policy).items() if key != "head_map"}
    values: dict[str, Any] = {}
    for assignment in filter(None, (part.strip() for part in settings.split(","))):
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise ConfigurationError(f"policy {name!r}: {assignment!r} is not of the form setting=value")
        if key not in types_of_settings:
            raise UnknownNameError(f"setting of policy {name!r}", key, types_of_settings or ["(it has none)"])
        if key in values:
            raise ConfigurationError(f"policy {name!r}: {key} is given twice")
        values[key] = _read(types_of_settings[key], text, where=f"policy {name!r}: {key}")
    if policy.needs_head_map:
        if head_map is None:
            raise ConfigurationError(
                f"policy {name!r} needs a head map, and this model has none; measure one with forcing-kv calibrate, or "
                f"give a file with --head-map"
            )
        values["head_map"] = head_map
    return policy(**values)


def split_policies(specs: str) -> list[str]:
    """The spellings in a comma-separated list, whose settings have commas too.

    Args:
        specs: For example `full,forcing-kv:sink_frames=3,warmup_chunks=3,window`: a part with `=` but no name before a
            colon belongs to the policy before it.

    Raises:
        ConfigurationError: An empty list or part, a setting before any policy, or one policy twice.
    """
    policies: list[str] = []
    for part in (part.strip() for part in specs.split(",")):
        is_setting = "=" in part.partition(":")[0]
        if not part or (is_setting and not policies):
            raise ConfigurationError(
                f"policies {specs!r}: {part!r} is no policy; write full,window,forcing-kv:sink_frames=3"
            )
        if is_setting:
            policies[-1] += f",{part}"
        else:
            policies.append(part)
    for number, policy in enumerate(policies):
        if policy in policies[:number]:
            raise ConfigurationError(f"policies {specs!r}: {policy!r} is there twice")
    return policies


def describe_settings(name: str) -> dict[str, str]:
    """The settings of a policy and their defaults, as they are written on a command line."""
    return {
        field.name: spell(field.default)
        for field in fields(POLICIES[name])  # type: ignore[arg-type]  # every policy is a dataclass
        if field.default is not MISSING
    }


def _settings(policy: type[CachePolicy]) -> dict[str, Any]:
    hints = typing.get_type_hints(policy)
    return {field.name: hints[field.name] for field in fields(policy)}  # type: ignore[arg-type]


def _read(kind: Any, text: str, *, where: str) -> Any:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        if text == "none":
            return None
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigurationError(f"{where}={text!r} must be true or false")
        return text.lower() == "true"
    try:
        if typing.get_origin(kind) is frozenset:
            return frozenset(int(item) for item in text.split("+") if text != "none")
        return kind(text)
    except ValueError:
        raise ConfigurationError(f"{where}={text!r} is not a number") from None
