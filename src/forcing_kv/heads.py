"""Head maps: which attention head of which layer is static and which is dynamic.

A map is measured once per checkpoint (`forcing-kv calibrate`) and kept in a small JSON file. It knows nothing of
caches; a policy reads the roles from it.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forcing_kv.errors import HeadMapError

STATIC = "s"
DYNAMIC = "d"
FORMAT = "forcing-kv-head-map"
VERSION = 1
DEFAULT_THRESHOLD = 0.8


@dataclass(frozen=True, kw_only=True)
class HeadMap:
    """Roles of all heads of one model.

    Attributes:
        model: Name of the checkpoint that was measured.
        roles: One string per layer, one letter per head: `s` static, `d` dynamic.
        scores: Calibration score of every head, [layer][head], or None where they are not published.
        threshold: A head is static if its score is at least this.
        provenance: How the map was made: prompts, seeds, settings, source.

    Raises:
        HeadMapError: Roles that are empty, ragged, or not letters s and d; scores of another shape.
    """

    model: str
    roles: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...] | None = None
    threshold: float = DEFAULT_THRESHOLD
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.roles or not self.roles[0]:
            raise HeadMapError("a head map needs at least one layer with at least one head")
        for layer, roles in enumerate(self.roles):
            if len(roles) != self.num_heads or set(roles) - {STATIC, DYNAMIC}:
                raise HeadMapError(
                    f"layer {layer} of the head map reads {roles!r}; it must be {self.num_heads} letters, each s or d"
                )
        if self.scores is not None and [len(row) for row in self.scores] != [self.num_heads] * self.num_layers:
            raise HeadMapError(f"the scores of the head map are not {self.num_layers} rows of {self.num_heads} numbers")

    @property
    def num_layers(self) -> int:
        """Layers."""
        return len(self.roles)

    @property
    def num_heads(self) -> int:
        """Heads per layer."""
        return len(self.roles[0])

    @property
    def num_static(self) -> int:
        """Static heads, over all layers."""
        return sum(roles.count(STATIC) for roles in self.roles)

    def heads(self, layer: int, role: str) -> tuple[int, ...]:
        """Numbers of the heads of `layer` that have `role`, rising."""
        return tuple(head for head, letter in enumerate(self.roles[layer]) if letter == role)

    def side_by_side(self) -> tuple[tuple[int, ...], ...]:
        """Per layer an order of heads in which those of one role lie side by side: static ones, then dynamic ones."""
        return tuple(self.heads(layer, STATIC) + self.heads(layer, DYNAMIC) for layer in range(self.num_layers))

    def first_layers(self, num_layers: int) -> "HeadMap":
        """The map of a model that ends after its first layers."""
        return HeadMap(
            model=f"{self.model}, first {num_layers} layers",
            roles=self.roles[:num_layers],
            scores=None if self.scores is None else self.scores[:num_layers],
            threshold=self.threshold,
            provenance=self.provenance,
        )

    def check_fits(self, *, num_layers: int, num_heads: int) -> None:
        """Raises `HeadMapError`, naming both shapes, unless the map has this many layers and heads."""
        if (self.num_layers, self.num_heads) != (num_layers, num_heads):
            raise HeadMapError(
                f"the head map of {self.model!r} has {self.num_layers} layers x {self.num_heads} heads, the model has "
                f"{num_layers} x {num_heads}; use a map measured on this model (forcing-kv calibrate)"
            )

    @classmethod
    def uniform(cls, role: str, *, num_layers: int, num_heads: int) -> "HeadMap":
        """A map that gives every head the same role."""
        return cls(model=f"all-{role}", roles=(role * num_heads,) * num_layers)

    def shuffled(self, layers: Sequence[int], *, seed: int) -> "HeadMap":
        """The roles of `layers` dealt out at random among all their heads; as many of each, and no scores."""
        letters = "".join(self.roles[layer] for layer in layers)
        dealt = "".join(random.Random(seed).sample(letters, len(letters)))
        roles = list(self.roles)
        for index, layer in enumerate(layers):
            roles[layer] = dealt[index * self.num_heads : (index + 1) * self.num_heads]
        return HeadMap(model=f"{self.model}, shuffled", roles=tuple(roles))

    @classmethod
    def from_scores(
        cls,
        scores: Sequence[Sequence[float]],
        *,
        model: str,
        threshold: float = DEFAULT_THRESHOLD,
        provenance: Mapping[str, Any] | None = None,
    ) -> "HeadMap":
        """Static where the score reaches the threshold, dynamic elsewhere."""
        roles = tuple("".join(STATIC if score >= threshold else DYNAMIC for score in row) for row in scores)
        rows = tuple(tuple(float(score) for score in row) for row in scores)
        return cls(model=model, roles=roles, scores=rows, threshold=threshold, provenance=provenance or {})

    @classmethod
    def load(cls, path: str | Path) -> "HeadMap":
        """Reads a head-map file.

        Raises:
            HeadMapError: The file is missing, is no JSON, or is not a head map of a version known here.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise HeadMapError(f"cannot read head map {str(path)!r}: {error.strerror}") from error
        except ValueError as error:
            raise HeadMapError(f"head map {str(path)!r} is not valid JSON: {error}") from error
        return cls.from_json(document, source=str(path))

    @classmethod
    def from_json(cls, document: Any, *, source: str = "document") -> "HeadMap":
        """Reads the parsed JSON of a head-map file; `source` names it in errors."""
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise HeadMapError(f'head map {source!r} lacks "format": "{FORMAT}"')
        if document.get("version") != VERSION:
            raise HeadMapError(
                f"head map {source!r} has version {document.get('version')!r}; this release reads {VERSION}"
            )
        try:
            scores = document.get("scores")
            head_map = cls(
                model=str(document["model"]),
                roles=tuple(document["roles"]),
                scores=None if scores is None else tuple(tuple(float(score) for score in row) for row in scores),
                threshold=float(document.get("threshold", DEFAULT_THRESHOLD)),
                provenance=dict(document.get("provenance") or {}),
            )
            head_map.check_fits(num_layers=document["num_layers"], num_heads=document["num_heads"])
        except KeyError as error:
            raise HeadMapError(f"head map {source!r} lacks the entry {error}") from error
        except HeadMapError as error:
            raise HeadMapError(f"head map {source!r}: {error}") from error
        except (TypeError, ValueError) as error:
            raise HeadMapError(f"head map {source!r} is malformed: {error}") from error
        return head_map

    def to_json(self) -> dict[str, Any]:
        """The document that `load` reads."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "roles": list(self.roles),
            "scores": None if self.scores is None else [list(row) for row in self.scores],
            "threshold": self.threshold,
            "provenance": dict(self.provenance),
        }

    def save(self, path: str | Path) -> None:
        """Writes the head-map file."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
