"""The figures of a comparison: per policy and metric a mean over prompts with its interval; differences; courses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forcing_kv.evaluation.bootstrap import Bootstrap, Estimate
from forcing_kv.evaluation.finished import ComparedVideo
from forcing_kv.evaluation.metrics import Better, Floats, Metric
from forcing_kv.evaluation.run import Compared
from forcing_kv.tiny.scoring.shares import Difference, Rights, Share, differences_of, shares_of

DEFAULT_BOOTSTRAP = Bootstrap()

_SIGNS = {Better.HIGHER: 1.0, Better.LOWER: -1.0}


@dataclass(frozen=True, kw_only=True)
class MetricSummary:
    """One metric under one policy.

    Attributes:
        values: Of each prompt; None where it has none.
        estimate: Their mean; None where there is no value.
        difference: From the reference, paired by prompt; None for the reference, and for what is measured against it.
        verdict: `better`, `worse` or, where neither is better, `differs`, if the difference is told from 0; else empty.
    """

    values: tuple[float | None, ...]
    estimate: Estimate | None
    difference: Estimate | None
    verdict: str


@dataclass(frozen=True, kw_only=True)
class PolicySummary:
    """One policy.

    Attributes:
        spec: Its spelling.
        is_reference: Whether the others are measured against it.
        cache_bytes: Held at the end of a video, mean over prompts.
        full_cache_bytes: What a cache of every frame would have held then.
        seconds_diffusion: Of all transformer passes, over all prompts.
        seconds_decode: Of the VAE, over all prompts.
        metrics: By name.
        curves: By name of the metric, a mean over prompts for each chunk or place; NaN where there is none.
        shares: Of videos that are right, per attribute of the world.
        share_differences: From the reference.
        rights: What is right in the video of each prompt; None where nothing judges it.
    """

    spec: str
    is_reference: bool
    cache_bytes: int
    full_cache_bytes: int
    seconds_diffusion: float
    seconds_decode: float
    metrics: Mapping[str, MetricSummary]
    curves: Mapping[str, Floats]
    shares: Mapping[str, Share]
    share_differences: Mapping[str, Difference]
    rights: tuple[Rights | None, ...]


@dataclass(frozen=True, kw_only=True)
class ShownPrompt:
    """A prompt whose videos are worth looking at.

    Attributes:
        role: `best`, `median` or `worst`.
        index: Of the prompt.
    """

    role: str
    index: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All figures of a comparison.

    Attributes:
        compared: What they are made of.
        bootstrap: How intervals are made.
        policies: The reference first.
        pairs: Name of a metric -> policy -> other policy -> the first less the second, paired by prompt; the reference
            is left out, as it has a place of its own.
        shown: The best, the median and the worst prompt; fewer with fewer than three prompts.
        shown_by: In words, by what they were chosen.
    """

    compared: Compared
    bootstrap: Bootstrap
    policies: tuple[PolicySummary, ...]
    pairs: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    shown: tuple[ShownPrompt, ...]
    shown_by: str

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those that were measured."""
        return self.compared.chosen.metrics


def summarise(compared: Compared, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP) -> Summary:
    """Makes the figures of a comparison."""
    reference = compared.reference
    values = {
        (policy, metric.name): _values(metric, compared.videos[policy], compared.videos[reference])
        for policy in compared.videos
        for metric in compared.chosen.metrics
        if not (policy == reference and metric.against_reference)
    }
    shown, shown_by = _shown(compared, values)
    others = [policy for policy in compared.videos if policy != reference]
    pairs = {
        metric.name: {
            policy: {
                other: difference
                for other in others
                if other != policy
                and (difference := bootstrap.difference(values[policy, metric.name], values[other, metric.name]))
            }
            for policy in others
        }
        for metric in compared.chosen.metrics
    }
    return Summary(
        compared=compared,
        bootstrap=bootstrap,
        policies=tuple(_policy(compared, policy, values, bootstrap) for policy in compared.videos),
        pairs=pairs if len(others) > 1 else {},
        shown=shown,
        shown_by=shown_by,
    )


Values = Mapping[tuple[str, str], tuple[float | None, ...]]
"""By policy and metric, a value of each prompt."""


def _values(
    metric: Metric, videos: Sequence[ComparedVideo], references: Sequence[ComparedVideo]
) -> tuple[float | None, ...]:
    pairs = zip(videos, references, strict=True)
    return tuple(metric.compute(video.measured, reference.measured) for video, reference in pairs)


def _policy(compared: Compared, policy: str, values: Values, bootstrap: Bootstrap) -> PolicySummary:
    videos, reference = compared.videos[policy], compared.reference
    rights = tuple(video.measured.rights for video in videos)
    reference_rights = [video.measured.rights or {} for video in compared.videos[reference]]
    is_reference = policy == reference
    measured = [metric for metric in compared.chosen.metrics if (policy, metric.name) in values]
    return PolicySummary(
        spec=policy,
        is_reference=is_reference,
        cache_bytes=round(sum(video.cache_bytes for video in videos) / len(videos)),
        full_cache_bytes=round(sum(video.full_cache_bytes for video in videos) / len(videos)),
        seconds_diffusion=sum(video.milliseconds["diffusion"] for video in videos) / 1e3,
        seconds_decode=sum(video.milliseconds["decode"] for video in videos) / 1e3,
        metrics={
            metric.name: _metric(
                metric, values[policy, metric.name], values.get((reference, metric.name)), is_reference, bootstrap
            )
            for metric in measured
        },
        curves={metric.name: _curve(metric, compared, policy) for metric in measured if metric.curve is not None},
        shares=shares_of([each or {} for each in rights]),
        share_differences={} if is_reference else differences_of([each or {} for each in rights], reference_rights),
        rights=rights,
    )


def _metric(
    metric: Metric,
    values: tuple[float | None, ...],
    references: tuple[float | None, ...] | None,
    is_reference: bool,
    bootstrap: Bootstrap,
) -> MetricSummary:
    difference = None if is_reference or references is None else bootstrap.difference(values, references)
    verdict = ""
    if difference is not None and difference.is_told_from_zero:
        sign = _SIGNS.get(metric.better)
        verdict = "differs" if sign is None else "better" if sign * difference.mean > 0 else "worse"
    return MetricSummary(values=values, estimate=bootstrap.estimate(values), difference=difference, verdict=verdict)


def _curve(metric: Metric, compared: Compared, policy: str) -> Floats:
    assert metric.curve is not None
    pairs = zip(compared.videos[policy], compared.videos[compared.reference], strict=True)
    courses = np.stack([metric.curve.of(video.measured, reference.measured) for video, reference in pairs])
    known = ~np.isnan(courses)
    sums, counts = np.where(known, courses, 0).sum(axis=0), known.sum(axis=0)
    means = np.divide(sums, counts, out=np.full(courses.shape[1], np.nan), where=counts > 0)
    return metric.curve.finish(means)


def _shown(compared: Compared, values: Values) -> tuple[tuple[ShownPrompt, ...], str]:
    """The prompts whose videos are shown, ranked by the first metric for which a direction is the better one."""
    directed = [metric for metric in compared.chosen.metrics if metric.better in _SIGNS]
    ranks = [_ranks(metric, compared, values) for metric in directed[:1]]
    ranks += [_ranks(metric, compared, values) for metric in directed[1:] if metric.against_reference][:1]
    order = sorted(range(len(compared.prompts)), key=lambda index: tuple(-rank[index] for rank in ranks))
    places = {"best": 0, "median": (len(order) - 1) // 2, "worst": len(order) - 1}
    if len(order) < 3:
        places = {role: place for role, place in places.items() if role != "median"}
    shown = {order[place]: ShownPrompt(role=role, index=order[place]) for role, place in reversed(places.items())}
    if not directed:
        return tuple(reversed(shown.values())), "in the order of the prompt file"
    words = directed[0].title if directed[0].against_reference else f"{directed[0].title} less the reference's"
    ties = next((f"; ties by {metric.title}" for metric in directed[1:] if metric.against_reference), "")
    return tuple(reversed(shown.values())), f"by {words}, mean over the policies{ties}"


def _ranks(metric: Metric, compared: Compared, values: Values) -> list[float]:
    """How good each prompt is for the policies, higher is better; what is not defined counts as no difference."""
    reference = compared.reference
    others = [policy for policy in compared.videos if policy != reference]
    bases = values.get((reference, metric.name), (0.0,) * len(compared.prompts))
    ranks = []
    for index, base in enumerate(bases):
        known = [value for policy in others if (value := values[policy, metric.name][index]) is not None]
        rank = sum(known) / len(known) - base if known and base is not None else 0.0
        ranks.append(_SIGNS[metric.better] * rank)
    return ranks
