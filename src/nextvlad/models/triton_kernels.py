# mypy: ignore-errors
"""The kernels of `nextvlad.models.kernels`, in Triton's language.

Letters: n frames, G groups, K clusters, F = G K columns, B segments, N rows of all of them, P and Q columns
of two factors. All sums are float32. Places are 64-bit: 150,000 frames of 16,384 columns do not fit in 32.
Rows and columns beyond the end of a tile are read as zeros and not stored.
"""

from __future__ import annotations

try:
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:  # no Triton: these are not to be called

    def jit(function):  # noqa: D103
        return function

    triton = None


@jit
def partial_moments(
    z, means, squares, num_rows, num_columns, stride, rows_a_split,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Mean and squared deviations of one split of the rows, for some columns: [splits, F] each."""
    split = tl.program_id(1)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    real_columns = columns < num_columns
    first = split * rows_a_split
    last = tl.minimum(first + rows_a_split, num_rows)
    mean = tl.zeros([COLUMNS], tl.float32)
    square = tl.zeros([COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        rows = start + tl.arange(0, ROWS)
        real = (rows < last)[:, None] & real_columns[None, :]
        x = tl.load(z + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=real, other=0.0)
        x = x.to(tl.float32)
        count = tl.minimum(last - start, ROWS) * 1.0
        before = (start - first) * 1.0
        own_mean = tl.sum(x, 0) / count
        deviation = tl.where(real, x - own_mean[None, :], 0.0)
        difference = own_mean - mean
        share = count / (before + count)
        mean += difference * share
        square += tl.sum(deviation * deviation, 0) + difference * difference * (before * share)
    place = split * num_columns + columns
    tl.store(means + place, mean, mask=real_columns)
    tl.store(squares + place, square, mask=real_columns)


@jit
def join_moments(
    means, squares, mean_out, var_out, num_rows, num_columns, rows_a_split, num_splits,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """The splits of `partial_moments` put together: mean and biased variance [F]."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    real = columns < num_columns
    mean = tl.zeros([COLUMNS], tl.float32)
    square = tl.zeros([COLUMNS], tl.float32)
    for split in range(num_splits):
        place = split * num_columns + columns
        own_mean = tl.load(means + place, mask=real, other=0.0)
        own_square = tl.load(squares + place, mask=real, other=0.0)
        before = split * rows_a_split * 1.0
        count = tl.minimum(num_rows - split * rows_a_split, rows_a_split) * 1.0
        difference = own_mean - mean
        share = count / (before + count)
        mean += difference * share
        square += own_square + difference * difference * (before * share)
    tl.store(mean_out + columns, mean, mask=real)
    tl.store(var_out + columns, square / (num_rows * 1.0), mask=real)


@jit
def softmax_and_sigmoid(z, scale, shift, attention, real):
    """Softmax [ROWS, CLUSTERS] over the real clusters, and sigmoid [ROWS]."""
    y = tl.where(real, z * scale[None, :] + shift[None, :], float("-inf"))
    # Rows and columns beyond the end are -inf or nothing; a row of theirs alone is never stored.
    e = tl.exp(y - tl.max(y, 1)[:, None])
    return e / tl.sum(e, 1)[:, None], 1.0 / (1.0 + tl.exp(-attention))


@jit
def weigh(
    z, scale, shift, attention, out, num_frames, z_stride, attention_stride, num_groups, num_clusters,
    ROWS: tl.constexpr, CLUSTERS: tl.constexpr,
):  # fmt: skip
    """Some frames of one group: out [n, G, K]."""
    group = tl.program_id(1)
    frames = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    clusters = tl.arange(0, CLUSTERS)
    real_frames, real_clusters = frames < num_frames, clusters < num_clusters
    both = real_frames[:, None] & real_clusters[None, :]
    columns = group * num_clusters + clusters
    wide = frames.to(tl.int64)
    x = tl.load(z + wide[:, None] * z_stride + columns[None, :], mask=both, other=0.0).to(tl.float32)
    t = tl.load(attention + wide * attention_stride + group, mask=real_frames, other=0.0).to(tl.float32)
    a = tl.load(scale + columns, mask=real_clusters, other=0.0)
    b = tl.load(shift + columns, mask=real_clusters, other=0.0)
    weights, importance = softmax_and_sigmoid(x, a, b, t, real_clusters[None, :])
    place = wide[:, None] * (num_groups * num_clusters) + columns[None, :]
    tl.store(out + place, (weights * importance[:, None]).to(out.dtype.element_ty), mask=both)


@jit
def weigh_backward(
    grad_a, z, scale, shift, attention, mean, grad_y, grad_attention, sums_y, sums_y_z,
    num_frames, frames_a_split, z_stride, attention_stride, num_groups, num_clusters,
    ROWS: tl.constexpr, CLUSTERS: tl.constexpr,
):  # fmt: skip
    """One split of the frames, of one group: grad_y [n, F], grad_attention [n, G], sums [splits, F]."""
    group, split = tl.program_id(0), tl.program_id(1)
    num_columns = num_groups * num_clusters
    clusters = tl.arange(0, CLUSTERS)
    real_clusters = clusters < num_clusters
    columns = group * num_clusters + clusters
    a = tl.load(scale + columns, mask=real_clusters, other=0.0)
    b = tl.load(shift + columns, mask=real_clusters, other=0.0)
    m = tl.load(mean + columns, mask=real_clusters, other=0.0)
    sum_y = tl.zeros([CLUSTERS], tl.float32)
    sum_y_z = tl.zeros([CLUSTERS], tl.float32)
    first = split * frames_a_split
    last = tl.minimum(first + frames_a_split, num_frames)
    for start in range(first, last, ROWS):
        frames = start + tl.arange(0, ROWS)
        real_frames = frames < last
        both = real_frames[:, None] & real_clusters[None, :]
        wide = frames.to(tl.int64)
        place = wide[:, None] * num_columns + columns[None, :]
        x = tl.load(z + wide[:, None] * z_stride + columns[None, :], mask=both, other=0.0).to(tl.float32)
        g = tl.load(grad_a + place, mask=both, other=0.0).to(tl.float32)
        t = tl.load(attention + wide * attention_stride + group, mask=real_frames, other=0.0).to(tl.float32)
        weights, importance = softmax_and_sigmoid(x, a, b, t, real_clusters[None, :])
        inner = tl.sum(g * weights, 1)  # [ROWS]; g is 0 where nothing is
        of_y = tl.where(both, (g - inner[:, None]) * weights * importance[:, None], 0.0)
        sum_y += tl.sum(of_y, 0)
        sum_y_z += tl.sum(of_y * (x - m[None, :]), 0)
        tl.store(grad_y + place, of_y.to(grad_y.dtype.element_ty), mask=both)
        of_attention = inner * importance * (1.0 - importance)
        tl.store(grad_attention + wide * num_groups + group, of_attention, mask=real_frames)
    tl.store(sums_y + split * num_columns + columns, sum_y, mask=real_clusters)
    tl.store(sums_y_z + split * num_columns + columns, sum_y_z, mask=real_clusters)


@jit
def blend(
    x, y, a, b, c, out, num_rows, num_columns, x_stride, y_stride,
    HAS_Y: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One tile of x a + y b + c: out [n, F]."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real_columns = columns < num_columns
    both = (rows < num_rows)[:, None] & real_columns[None, :]
    x_here = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=both, other=0).to(tl.float32)
    a_here = tl.load(a + columns, mask=real_columns, other=0.0)
    c_here = tl.load(c + columns, mask=real_columns, other=0.0)
    total = x_here * a_here[None, :] + c_here[None, :]
    if HAS_Y:
        y_here = tl.load(y + rows[:, None] * y_stride + columns[None, :], mask=both, other=0.0).to(tl.float32)
        b_here = tl.load(b + columns, mask=real_columns, other=0.0)
        total += y_here * b_here[None, :]
    tl.store(out + rows[:, None] * num_columns + columns[None, :], total.to(out.dtype.element_ty), mask=both)


@jit
def weighted_sums(
    left, right, offsets, out, mass, p_size, q_size, left_stride, right_stride,
    ROWS: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """One tile of left^T right over the rows of one segment, out [B, P, Q], and of left's sums, [B, P]."""
    segment = tl.program_id(0)
    ps = tl.program_id(1) * P + tl.arange(0, P)
    qs = tl.program_id(2) * Q + tl.arange(0, Q)
    real_p, real_q = ps < p_size, qs < q_size
    first, last = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    total = tl.zeros([P, Q], tl.float32)  # of float32 by three products each of tf32, which is as good
    total_mass = tl.zeros([P], tl.float32)
    for start in range(first, last, ROWS):
        rows = start + tl.arange(0, ROWS)
        real = rows < last
        x_places = rows[None, :] * left_stride + ps[:, None]  # transposed as it is read: [P, ROWS]
        y_places = rows[:, None] * right_stride + qs[None, :]
        x = tl.load(left + x_places, mask=real_p[:, None] & real[None, :], other=0.0)
        y = tl.load(right + y_places, mask=real[:, None] & real_q[None, :], other=0.0)
        total = tl.dot(x, y, total, input_precision="tf32x3")
        total_mass += tl.sum(x.to(tl.float32), 1)
    place = segment.to(tl.int64) * p_size + ps
    both = real_p[:, None] & real_q[None, :]
    tl.store(out + place[:, None] * q_size + qs[None, :], total, mask=both)
    if tl.program_id(2) == 0:
        tl.store(mass + place, total_mass, mask=real_p)


@jit
def segment_rows(
    x, matrices, extra, offsets, out, p_size, q_size, x_stride, m_stride, mp_stride, mq_stride,
    HAS_EXTRA: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Some blocks of rows of a segment: x matrix + extra, for some columns, out [N, Q]."""
    segment, slot, num_slots = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    qs = tl.program_id(2) * Q + tl.arange(0, Q)
    real_q = qs < q_size
    first, last = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    matrix = matrices + segment.to(tl.int64) * m_stride
    if HAS_EXTRA:
        start_with = tl.load(extra + segment * q_size + qs, mask=real_q, other=0.0)
    else:
        start_with = tl.zeros([Q], tl.float32)
    for start in range(first + slot * ROWS, last, num_slots * ROWS):
        rows = start + tl.arange(0, ROWS)
        real = rows < last
        total = tl.zeros([ROWS, Q], tl.float32) + start_with[None, :]
        for first_p in range(0, p_size, P):
            ps = first_p + tl.arange(0, P)
            real_p = ps < p_size
            x_places = rows[:, None] * x_stride + ps[None, :]
            m_places = ps[:, None] * mp_stride + qs[None, :] * mq_stride
            part = tl.load(x + x_places, mask=real[:, None] & real_p[None, :], other=0.0)
            factor = tl.load(matrix + m_places, mask=real_p[:, None] & real_q[None, :], other=0.0)
            total = tl.dot(part, factor, total, input_precision="tf32x3")
        place = rows[:, None] * q_size + qs[None, :]
        tl.store(out + place, total.to(out.dtype.element_ty), mask=real[:, None] & real_q[None, :])
