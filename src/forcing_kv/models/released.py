"""The released checkpoints, as data: this table is the only place that knows one from the other."""

from dataclasses import dataclass

from forcing_kv.models.location import HubFile
from forcing_kv.models.preset import ModelPreset
from forcing_kv.models.weights import block_linears
from forcing_kv.wan import WAN_1_3B, WAN_14B, TransformerConfig

WAN_COMPONENTS = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
"""Text encoder (UMT5-XXL) and VAE of Wan2.1 in library format; all checkpoints here were trained on them."""

WAN_COMPONENTS_BYTES = 23_200_000_000
"""What they take on the disk, in float32: 22.7 GB and 0.5 GB."""


@dataclass(frozen=True, kw_only=True)
class ReleasedLora:
    """An adapter that belongs to a release, on every Linear layer of the blocks."""

    file: HubFile
    rank: int
    alpha: float


@dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """A checkpoint on the hub.

    Attributes:
        preset: How it is sampled.
        config: Its sizes.
        weights: The file.
        lora: Adapter to merge into it.
        head_map: Name of the published head map; None where none is published.
        bytes_per_weight: As stored; 4 for float32.
    """

    preset: ModelPreset
    config: TransformerConfig
    weights: HubFile
    lora: ReleasedLora | None = None
    head_map: str | None = None
    bytes_per_weight: int = 4

    @property
    def download_bytes(self) -> int:
        """Size of its files, from the sizes of the model; text encoder and VAE are not counted."""
        num_weights = self.config.num_parameters
        if self.lora is not None:
            num_weights += self.lora.rank * sum(map(sum, block_linears(self.config).values()))
        return num_weights * self.bytes_per_weight


RELEASED_MODELS = {
    model.preset.name: model
    for model in (
        ReleasedModel(
            preset=ModelPreset(
                name="self-forcing-1.3b",
                description="Self Forcing: Wan2.1 1.3B, causal, 4 steps",
                licence="Apache-2.0",
                components=WAN_COMPONENTS,
            ),
            config=WAN_1_3B,
            weights=HubFile("gdhe17/Self-Forcing", "checkpoints/self_forcing_dmd.pt"),
            head_map="self-forcing-1.3b",
        ),
        ReleasedModel(
            preset=ModelPreset(
                name="causal-forcing-1.3b",
                description="Causal Forcing, chunk-wise: more motion than Self Forcing",
                licence="Apache-2.0",
                components=WAN_COMPONENTS,
            ),
            config=WAN_1_3B,
            weights=HubFile("zhuhz22/Causal-Forcing", "chunkwise/causal_forcing.pt"),
            head_map="self-forcing-1.3b",  # the published map of this model is the same
        ),
        ReleasedModel(
            preset=ModelPreset(
                name="causal-forcing-1.3b-framewise",
                description="Causal Forcing, one latent frame at a time; calibrate it for --policy forcing-kv",
                licence="Apache-2.0",
                chunk_frames=1,
                default_policy="full",  # no head map is published
                components=WAN_COMPONENTS,
            ),
            config=WAN_1_3B,
            weights=HubFile("zhuhz22/Causal-Forcing", "framewise/causal_forcing.pt"),
        ),
        ReleasedModel(
            preset=ModelPreset(
                name="longlive-1.3b",
                description="LongLive: long videos and changing prompts",
                licence="Apache-2.0",
                default_policy="forcing-kv:warmup_chunks=3",
                components=WAN_COMPONENTS,
            ),
            config=WAN_1_3B,
            weights=HubFile("Efficient-Large-Model/LongLive-1.3B", "models/longlive_base.pt"),
            lora=ReleasedLora(
                file=HubFile("Efficient-Large-Model/LongLive-1.3B", "models/lora.pt"), rank=256, alpha=256
            ),
            head_map="longlive-1.3b",
        ),
        ReleasedModel(
            preset=ModelPreset(
                name="raven-1.3b",
                description="RAVEN with CM-GRPO merged",
                licence="CC-BY-NC-4.0",
                components=WAN_COMPONENTS,
            ),
            config=WAN_1_3B,
            weights=HubFile("mvp-lab/RAVEN", "cmgrpo_raven_merge.pt"),
            head_map="self-forcing-1.3b",  # the published map of this model is the same
        ),
        ReleasedModel(
            preset=ModelPreset(
                name="krea-realtime-14b",
                description="Krea Realtime: Wan2.1 14B, causal, 4 steps",
                licence="CC-BY-NC-SA-4.0",
                steps=(1000, 937, 833, 625),
                warped=False,
                default_policy=(
                    "forcing-kv:sink_frames=0,static_recent_frames=1,dynamic_recent_frames=3,similarity_pruning=false"
                ),
                components=WAN_COMPONENTS,
            ),
            config=WAN_14B,
            weights=HubFile("krea/krea-realtime-video", "krea-realtime-video-14b.safetensors"),
            head_map="krea-realtime-14b",
            bytes_per_weight=2,
        ),
    )
}
"""By name, in the order in which they are shown."""
