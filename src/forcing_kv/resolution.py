"""Picture sizes: named ones, and any width x height the model's grid allows."""

import re

from forcing_kv.errors import ConfigurationError

PIXELS_PER_TOKEN = 16
"""Pixels per token along each side: the VAE's stride of 8, times the patch of 2."""

PIXELS_PER_LATENT = 8
"""Pixels per latent value along each side: the VAE's stride."""

NAMED_RESOLUTIONS = {
    "480p": (832, 480),
    "720p": (1280, 720),
    "1080p": (1920, 1088),
    "480p-portrait": (480, 832),
    "720p-portrait": (720, 1280),
    "1080p-portrait": (1088, 1920),
}
"""Width and height; 1080 is rounded up to a multiple of 16."""


def parse_resolution(text: str) -> tuple[int, int]:
    """Reads `480p`, `720p`, `1080p`, these with `-portrait`, or `WIDTHxHEIGHT` in pixels.

    Raises:
        ConfigurationError: Neither, or a side that the token grid does not allow.
    """
    if text in NAMED_RESOLUTIONS:
        return NAMED_RESOLUTIONS[text]
    match = re.fullmatch(r"(\d+)[x×](\d+)", text.strip().lower())
    if not match:
        raise ConfigurationError(
            f"unknown resolution {text!r}; use WIDTHxHEIGHT, such as 832x480, or one of {', '.join(NAMED_RESOLUTIONS)}"
        )
    width, height = int(match[1]), int(match[2])
    check_resolution(width, height)
    return width, height


def check_resolution(width: int, height: int) -> None:
    """Raises `ConfigurationError` unless both sides are positive multiples of 16; names the nearest that are."""
    if width < PIXELS_PER_TOKEN or height < PIXELS_PER_TOKEN or width % PIXELS_PER_TOKEN or height % PIXELS_PER_TOKEN:
        nearest = "x".join(map(str, nearest_resolution(width, height)))
        raise ConfigurationError(
            f"resolution {width}x{height}: width and height must be multiples of {PIXELS_PER_TOKEN}; nearest: {nearest}"
        )


def nearest_resolution(width: int, height: int) -> tuple[int, int]:
    """The width and height nearest to those given that the token grid allows."""
    columns, rows = (max(1, round(side / PIXELS_PER_TOKEN)) for side in (width, height))
    return columns * PIXELS_PER_TOKEN, rows * PIXELS_PER_TOKEN
