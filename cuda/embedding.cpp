// Rows read and added through an index: token embedding, and the gather of response rows.
#include <algorithm>
#include <cstdint>

#include "cuda/layers.hpp"
#include "cuda/operands.hpp"
#include "cuda/shape.hpp"

namespace cpstep {
namespace {

/// Checked before the loops: an exception must not leave a parallel region.
void check_index(Matrix<std::int32_t> index, std::int64_t limit, ExitCode code, char const* what) {
    for (std::int64_t i = 0; i < index.rows; ++i) {
        std::int32_t const at = *index.row(i);
        require(at >= 0 && at < limit, code, "{} {} at row {} is outside [0, {})", what, at, i,
                limit);
    }
}

/// dst_i = src[index_i].
template <class T>
void read_rows(Matrix<T> dst, Matrix<T> src, Matrix<std::int32_t> index) {
#pragma omp parallel for schedule(static) if (dst.rows * dst.cols >= parallel_elements)
    for (std::int64_t i = 0; i < dst.rows; ++i) {
        std::copy_n(src.row(*index.row(i)), dst.cols, dst.row(i));
    }
}

/// dst[index_i] += src_i, in the order of i for every element: indices may repeat.
template <class T>
void add_rows(Matrix<T> dst, Matrix<T> src, Matrix<std::int32_t> index) {
#pragma omp parallel for schedule(static) if (src.rows * src.cols >= parallel_elements)
    for (std::int64_t begin = 0; begin < src.cols; begin += column_block) {
        std::int64_t const end = std::min(begin + column_block, src.cols);
        for (std::int64_t i = 0; i < src.rows; ++i) {
            T* const to = dst.row(*index.row(i));
            T const* const from = src.row(i);
            for (std::int64_t c = begin; c < end; ++c) {
                to[c] += from[c];
            }
        }
    }
}

}  // namespace

template <class T>
void embedding_forward(Matrix<T> x, Matrix<T> table, Matrix<std::int32_t> ids) {
    check_embedding_forward(x, table, ids);
    check_index(ids, table.rows, ExitCode::input_data, "token id");
    read_rows(x, table, ids);
}

template <class T>
void embedding_backward(Matrix<T> dtable, Matrix<T> dx, Matrix<std::int32_t> ids) {
    check_embedding_backward(dtable, dx, ids);
    check_index(ids, dtable.rows, ExitCode::input_data, "token id");
    add_rows(dtable, dx, ids);
}

template <class T>
void gather_rows(Matrix<T> dst, Matrix<T> src, Matrix<std::int32_t> index) {
    check_gather_rows(dst, src, index);
    check_index(index, src.rows, ExitCode::internal, "gather_rows: index");
    read_rows(dst, src, index);
}

template <class T>
void scatter_add_rows(Matrix<T> dst, Matrix<T> src, Matrix<std::int32_t> index) {
    check_scatter_add_rows(dst, src, index);
    check_index(index, dst.rows, ExitCode::internal, "scatter_add_rows: index");
    add_rows(dst, src, index);
}

template void embedding_forward(Matrix<float>, Matrix<float>, Matrix<std::int32_t>);
template void embedding_forward(Matrix<double>, Matrix<double>, Matrix<std::int32_t>);
template void embedding_backward(Matrix<float>, Matrix<float>, Matrix<std::int32_t>);
template void embedding_backward(Matrix<double>, Matrix<double>, Matrix<std::int32_t>);
template void gather_rows(Matrix<float>, Matrix<float>, Matrix<std::int32_t>);
template void gather_rows(Matrix<double>, Matrix<double>, Matrix<std::int32_t>);
template void scatter_add_rows(Matrix<float>, Matrix<float>, Matrix<std::int32_t>);
template void scatter_add_rows(Matrix<double>, Matrix<double>, Matrix<std::int32_t>);

}  // namespace cpstep
