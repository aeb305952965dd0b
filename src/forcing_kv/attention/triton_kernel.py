"""Our own attention kernel, forward only: groups of heads with their own keys, and their own number of them.

A program takes a block of queries of one head and goes through that head's keys block by block, with the usual running
maximum and sum of an online softmax, in float32. The groups may lie in different allocations; a program finds its own
by its number, once, so one launch serves them all. Groups come longest first, and that is the order in which programs
start: the short heads fill the gaps at the end.

Imported by `forcing_kv.attention.triton_backend` only: it needs Triton.
"""

# mypy: disable-error-code="untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def attend_kernel(  # noqa: PLR0917
    q: tl.tensor,
    out: tl.tensor,
    keys: tl.tuple,
    values: tl.tuple,
    key_strides: tl.tuple,
    value_strides: tl.tuple,
    num_keys: tl.tuple,
    first_places: tl.tuple,
    first_rows: tl.tuple,
    num_queries: tl.tensor,
    q_batch_stride: tl.tensor,
    q_token_stride: tl.tensor,
    q_head_stride: tl.tensor,
    out_batch_stride: tl.tensor,
    out_token_stride: tl.tensor,
    out_head_stride: tl.tensor,
    scale: tl.tensor,
    NUM_GROUPS: tl.constexpr,  # noqa: N803
    HEAD_DIM: tl.constexpr,  # noqa: N803
    DIM_BLOCK: tl.constexpr,  # noqa: N803
    QUERY_BLOCK: tl.constexpr,  # noqa: N803
    KEY_BLOCK: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
    WIDEN: tl.constexpr,  # noqa: N803
) -> None:
    """Softmax attention of one block of queries of one head; the grid is (blocks of queries, batch, heads).

    Args:
        q: Queries; the last axis is contiguous, as it is in all tensors.
        out: Of the same shape and dtype.
        keys: Of every group.
        values: Of every group.
        key_strides: Of every group by batch item, token and head, in numbers, one after the other.
        value_strides: Likewise.
        num_keys: Of every group.
        first_places: Where the first head of every group lies in `q`; the others follow it.
        first_rows: Number of heads in the groups before each.
        num_queries: Per head.
        q_batch_stride: In numbers, as are the next ones.
        q_token_stride: See there.
        q_head_stride: See there.
        out_batch_stride: See there.
        out_token_stride: See there.
        out_head_stride: See there.
        scale: log2(e) / sqrt(head_dim): powers of 2 are cheaper than powers of e.
        NUM_GROUPS: Length of the tuples.
        HEAD_DIM: Numbers of a head.
        DIM_BLOCK: The power of 2 from `HEAD_DIM` up.
        QUERY_BLOCK: Queries taken by a program.
        KEY_BLOCK: Keys taken at a time.
        PRECISION: Of the products of float32.
        WIDEN: Whether products are of float32 whatever the dtype; the interpreter has none of bfloat16.
    """
    element = q.dtype.element_ty
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(2)
    k, v, length, first_row, first_place = keys[0], values[0], num_keys[0], first_rows[0], first_places[0]
    k_batch_stride, k_stride, k_head_stride = key_strides[0], key_strides[1], key_strides[2]
    v_batch_stride, v_stride, v_head_stride = value_strides[0], value_strides[1], value_strides[2]
    for group in tl.static_range(1, NUM_GROUPS):
        is_in = row >= first_rows[group]
        k, v = tl.where(is_in, keys[group], k), tl.where(is_in, values[group], v)
        length = tl.where(is_in, num_keys[group], length)
        first_row = tl.where(is_in, first_rows[group], first_row)
        first_place = tl.where(is_in, first_places[group], first_place)
        k_batch_stride = tl.where(is_in, key_strides[3 * group], k_batch_stride)
        k_stride = tl.where(is_in, key_strides[3 * group + 1], k_stride)
        k_head_stride = tl.where(is_in, key_strides[3 * group + 2], k_head_stride)
        v_batch_stride = tl.where(is_in, value_strides[3 * group], v_batch_stride)
        v_stride = tl.where(is_in, value_strides[3 * group + 1], v_stride)
        v_head_stride = tl.where(is_in, value_strides[3 * group + 2], v_head_stride)
    head = row - first_row
    place = first_place + head

    query_numbers = tl.program_id(0) * QUERY_BLOCK + tl.arange(0, QUERY_BLOCK)
    key_numbers = tl.arange(0, KEY_BLOCK)
    dims = tl.arange(0, DIM_BLOCK)
    is_query = (query_numbers < num_queries)[:, None]
    is_dim = (dims < HEAD_DIM)[None, :]

    q += batch * q_batch_stride + place * q_head_stride
    query = tl.load(q + query_numbers[:, None] * q_token_stride + dims[None, :], mask=is_query & is_dim, other=0.0)
    if WIDEN:
        query = query.to(tl.float32)
    k += batch * k_batch_stride + head * k_head_stride
    v += batch * v_batch_stride + head * v_head_stride
    k_block = k + key_numbers[:, None] * k_stride + dims[None, :]
    v_block = v + key_numbers[:, None] * v_stride + dims[None, :]
    highest = tl.full([QUERY_BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([QUERY_BLOCK], tl.float32)
    mixed = tl.zeros([QUERY_BLOCK, DIM_BLOCK], tl.float32)
    for _ in range(0, length // KEY_BLOCK):
        highest, total, mixed = _take_keys(
            query, k_block, v_block, highest, total, mixed, key_numbers < KEY_BLOCK, is_dim, scale,
            False, HEAD_DIM, DIM_BLOCK, PRECISION, WIDEN,
        )  # fmt: skip
        k_block += KEY_BLOCK * k_stride
        v_block += KEY_BLOCK * v_stride
    if length % KEY_BLOCK != 0:
        highest, total, mixed = _take_keys(
            query, k_block, v_block, highest, total, mixed, key_numbers < length % KEY_BLOCK, is_dim, scale,
            True, HEAD_DIM, DIM_BLOCK, PRECISION, WIDEN,
        )  # fmt: skip

    out += batch * out_batch_stride + place * out_head_stride
    to = out + query_numbers[:, None] * out_token_stride + dims[None, :]
    tl.store(to, (mixed / total[:, None]).to(element), mask=is_query & is_dim)


@triton.jit
def _take_keys(  # noqa: PLR0917
    query: tl.tensor,
    k_block: tl.tensor,
    v_block: tl.tensor,
    highest: tl.tensor,
    total: tl.tensor,
    mixed: tl.tensor,
    is_key: tl.tensor,
    is_dim: tl.tensor,
    scale: tl.tensor,
    PARTIAL: tl.constexpr,  # noqa: N803
    HEAD_DIM: tl.constexpr,  # noqa: N803
    DIM_BLOCK: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
    WIDEN: tl.constexpr,  # noqa: N803
) -> tl.tuple:
    """One block of keys and values into the running softmax; with `PARTIAL`, those of it that `is_key` marks."""
    if PARTIAL:
        key = tl.load(k_block, mask=is_key[:, None] & is_dim, other=0.0)
        value = tl.load(v_block, mask=is_key[:, None] & is_dim, other=0.0)
    elif HEAD_DIM != DIM_BLOCK:
        key = tl.load(k_block, mask=is_dim, other=0.0)
        value = tl.load(v_block, mask=is_dim, other=0.0)
    else:
        key = tl.load(k_block)
        value = tl.load(v_block)
    element = key.dtype
    if WIDEN:
        key, value = key.to(tl.float32), value.to(tl.float32)
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    if PARTIAL:
        scores = tl.where(is_key[None, :], scores, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores - new_highest[:, None])
    shrink = tl.exp2(highest - new_highest)
    total = total * shrink + tl.sum(weights, 1)
    weights = weights.to(element)
    if WIDEN:
        weights = weights.to(tl.float32)
    mixed = tl.dot(weights, value, mixed * shrink[:, None], input_precision=PRECISION)
    return new_highest, total, mixed
