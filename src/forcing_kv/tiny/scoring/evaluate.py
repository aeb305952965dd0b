"""What the embedded model is worth: held-out prompts, streamed under each cache policy, scored by rule.

Beside the model's shares stand two ceilings: the drawn clips, and the drawn clips through the VAE. All policies get the
same prompts and the same noise, so that their differences are paired. What is evaluated is said in `parts`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from forcing_kv.models.weights import weights_sha256
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.tiny.scoring.kept_scores import BatchScores, KeptScores, code_sha256
from forcing_kv.tiny.scoring.parts import Evaluation, Part, Videos, parts_of

Report = Callable[[str], None]
_SCORER = Path(__file__).parent
_DEFAULT = Evaluation()
_GROWING = ("policies", "num_prompts", "num_memory_prompts", "num_switches")
"""What may differ between calls that keep their scores in one folder: it changes no batch."""


def evaluate(
    pipeline: VideoPipeline,
    asked: Evaluation = _DEFAULT,
    *,
    kept: KeptScores | None = None,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Score the model under each policy, and both ceilings.

    Args:
        pipeline: the model.
        asked: of what, and how much.
        kept: where the scores of finished batches are, so that what is there is not made again.
        report: called with a line of text after each batch.

    Returns:
        `weights_sha256` and `dtype` of the transformer; `vae_psnr` in dB over the drawn videos; and under `parts`, per
        part, `seconds` (from, to) and `sources`: per source ("drawn", "drawn, through the VAE", each policy) the
        `shares` of videos that are right, with intervals, and every video's score under `videos`. Beside them the late
        part of free scenes has `drops`: per policy the paired differences, early less late; and that of memory scenes
        `differences`: per policy those from `SHORT_WINDOW`.
    """
    ratios: list[float] = []
    results: dict[str, Any] = {}
    for part in parts_of(pipeline, asked):
        times: list[dict[str, Videos]] = []
        for source, scores in _scored(part, asked, kept, report):
            ratios += scores["psnr"]
            for at, videos in enumerate(scores["videos"]):
                if at == len(times):
                    times.append({})
                times[at].setdefault(source, []).extend(videos)
        results |= part.results(times)
    return {
        **_model(pipeline),
        "vae_psnr": {
            "mean_db": round(sum(ratios) / len(ratios), 2) if ratios else None,
            "lowest_db": round(min(ratios), 2) if ratios else None,
            "num_videos": len(ratios),
        },
        "parts": results,
    }


def evaluate_share(
    pipeline: VideoPipeline,
    asked: Evaluation,
    *,
    kept: KeptScores,
    share: tuple[int, int],
    report: Report = lambda line: None,
) -> None:
    """Score every n-th batch only, into `kept`: the work of one of n processes.

    Args:
        pipeline: the model.
        asked: of what, and how much; of all processes.
        kept: where `evaluate` will find the scores.
        share: number of this process, from 0, and how many there are.
        report: called with a line of text after each batch.
    """
    for part in parts_of(pipeline, asked):
        for _ in _scored(part, asked, kept, report, share=share):
            pass


def scores_in(folder: Path, pipeline: VideoPipeline, asked: Evaluation) -> KeptScores:
    """The scores that a folder keeps of a model and an evaluation, which may grow from call to call.

    Raises:
        OutputError: The folder cannot be made.
    """
    settings = {name: value for name, value in asdict(asked).items() if name not in _GROWING}
    of = {
        **_model(pipeline),
        "preset": pipeline.preset.to_json(),
        "settings": settings,
        "scorer_sha256": code_sha256(_SCORER),
    }
    return KeptScores(folder, of=of)


def _model(pipeline: VideoPipeline) -> dict[str, str]:
    return {
        "weights_sha256": weights_sha256(pipeline.transformer),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
    }


def _scored(
    part: Part[Any],
    asked: Evaluation,
    kept: KeptScores | None,
    report: Report,
    *,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[str, BatchScores]]:
    """Source and scores of every batch of a part, or of those of a share."""
    places = [(source, first) for source in part.makers for first in range(0, len(part.items), asked.batch_size)]
    number, of = share
    for source, first in places[number::of]:
        batch = part.items[first : first + asked.batch_size]
        last = first + len(batch)
        make = partial(_batch_scores, part, source, batch, first)
        scores = kept.get(f"{part.name}, {source}, {first + 1} to {last}", make) if kept else make()
        report(f"{part.name}, {source}: {last} of {len(part.items)}")
        yield source, scores


def _batch_scores(part: Part[Any], source: str, batch: Sequence[Any], first: int) -> BatchScores:
    made = part.makers[source](batch, first)
    videos = [
        [part.score(item, video) for item, video in zip(batch, at_time, strict=True)] for at_time in made.at_times
    ]
    return {"videos": videos, "psnr": [*made.psnr]}


def scores_record(results: dict[str, Any], asked: Evaluation) -> dict[str, Any]:
    """What is kept beside a model's weights, as `scores.json`: the shares, and of which weights they are.

    Args:
        results: of `evaluate`.
        asked: what it was called with.

    Returns:
        `format`, `version`, `weights_sha256` and `dtype` (the hash is that of the weights in this dtype), `evaluation`
        (the settings), `vae_psnr`, and `parts`: what `evaluate` gives, without the videos. Nothing of when or where.
    """
    parts = {
        name: {
            **{key: value for key, value in part.items() if key != "sources"},
            "sources": {source: {"shares": scored["shares"]} for source, scored in part["sources"].items()},
        }
        for name, part in results["parts"].items()
    }
    return {
        "format": "forcing-kv-tiny-scores",
        "version": 1,
        "evaluation": {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(asked).items()},
        **{name: results[name] for name in ("weights_sha256", "dtype", "vae_psnr")},
        "parts": parts,
    }
