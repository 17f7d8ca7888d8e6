#include "cuda/attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cuda/exp.hpp"
#include "cuda/fault.hpp"
#include "cuda/operands.hpp"
#include "cuda/tile.hpp"

// Each work item owns one tile of rows of one head and visits every segment that meets it in list
// order. No two items write the same element, so results do not depend on the thread count.

namespace cpstep {
namespace {

using namespace tiles;

template <class T>
constexpr T minus_infinity = -std::numeric_limits<T>::infinity();

template <class T>
struct ForwardScratch {
    explicit ForwardScratch(std::int64_t d)
        : q(tile_rows, d), k_t(d, tile_rows), v(tile_rows, d), p(1, tile_rows), o(tile_rows, d) {}

    TileBuffer<T> q, k_t, v, p, o;  // q scaled by 1/sqrt(D); o is not yet divided by `sum`
    T maximum[tile_rows];           // running max_j s_ij
    T sum[tile_rows];               // running sum_j exp(s_ij - maximum_i)
};

/// One row of the running softmax: adds the first `visible` keys of the loaded tile to row i.
template <class T>
void add_keys(ForwardScratch<T>& w, std::int64_t i, std::int64_t visible, std::int64_t head_dim) {
    std::int64_t const n = rounded_up(visible);
    std::int64_t const d = rounded_up(head_dim);
    T* const p = w.p.row(0);
    std::fill(p, p + n, T(0));
    add_products(p, w.q.row(i), w.k_t.row(0), w.k_t.stride(), head_dim, n);
    std::fill(p + visible, p + n, minus_infinity<T>);
    T maximum = w.maximum[i];
#pragma omp simd reduction(max : maximum)
    for (std::int64_t j = 0; j < n; ++j) {
        maximum = p[j] > maximum ? p[j] : maximum;
    }
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t j = 0; j < n; ++j) {
        p[j] = exp_inline(p[j] - maximum);
        sum += p[j];
    }
    T* const o = w.o.row(i);
    if (maximum != w.maximum[i]) {
        T const shrink = exp_inline(w.maximum[i] - maximum);
        w.maximum[i] = maximum;
        w.sum[i] *= shrink;
        std::transform(o, o + d, o, [shrink](T x) { return shrink * x; });
    }
    w.sum[i] += sum;
    add_products(o, p, w.v.row(0), w.v.stride(), visible, d);
}

/// Puts row i of the scratch into o and lse, or merges it with what is there.
template <class T>
void store_row(ForwardScratch<T>& w, std::int64_t i, T* o, T& lse, std::int64_t head_dim,
               Accumulate mode) {
    bool const no_key = w.maximum[i] == minus_infinity<T> && w.sum[i] == T(0);
    bool const first = mode == Accumulate::overwrite || lse == minus_infinity<T>;
    T const* const sum_v = w.o.row(i);
    if (no_key) {
        if (first) {
            std::fill(o, o + head_dim, T(0));
            lse = minus_infinity<T>;
        }
        return;
    }
    T const lse_new = w.maximum[i] + std::log(w.sum[i]);
    if (first) {
        T const scale = T(1) / w.sum[i];
        std::transform(sum_v, sum_v + head_dim, o, [scale](T x) { return scale * x; });
        lse = lse_new;
        return;
    }
    T const merged = std::max(lse, lse_new) + std::log1p(std::exp(-std::abs(lse - lse_new)));
    T const keep = planted(Fault::merge_without_rescale) ? T(1)
                   : planted(Fault::merge_wrong_sign)    ? std::exp(merged - lse)
                                                         : std::exp(lse - merged);
    T const scale = std::exp(lse_new - merged) / w.sum[i];
    for (std::int64_t d = 0; d < head_dim; ++d) {
        o[d] = keep * o[d] + scale * sum_v[d];
    }
    lse = merged;
}

template <class T>
void forward_part(ForwardScratch<T>& w, HeadRows<T> o, Matrix<T> lse, std::int64_t head,
                  HeadRows<T> q, HeadRows<T> k, HeadRows<T> v, Segment const& s, Range part,
                  Accumulate mode) {
    std::int64_t const d = q.head_dim;
    load_rows(w.q, q, s.q_row + part.begin, part.count, T(1) / std::sqrt(static_cast<T>(d)));
    w.o.zero();
    std::fill(w.maximum, w.maximum + tile_rows, minus_infinity<T>);
    std::fill(w.sum, w.sum + tile_rows, T(0));
    std::int64_t const keys = visible_keys(s, part.begin + part.count - 1);
    for (std::int64_t key = 0; key < keys; key += tile_rows) {
        std::int64_t const count = std::min(tile_rows, keys - key);
        load_transposed(w.k_t, k, s.kv_row + key, count);
        load_rows(w.v, v, s.kv_row + key, count);
        for (std::int64_t i = 0; i < part.count; ++i) {
            std::int64_t const visible = visible_keys(s, part.begin + i) - key;
            if (visible > 0) {
                add_keys(w, i, std::min(visible, count), d);
            }
        }
    }
    for (std::int64_t i = 0; i < part.count; ++i) {
        std::int64_t const row = s.q_row + part.begin + i;
        store_row(w, i, o.row(row), lse.row(row)[head], d, mode);
    }
}

template <class T>
struct BackwardScratch {
    explicit BackwardScratch(std::int64_t d)
        : q(tile_rows, d),
          d_o(tile_rows, d),
          k(tile_rows, d),
          v(tile_rows, d),
          a_t(d, tile_rows),
          b_t(d, tile_rows),
          p(1, tile_rows),
          ds(1, tile_rows),
          da(tile_rows, d),
          db(tile_rows, d) {}

    TileBuffer<T> q, d_o, k, v;  // tiles as stored; q scaled by 1/sqrt(D)
    TileBuffer<T> a_t, b_t;      // k and v transposed for dq; q and do transposed for dk and dv
    TileBuffer<T> p, ds;         // one row (dq) or one column (dk, dv) of the tile
    TileBuffer<T> da, db;        // dq, or dk and dv
    T lse[tile_rows] = {};
    T delta[tile_rows] = {};
};

/// What the backward items read.
template <class T>
struct BackwardInput {
    Matrix<T> q, k, v, o, d_o, lse;
    HeadShape shape;
    std::span<Segment const> segments;
    T scale;               // 1 / sqrt(D)
    std::vector<T> delta;  // (S, H) do_i . o_i, filled by the dq items, read by those of dk and dv
};

/// Adds the first `visible` keys of the loaded tile to dq of row i.
template <class T>
void add_keys(BackwardScratch<T>& w, std::int64_t i, std::int64_t visible, std::int64_t head_dim) {
    std::int64_t const d = rounded_up(head_dim);
    std::int64_t const n = rounded_up(visible);
    T* const p = w.p.row(0);
    T* const ds = w.ds.row(0);
    T const lse = w.lse[i];
    T const delta = w.delta[i];
    std::fill(p, p + n, T(0));
    std::fill(ds, ds + n, T(0));
    add_products(p, w.q.row(i), w.a_t.row(0), w.a_t.stride(), head_dim, n);
    add_products(ds, w.d_o.row(i), w.b_t.row(0), w.b_t.stride(), head_dim, n);
#pragma omp simd
    for (std::int64_t j = 0; j < n; ++j) {
        ds[j] = exp_inline(p[j] - lse) * (ds[j] - delta);
    }
    add_products(w.da.row(i), ds, w.k.row(0), w.k.stride(), visible, d);
}

/// dq of one head for the queries `part` of a segment.
template <class T>
void backward_queries(BackwardScratch<T>& w, BackwardInput<T>& in, Matrix<T> dq, std::int64_t head,
                      Segment const& s, Range part) {
    std::int64_t const head_dim = in.shape.head_dim;
    std::int64_t const kv_head = head / (in.shape.heads / in.shape.kv_heads);
    std::int64_t const q_row = s.q_row + part.begin;
    HeadRows<T> const o = head_rows(in.o, head, head_dim);
    load_rows(w.q, head_rows(in.q, head, head_dim), q_row, part.count, in.scale);
    load_rows(w.d_o, head_rows(in.d_o, head, head_dim), q_row, part.count);
    w.da.zero();
    for (std::int64_t i = 0; i < part.count; ++i) {
        T const* const d_o = w.d_o.row(i);
        T sum = 0;
        for (std::int64_t c = 0; c < head_dim; ++c) {
            sum += d_o[c] * o.row(q_row + i)[c];
        }
        w.lse[i] = in.lse.row(q_row + i)[head];
        w.delta[i] = sum;
        in.delta[static_cast<std::size_t>((q_row + i) * in.shape.heads + head)] = sum;
    }
    std::int64_t const keys = visible_keys(s, part.begin + part.count - 1);
    for (std::int64_t key = 0; key < keys; key += tile_rows) {
        std::int64_t const count = std::min(tile_rows, keys - key);
        load_rows(w.k, head_rows(in.k, kv_head, head_dim), s.kv_row + key, count);
        load_transposed(w.a_t, head_rows(in.k, kv_head, head_dim), s.kv_row + key, count);
        load_transposed(w.b_t, head_rows(in.v, kv_head, head_dim), s.kv_row + key, count);
        for (std::int64_t i = 0; i < part.count; ++i) {
            std::int64_t const visible = visible_keys(s, part.begin + i) - key;
            if (visible > 0) {
                add_keys(w, i, std::min(visible, count), head_dim);
            }
        }
    }
    for (std::int64_t i = 0; i < part.count; ++i) {
        T* const to = head_rows(dq, head, head_dim).row(q_row + i);
        for (std::int64_t c = 0; c < head_dim; ++c) {
            to[c] += in.scale * w.da.row(i)[c];
        }
    }
}

/// Adds queries [seen_from, count) of the loaded tile to dk and dv of row j of the loaded keys.
template <class T>
void add_queries(BackwardScratch<T>& w, std::int64_t j, std::int64_t seen_from, std::int64_t count,
                 std::int64_t head_dim) {
    std::int64_t const d = rounded_up(head_dim);
    std::int64_t const begin = seen_from / lanes * lanes;
    std::int64_t const n = rounded_up(count) - begin;
    T* const p = w.p.row(0) + begin;
    T* const ds = w.ds.row(0) + begin;
    T const* const lse = w.lse + begin;
    T const* const delta = w.delta + begin;
    std::fill(p, p + n, T(0));
    std::fill(ds, ds + n, T(0));
    add_products(p, w.k.row(j), w.a_t.row(0) + begin, w.a_t.stride(), head_dim, n);
    add_products(ds, w.v.row(j), w.b_t.row(0) + begin, w.b_t.stride(), head_dim, n);
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
        p[i] = exp_inline(p[i] - lse[i]);
        ds[i] = p[i] * (ds[i] - delta[i]);
    }
    std::int64_t const skip = seen_from - begin;
    std::int64_t const terms = count - seen_from;
    add_products(w.db.row(j), p + skip, w.d_o.row(seen_from), w.d_o.stride(), terms, d);
    add_products(w.da.row(j), ds + skip, w.q.row(seen_from), w.q.stride(), terms, d);
}

/// dk and dv of one key/value head for the keys `part` of a segment.
template <class T>
void backward_keys(BackwardScratch<T>& w, BackwardInput<T> const& in, Matrix<T> dk, Matrix<T> dv,
                   std::int64_t kv_head, Segment const& s, Range part) {
    std::int64_t const head_dim = in.shape.head_dim;
    std::int64_t const group = in.shape.heads / in.shape.kv_heads;
    load_rows(w.k, head_rows(in.k, kv_head, head_dim), s.kv_row + part.begin, part.count);
    load_rows(w.v, head_rows(in.v, kv_head, head_dim), s.kv_row + part.begin, part.count);
    w.da.zero();
    w.db.zero();
    std::int64_t const first = std::max<std::int64_t>(part.begin - s.diagonal, 0);
    for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        HeadRows<T> const q = head_rows(in.q, head, head_dim);
        HeadRows<T> const d_o = head_rows(in.d_o, head, head_dim);
        for (std::int64_t query = first; query < s.q_rows; query += tile_rows) {
            std::int64_t const row = s.q_row + query;
            std::int64_t const count = std::min(tile_rows, s.q_rows - query);
            load_rows(w.q, q, row, count, in.scale);
            load_rows(w.d_o, d_o, row, count);
            load_transposed(w.a_t, q, row, count, in.scale);
            load_transposed(w.b_t, d_o, row, count);
            for (std::int64_t i = 0; i < count; ++i) {
                w.lse[i] = in.lse.row(row + i)[head];
                w.delta[i] = in.delta[static_cast<std::size_t>((row + i) * in.shape.heads + head)];
            }
            for (std::int64_t j = 0; j < part.count; ++j) {
                std::int64_t const seen_from =
                    std::max<std::int64_t>(part.begin + j - s.diagonal - query, 0);
                if (seen_from < count) {
                    add_queries(w, j, seen_from, count, head_dim);
                }
            }
        }
    }
    for (std::int64_t j = 0; j < part.count; ++j) {
        T* const to_k = head_rows(dk, kv_head, head_dim).row(s.kv_row + part.begin + j);
        T* const to_v = head_rows(dv, kv_head, head_dim).row(s.kv_row + part.begin + j);
        for (std::int64_t c = 0; c < head_dim; ++c) {
            to_k[c] += w.da.row(j)[c];
            to_v[c] += w.db.row(j)[c];
        }
    }
}

std::int64_t tiles_of(std::int64_t rows) {
    return (rows + tile_rows - 1) / tile_rows;
}

}  // namespace

template <class T>
void attention_forward(Matrix<T> o, Matrix<T> lse, Matrix<T> q, Matrix<T> k, Matrix<T> v,
                       HeadShape shape, std::span<Segment const> segments, Accumulate mode) {
    check_attention_shapes(lse, q, k, v, shape, segments);
    require(o.rows == q.rows && o.cols == q.cols, ExitCode::internal,
            "attention: o ({},{}) for q ({},{})", o.rows, o.cols, q.rows, q.cols);
    std::int64_t const d = shape.head_dim;
    std::int64_t const items = tiles_of(q.rows) * shape.heads;
#pragma omp parallel
    {
        ForwardScratch<T> scratch(d);
#pragma omp for schedule(dynamic)
        for (std::int64_t item = items - 1; item >= 0; --item) {  // causal: the last rows cost most
            std::int64_t const head = item % shape.heads;
            std::int64_t const kv_head = head / (shape.heads / shape.kv_heads);
            for (Segment const& s : segments) {
                Range const part = tile_part(item / shape.heads, s.q_row, s.q_rows);
                if (part.count > 0) {
                    forward_part(scratch, head_rows(o, head, d), lse, head, head_rows(q, head, d),
                                 head_rows(k, kv_head, d), head_rows(v, kv_head, d), s, part, mode);
                }
            }
        }
    }
}

template <class T>
void attention_backward(Matrix<T> dq, Matrix<T> dk, Matrix<T> dv, Matrix<T> q, Matrix<T> k,
                        Matrix<T> v, Matrix<T> o, Matrix<T> d_o, Matrix<T> lse, HeadShape shape,
                        std::span<Segment const> segments) {
    check_attention_shapes(lse, q, k, v, shape, segments);
    check_attention_shapes(lse, dq, dk, dv, shape, segments);
    require(o.rows == q.rows && o.cols == q.cols && d_o.rows == q.rows && d_o.cols == q.cols,
            ExitCode::internal, "attention: o ({},{}) do ({},{}) for q ({},{})", o.rows, o.cols,
            d_o.rows, d_o.cols, q.rows, q.cols);
    BackwardInput<T> in{q,
                        k,
                        v,
                        o,
                        d_o,
                        lse,
                        shape,
                        segments,
                        T(1) / std::sqrt(static_cast<T>(shape.head_dim)),
                        std::vector<T>(static_cast<std::size_t>(q.rows * shape.heads))};
    std::int64_t const query_items = tiles_of(q.rows) * shape.heads;
    std::int64_t const key_items = tiles_of(k.rows) * shape.kv_heads;
#pragma omp parallel
    {
        BackwardScratch<T> scratch(shape.head_dim);
#pragma omp for schedule(dynamic)
        for (std::int64_t item = query_items - 1; item >= 0; --item) {
            for (Segment const& s : segments) {
                Range const part = tile_part(item / shape.heads, s.q_row, s.q_rows);
                if (part.count > 0) {
                    backward_queries(scratch, in, dq, item % shape.heads, s, part);
                }
            }
        }
#pragma omp for schedule(dynamic)
        for (std::int64_t item = 0; item < key_items; ++item) {  // causal: the first keys cost most
            for (Segment const& s : segments) {
                Range const part = tile_part(item / shape.kv_heads, s.kv_row, s.kv_rows);
                if (part.count > 0) {
                    backward_keys(scratch, in, dk, dv, item % shape.kv_heads, s, part);
                }
            }
        }
    }
}

template void attention_forward(Matrix<float>, Matrix<float>, Matrix<float>, Matrix<float>,
                                Matrix<float>, HeadShape, std::span<Segment const>, Accumulate);
template void attention_forward(Matrix<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                                Matrix<double>, HeadShape, std::span<Segment const>, Accumulate);
template void attention_backward(Matrix<float>, Matrix<float>, Matrix<float>, Matrix<float>,
                                 Matrix<float>, Matrix<float>, Matrix<float>, Matrix<float>,
                                 Matrix<float>, HeadShape, std::span<Segment const>);
template void attention_backward(Matrix<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                                 Matrix<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                                 Matrix<double>, HeadShape, std::span<Segment const>);

}  // namespace cpstep
