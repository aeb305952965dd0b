"""The shape of one stream: how frames, chunks, tokens and bytes relate.

`FrameGeometry` is the only place where frames are turned into tokens and back. Everything above it counts in frames and
asks here, so that a resolution or a chunk size is written down once.
"""

from dataclasses import dataclass

from forcing_kv.errors import ConfigurationError

TEMPORAL_STRIDE = 4
"""Pixel frames per latent frame of the Wan VAE; the very first latent frame holds a single one."""


@dataclass(frozen=True, kw_only=True)
class FrameGeometry:
    """Layers, heads and frame grid of a causal video transformer.

    Attributes:
        num_layers: Transformer blocks.
        num_heads: Attention heads per block.
        head_dim: Values per head.
        frame_rows: Token rows of one latent frame (latent height / 2).
        frame_cols: Token columns of one latent frame (latent width / 2).
        chunk_frames: Latent frames generated together.

    Raises:
        ConfigurationError: A count is smaller than 1.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    frame_rows: int
    frame_cols: int
    chunk_frames: int = 3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigurationError(f"{name} is {value}; it must be at least 1")

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        return self.frame_rows * self.frame_cols

    @property
    def chunk_tokens(self) -> int:
        """Tokens of one chunk."""
        return self.chunk_frames * self.frame_tokens

    def tokens(self, num_frames: int) -> int:
        """Tokens of `num_frames` latent frames."""
        return num_frames * self.frame_tokens

    def segment_tokens(self, segments_per_frame: int) -> int:
        """Tokens of one segment when a frame is cut into `segments_per_frame` equal runs.

        Raises:
            ConfigurationError: The frame does not divide; the message lists cuts that do.
        """
        if self.frame_tokens % segments_per_frame:
            divisors = [n for n in range(1, min(self.frame_tokens, 64) + 1) if self.frame_tokens % n == 0]
            raise ConfigurationError(
                f"segments_per_frame={segments_per_frame} does not divide the {self.frame_tokens} tokens of a frame "
                f"({self.frame_rows} x {self.frame_cols}); use one of {divisors}"
            )
        return self.frame_tokens // segments_per_frame

    def kv_bytes(self, num_frames: int, *, bytes_per_value: int, batch_size: int = 1) -> int:
        """Bytes of the keys and values of `num_frames` latent frames, over all layers and heads."""
        values_per_token = 2 * self.num_layers * self.num_heads * self.head_dim
        return batch_size * self.tokens(num_frames) * values_per_token * bytes_per_value


def pixel_frames(num_latent_frames: int) -> int:
    """Pixel frames that the first `num_latent_frames` latent frames of a video decode to (4F - 3)."""
    return max(0, TEMPORAL_STRIDE * num_latent_frames - (TEMPORAL_STRIDE - 1))


def latent_frames(num_pixel_frames: int) -> int:
    """Fewest latent frames that decode to at least `num_pixel_frames` pixel frames."""
    return max(0, -(-(num_pixel_frames + TEMPORAL_STRIDE - 1) // TEMPORAL_STRIDE)) if num_pixel_frames > 0 else 0


def filled_latent_frames(num_pixel_frames: int) -> int:
    """Most latent frames that `num_pixel_frames` pixel frames make, all whole."""
    return (num_pixel_frames + TEMPORAL_STRIDE - 1) // TEMPORAL_STRIDE


def start_seconds(latent_frame: int, fps: float) -> float:
    """Video time at which a latent frame begins."""
    return pixel_frames(latent_frame) / fps
