"""Streaming decode with diffusers' `AutoencoderKLWan`.

The Wan VAE is causal: each latent frame needs only what the decoder's causal convolutions saw of the frames before it.
`AutoencoderKLWan.decode` keeps that feature cache on the VAE and throws it away at the end of every call; here it lives
on the stream's own object, so that a video can be decoded chunk by chunk, several videos can take turns on one VAE, and
the result is the same as decoding everything at once.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from forcing_kv.errors import ConfigurationError, SnapshotError
from forcing_kv.video.pictures import joined_on_host, stream_shape, to_host, to_uint8

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

CompiledDecoder = Callable[..., Tensor]
"""Stands in for `vae.decoder`, see `compiled_decoder`."""

# What diffusers' upsampling blocks leave in the feature cache after the very first frame, in place of a tensor: it
# makes the next frame start from zeros. Part of the decoder's state as much as the tensors are.
_FIRST_FRAME_MARK = "Rep"


class StreamingVaeDecoder:
    """Decodes the latent frames of one video (or one batch of videos), in order, a few at a time.

    The VAE itself is only read: any number of decoders may share one. Frames are decoded whole, one latent frame at a
    time, so memory does not grow with the length of the video; the VAE's tiling and slicing switches are not used. On
    a GPU everything is queued on the current CUDA stream, and only that is waited for.
    """

    def __init__(self, vae: "AutoencoderKLWan", *, compiled: CompiledDecoder | None = None) -> None:
        """Start a fresh stream.

        Args:
            vae: A Wan2.1-like or Wan2.2-like VAE (plain or residual decoder), on its device and in its dtype.
            compiled: Stands in for `vae.decoder`, see `compiled_decoder`; shared by all streams.
        """
        self._vae = cast(Any, vae)  # the library's attributes carry no types
        self._compiled = compiled
        parameter = next(self._vae.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._mean, self._std = latent_statistics(self._vae)
        self._num_slots = num_feature_slots(self._vae.decoder)
        self._features: list[Tensor | str | None] | None = [None] * self._num_slots
        self._num_latent_frames = 0
        self._latent_shape: tuple[int, int, int] | None = None  # batch, rows and columns of the stream

    @property
    def num_latent_frames(self) -> int:
        """Latent frames decoded so far."""
        return self._num_latent_frames

    @property
    def nbytes(self) -> int:
        """Bytes held by the feature cache."""
        return sum(feature.nbytes for feature in self._features or () if isinstance(feature, Tensor))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode the next latent frames of the stream.

        Args:
            latents: [B, F, C, h, w], any float dtype, standardised (mean 0 and deviation 1 per channel, as the
                transformer makes them); F >= 1.

        Returns:
            Pixel frames [B, T, H, W, 3], uint8, on the CPU. T is 4 F, less 3 at the start of the stream (the first
            latent frame is one picture).

        Raises:
            ConfigurationError: Latents of another shape than the VAE, or than the frames before them.
            SnapshotError: An earlier call was interrupted, and no state has been loaded since.
        """
        self._check(latents)
        # The decoder overwrites them one by one, as a copy would double the largest part of a stream's memory. A call
        # that is interrupted therefore leaves the stream without features, and it cannot be gone on with.
        features, self._features = self._held_features, None
        pictures = []
        for index in range(latents.shape[1]):
            frame = latents[:, index].unsqueeze(2).to(self._device, torch.float32)  # [B, C, 1, h, w]
            frame = self._vae.post_quant_conv((frame * self._std + self._mean).to(self._dtype))
            place = self._num_latent_frames + index
            # The first two latent frames find another kind of cache than all that follow: not worth compiling for.
            network = self._vae.decoder if self._compiled is None or place < 2 else self._compiled
            pixels = network(frame, feat_cache=features, feat_idx=[0], first_chunk=place == 0)
            pictures.append(to_host(to_uint8(self._unpatchify(pixels))))
        result = joined_on_host(pictures, self._device)
        self._features = features
        self._num_latent_frames += latents.shape[1]
        self._latent_shape = stream_shape(latents)
        return result

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The whole state of the stream, to be saved beside others in one safetensors file.

        Returns:
            Tensors by name, contiguous, on the VAE's device (shared with this decoder, which never writes into them);
            and metadata that JSON can hold.
        """
        tensors = {
            f"feature.{slot:03d}": feature.contiguous()
            for slot, feature in enumerate(self._held_features)
            if isinstance(feature, Tensor)
        }
        metadata = {
            "num_latent_frames": self._num_latent_frames,
            "num_slots": self._num_slots,
            "first_frame_marks": [slot for slot, feature in enumerate(self._held_features) if isinstance(feature, str)],
            "latent_shape": self._latent_shape,
        }
        return tensors, metadata

    def load_state(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Go on from where `state` was taken, bit for bit.

        Args:
            tensors: As returned by `state`; any device. They are kept and never written into.
            metadata: As returned by `state`, or read back from JSON.

        Raises:
            SnapshotError: The state comes from a VAE of another architecture.
        """
        if metadata.get("num_slots") != self._num_slots:
            raise SnapshotError(
                f"the snapshot's VAE state has {metadata.get('num_slots')} feature slots, this VAE has "
                f"{self._num_slots}: restore it into the model it was taken from"
            )
        features: list[Tensor | str | None] = [None] * self._num_slots
        for slot in metadata["first_frame_marks"]:
            features[slot] = _FIRST_FRAME_MARK
        for name, tensor in tensors.items():
            if tensor.dtype != self._dtype:
                raise SnapshotError(
                    f"the snapshot's VAE state is {tensor.dtype}, this VAE is {self._dtype}: load the model in the "
                    "dtype that the snapshot was taken in"
                )
            features[int(name.removeprefix("feature."))] = tensor.to(self._device)
        shape = metadata["latent_shape"]
        self._features = features
        self._num_latent_frames = int(metadata["num_latent_frames"])
        self._latent_shape = None if shape is None else (int(shape[0]), int(shape[1]), int(shape[2]))

    @property
    def _held_features(self) -> list[Tensor | str | None]:
        if self._features is None:
            raise SnapshotError("the decoder was interrupted within a chunk: restore a snapshot, or start over")
        return self._features

    def _check(self, latents: Tensor) -> None:
        channels = self._vae.config.z_dim
        if latents.ndim != 5 or latents.shape[1] < 1 or latents.shape[2] != channels:
            raise ConfigurationError(
                f"latents of shape {tuple(latents.shape)} cannot be decoded: the VAE takes [batch, frames, {channels}, "
                "rows, columns] with at least one frame"
            )
        if self._latent_shape is not None and stream_shape(latents) != self._latent_shape:
            raise ConfigurationError(
                f"latents of batch, rows, columns {stream_shape(latents)} do not continue a stream of "
                f"{self._latent_shape}: make one decoder per video"
            )

    def _unpatchify(self, pixels: Tensor) -> Tensor:
        """Undo the pixel patches of a Wan2.2-like VAE: [B, 3 p p, T, H, W] to [B, 3, T, H p, W p]."""
        patch = self._vae.config.patch_size
        if patch is None or patch == 1:
            return pixels
        batch, channels, num_frames, rows, columns = pixels.shape
        # The column of the patch comes before its row in the channel axis: the order of the checkpoint.
        pixels = pixels.view(batch, channels // patch**2, patch, patch, num_frames, rows, columns)
        return pixels.permute(0, 1, 4, 5, 3, 6, 2).reshape(batch, -1, num_frames, rows * patch, columns * patch)


def latent_statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the VAE's latents, by which they are standardised: each [1, C, 1, 1, 1], float32."""
    shape, device = (1, vae.config.z_dim, 1, 1, 1), next(vae.parameters()).device
    mean = torch.tensor(vae.config.latents_mean, dtype=torch.float32, device=device)
    std = torch.tensor(vae.config.latents_std, dtype=torch.float32, device=device)
    return mean.view(shape), std.view(shape)


def num_feature_slots(network: Any) -> int:
    """Length of the feature cache that a VAE's encoder or decoder needs."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    return sum(isinstance(module, WanCausalConv3d) for module in network.modules())


def compiled_decoder(vae: "AutoencoderKLWan") -> CompiledDecoder:
    """The VAE's decoder under `torch.compile`, for one latent frame at a time.

    It is compiled when it is first called, once per size of picture, which takes long and counts as decoding. Its
    result is not that of the plain decoder bit for bit, and it holds the feature cache twice while it runs.
    """
    compiled: CompiledDecoder = torch.compile(cast(Any, vae).decoder, dynamic=False)
    return compiled
