"""Making video files: what is asked for, the run that makes it and survives a crash, the report of what came out."""

from forcing_kv.generation.report import GenerationReport, skipped_json
from forcing_kv.generation.request import VideoRequest, check_requests, frames_of, is_finished, plan_requests
from forcing_kv.generation.run import ChunkProgress, check_made_alike, generate_video
from forcing_kv.generation.sheet import videos_contact_sheet
from forcing_kv.generation.source import Source, open_source

__all__ = [
    "ChunkProgress",
    "GenerationReport",
    "Source",
    "VideoRequest",
    "check_made_alike",
    "check_requests",
    "frames_of",
    "generate_video",
    "is_finished",
    "open_source",
    "plan_requests",
    "skipped_json",
    "videos_contact_sheet",
]
