"""The method once more, written for clarity and not for speed: what the fast cache is compared with.

Every frame ever seen is kept with its keys and values; per head and batch item a list says which parts attention reads.
Attention itself is the textbook formula. It follows docs/method.md, and shares no code with `forcing_kv.cache`.
"""

import torch
import torch.nn.functional as F

from forcing_kv import DummyForcing, ForcingKV, Full, Window


def textbook_attention(q, k, v):
    """[tokens, head_dim] each, for one head of one item."""
    weights = torch.softmax(q @ k.T / q.shape[-1] ** 0.5, dim=-1)
    return weights @ v


class NaiveCache:
    def __init__(self, geometry, policy, batch_size, head_order=None):
        self.place = {head: place for place, head in enumerate(head_order or range(geometry.num_heads))}
        self.geometry, self.policy, self.batch_size = geometry, policy, batch_size
        self.kv = {}  # (layer, frame) -> (k, v), each [batch, frame_tokens, heads, head_dim]
        self.sink, self.recent = [], []  # absolute frames; recent is everything after the sink, cut when read
        self.selected = [[] for _ in range(batch_size)]  # (frame, segment) per item
        self.candidates = []  # the frames they were chosen from
        self.num_frames = self.num_chunks = 0
        self.grouped = False
        self.queries = {}  # layer -> those of the newest pass
        self.encoded_again = False  # by a re-cache that dropped the sink: heads without one read its frames as recent
        self.kinds = None  # of Dummy Forcing: (layer, head) -> first, middle or dummy, once they are told apart

    def sizes(self, layer, head):
        """Sink frames, recent frames and whether segments are read, for one head now."""
        policy, chunk = self.policy, self.geometry.chunk_frames
        if isinstance(policy, Full):
            return 0, None, False
        if isinstance(policy, Window):
            return policy.sink_frames, policy.window_frames - policy.sink_frames - chunk, False
        if isinstance(policy, DummyForcing):
            frames = {None: (1, 3), "first": (1, 0), "middle": (0, 3 * policy.local_context), "dummy": (0, 1)}
            return *frames[self.kinds[layer, head] if self.kinds else None], False
        assert isinstance(policy, ForcingKV)
        both = max(policy.static_recent_frames, policy.dynamic_recent_frames)
        if not self.grouped or layer in policy.dense_layers:
            return policy.sink_frames, both, False
        if policy.roles_in_force.roles[layer][head] == "s":
            return policy.sink_frames, policy.static_recent_frames, False
        return policy.sink_frames, policy.dynamic_recent_frames, True

    def whole_frames(self, layer, head):
        """Sink and recent frames of a head."""
        sink_frames, recent_frames, _ = self.sizes(layer, head)
        line = self.sink + self.recent if self.encoded_again and not sink_frames else self.recent
        recent = line if recent_frames is None else line[max(0, len(line) - recent_frames) :]
        return self.sink[:sink_frames], recent

    def history(self, layer, head, item):
        """Keys and values that one head of one item reads besides the current chunk."""
        sink, recent = self.whole_frames(layer, head)
        reads_segments = self.sizes(layer, head)[2]
        parts = [self.slice_of(self.kv[layer, frame], item, head) for frame in sink + recent]
        if reads_segments:
            size = self.geometry.frame_tokens // self.policy.segments_per_frame
            for frame, segment in self.selected[item]:
                k, v = self.slice_of(self.kv[layer, frame], item, head)
                parts.append((k[segment * size : (segment + 1) * size], v[segment * size : (segment + 1) * size]))
        return parts

    def attend(self, layer, q, k, v):
        self.queries[layer] = q
        out = torch.empty_like(q)
        for item in range(q.shape[0]):
            for head, place in self.place.items():
                parts = [*self.history(layer, head, item), (k[item, :, place], v[item, :, place])]
                keys, values = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
                out[item, :, place] = textbook_attention(q[item, :, place], keys, values)
        return out

    def commit(self, chunk_kv):
        """chunk_kv: per layer (k, v), each [batch, chunk_tokens, heads, head_dim]."""
        chunk = range(self.num_frames, self.num_frames + self.geometry.chunk_frames)
        to_sink = min(len(chunk), self.sink_frames() - len(self.sink))
        if isinstance(self.policy, DummyForcing) and not self.grouped and self.num_chunks >= self.policy.ar_start:
            self.look(chunk_kv)
        for layer, (k, v) in enumerate(chunk_kv):
            pairs = zip(k.split(self.geometry.frame_tokens, 1), v.split(self.geometry.frame_tokens, 1), strict=True)
            for frame, pair in zip(chunk, pairs, strict=True):
                self.kv[layer, frame] = pair
        if self.grouped:
            self.select(list(chunk)[to_sink:])
        self.sink += list(chunk)[:to_sink]
        self.recent += list(chunk)[to_sink:]
        self.num_frames += len(chunk)
        self.num_chunks += 1
        if isinstance(self.policy, ForcingKV) and self.num_chunks >= self.policy.warmup_chunks:
            self.grouped = True
        if self.kinds is not None and not self.grouped:
            self.grouped = True
            self.sink, self.recent = self.sink[: self.sink_frames()], self.recent[-3:]

    def sink_frames(self):
        heads = [(layer, head) for layer in range(self.geometry.num_layers) for head in range(self.geometry.num_heads)]
        return max(self.sizes(layer, head)[0] for layer, head in heads)

    def look(self, chunk_kv):
        """Dummy Forcing: which head is of which kind, from the queries of the commit pass."""
        policy, first, middle = self.policy, {}, {}
        tokens = list(policy.looking_tokens(self.geometry))
        for layer, (k, _) in enumerate(chunk_kv):
            for head, place in self.place.items():
                masses = []
                for item in range(self.batch_size):
                    keys = [part for part, _ in self.history(layer, head, item)] + [k[item, :, place]]
                    logits = self.queries[layer][item, tokens, place] @ torch.cat(keys).T / k.shape[-1] ** 0.5
                    weights = torch.softmax(logits, dim=-1).mean(0)
                    size, history = self.geometry.frame_tokens, len(weights) - k.shape[1]
                    masses.append((weights[:size].sum(), weights[size:history].sum()))
                first[layer, head] = sum(float(mass) for mass, _ in masses)
                middle[layer, head] = sum(float(mass) for _, mass in masses)
        first, middle = (
            {head: mass / (sum(part.values()) or 1) for head, mass in part.items()} for part in (first, middle)
        )
        num_dummy = len(first) // 2 if policy.num_dummy is None else policy.num_dummy
        rising = sorted(first, key=lambda head: (max(first[head], middle[head]), head))
        self.kinds = {head: "middle" if middle[head] > first[head] else "first" for head in first}
        self.kinds |= dict.fromkeys(rising[:num_dummy], "dummy")

    def select(self, new_frames):
        policy = self.policy
        if not isinstance(policy, ForcingKV) or not policy.similarity_pruning:
            return
        layers = [
            layer
            for layer, roles in enumerate(policy.roles_in_force.roles)
            if layer not in policy.dense_layers and "d" in roles
        ]
        if not layers:
            return
        recent_frames = policy.dynamic_recent_frames
        line = self.recent[max(0, len(self.recent) - recent_frames) :] + new_frames
        self.candidates = leaving = line[: max(0, len(line) - recent_frames)]
        per_frame = policy.segments_per_frame
        budget = policy.selected_segments
        if budget is None:
            budget = round(self.geometry.chunk_frames * per_frame / 3)
        heads = [self.place[head] for head, role in enumerate(policy.roles_in_force.roles[layers[0]]) if role == "d"]
        for item in range(self.batch_size):
            scored = []
            for index, frame in enumerate(leaving):
                now = self.kv[layers[0], frame][0][item][:, heads].flatten(1)
                then = self.kv[layers[0], line[index + 1]][0][item][:, heads].flatten(1)
                similarity = F.cosine_similarity(now, then, dim=1)
                for segment, score in enumerate(similarity.view(per_frame, -1).mean(1).tolist()):
                    scored.append((score if policy.segments == "changed" else -score, index, frame, segment))
            kept = sorted(scored)[:budget]
            self.selected[item] = [(frame, segment) for _, _, frame, segment in sorted(kept, key=lambda s: s[1:])]

    def recache(self, frames, span_kv, *, keep_sink):
        """frames: absolute indices of the span; span_kv: per layer (k, v) over the span."""
        for layer, (k, v) in enumerate(span_kv):
            pairs = zip(k.split(self.geometry.frame_tokens, 1), v.split(self.geometry.frame_tokens, 1), strict=True)
            for frame, pair in zip(frames, pairs, strict=True):
                self.kv[layer, frame] = pair
        self.grouped = self.kinds is not None or not isinstance(self.policy, DummyForcing)
        self.selected = [[] for _ in range(self.batch_size)]
        if not keep_sink:
            self.encoded_again = self.grouped
            self.sink = list(frames)[: self.sink_frames()]
            self.recent = list(frames)[len(self.sink) :]
        else:
            self.recent = list(frames)

    def slice_of(self, pair, item, head):
        return pair[0][item, :, self.place[head]], pair[1][item, :, self.place[head]]
