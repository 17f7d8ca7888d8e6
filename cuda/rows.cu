// Copies, sums and gathers over rows: memory-bound, so packs of 16 bytes where the rows allow.
#include <cstdint>

#include "cuda/kernel.cuh"

namespace cpstep::device {
namespace {

/// Memory without gaps as one long row.
Tensor as_one_row(Tensor t) {
    return {t.data, t.dtype, 1, t.elements(), t.elements()};
}

/// dst = src, converted to nearest even. In one pack of the wider type 16 bytes.
template <class To, class From, int Lanes>
struct CopyPacks {
    static constexpr int lanes = Lanes;
    static constexpr int unroll = 4;
    using Loaded = Pack<From, lanes>;
    Matrix<To> dst;
    Matrix<From> src;

    __device__ Loaded load(std::int64_t row, std::int64_t col) const {
        return load_pack<lanes>(row_of(src, row) + col);
    }
    __device__ void store(std::int64_t row, std::int64_t col, Loaded const& values) const {
        if constexpr (std::is_same_v<To, From>) {
            store_pack(row_of(dst, row) + col, values);
        } else {
            store_pack(row_of(dst, row) + col, from_float<To>(to_float(values)));
        }
    }
};

/// dst += src.
template <class From, int Lanes>
struct AddPacks {
    static constexpr int lanes = Lanes;
    static constexpr int unroll = 4;
    struct Loaded {
        Pack<float, lanes> sum;
        Pack<From, lanes> term;
    };
    Matrix<float> dst;
    Matrix<From> src;

    __device__ Loaded load(std::int64_t row, std::int64_t col) const {
        return {load_pack<lanes>(row_of(dst, row) + col), load_pack<lanes>(row_of(src, row) + col)};
    }
    __device__ void store(std::int64_t row, std::int64_t col, Loaded const& loaded) const {
        Pack<float, lanes> sum = to_float(loaded.sum);
        add_to(sum, to_float(loaded.term));
        store_pack(row_of(dst, row) + col, from_float<float>(sum));
    }
};

/// dst_i = src[index_i].
template <class T, int Lanes>
struct GatherPacks {
    static constexpr int lanes = Lanes;
    static constexpr int unroll = 2;
    using Loaded = Pack<T, lanes>;
    Matrix<T> dst, src;
    Matrix<std::int32_t> index;

    __device__ Loaded load(std::int64_t row, std::int64_t col) const {
        return load_pack<lanes>(row_of(src, *row_of(index, row)) + col);
    }
    __device__ void store(std::int64_t row, std::int64_t col, Loaded const& values) const {
        store_pack(row_of(dst, row) + col, values);
    }
};

/// dst[index_i] += src_i. No index repeats, so no two threads meet.
template <class T, int Lanes>
struct ScatterAddPacks {
    static constexpr int lanes = Lanes;
    static constexpr int unroll = 2;
    struct Loaded {
        Pack<T, lanes> sum, term;
    };
    Matrix<T> dst, src;
    Matrix<std::int32_t> index;

    __device__ T* target(std::int64_t row, std::int64_t col) const {
        return row_of(dst, *row_of(index, row)) + col;
    }
    __device__ Loaded load(std::int64_t row, std::int64_t col) const {
        return {load_pack<lanes>(target(row, col)), load_pack<lanes>(row_of(src, row) + col)};
    }
    __device__ void store(std::int64_t row, std::int64_t col, Loaded const& loaded) const {
        Pack<float, lanes> sum = to_float(loaded.sum);
        add_to(sum, to_float(loaded.term));
        store_pack(target(row, col), from_float<T>(sum));
    }
};

template <class To, class From>
void copy_packs(Device const& d, Tensor dst, Tensor src) {
    constexpr int widest = std::min(wide<To>, wide<From>);
    with_lanes<widest>({dst, src}, [&](auto lanes) {
        CopyPacks<To, From, lanes.value> const op{
            {static_cast<To*>(dst.data), dst.rows, dst.cols, dst.stride},
            {static_cast<From*>(src.data), src.rows, src.cols, src.stride}};
        each_pack(d, dst.rows, dst.cols, op);
    });
}

/// Of rows with gaps: by a kernel of ours, since the runtime's 2-D copy is slow for short rows.
void copy_equal_types(Device const& d, Tensor dst, Tensor src) {
    if (dst.contiguous() && src.contiguous()) {
        CUDA_CHECK(
            cudaMemcpyAsync(dst.data, src.data, dst.bytes(), cudaMemcpyDeviceToDevice, d.stream));
    } else if (element_bytes(dst.dtype) == 2) {
        copy_packs<bf16, bf16>(d, dst, src);
    } else {
        copy_packs<float, float>(d, dst, src);  // moves 4 bytes, whatever they mean
    }
}

}  // namespace

void copy(Device const& d, Tensor dst, Tensor src) {
    require(same_shape(dst, src), ExitCode::internal, "copy: dst is {} x {}, src {} x {}", dst.rows,
            dst.cols, src.rows, src.cols);
    if (dst.elements() == 0) {
        return;
    }
    if (dst.dtype == src.dtype) {
        copy_equal_types(d, dst, src);
        return;
    }
    require(dst.dtype != DType::i32 && src.dtype != DType::i32, ExitCode::internal,
            "copy: integers are not converted");
    if (dst.contiguous() && src.contiguous()) {
        dst = as_one_row(dst);
        src = as_one_row(src);
    }
    if (dst.dtype == DType::bf16) {
        copy_packs<bf16, float>(d, dst, src);
    } else {
        copy_packs<float, bf16>(d, dst, src);
    }
}

void zero(Device const& d, Tensor dst) {
    if (dst.elements() == 0) {
        return;
    }
    if (dst.contiguous()) {
        CUDA_CHECK(cudaMemsetAsync(dst.data, 0, dst.bytes(), d.stream));
        return;
    }
    std::size_t const bytes = element_bytes(dst.dtype);
    CUDA_CHECK(cudaMemset2DAsync(dst.data, static_cast<std::size_t>(dst.stride) * bytes, 0,
                                 static_cast<std::size_t>(dst.cols) * bytes,
                                 static_cast<std::size_t>(dst.rows), d.stream));
}

void add(Device const& d, Tensor dst, Tensor src) {
    require(same_shape(dst, src) && dst.dtype == DType::f32, ExitCode::internal,
            "add: dst is {} x {}, src {} x {}, or dst is not f32", dst.rows, dst.cols, src.rows,
            src.cols);
    if (dst.contiguous() && src.contiguous()) {
        dst = as_one_row(dst);
        src = as_one_row(src);
    }
    with_type(src.dtype, [&](auto type) {
        using From = decltype(type);
        with_lanes<wide<float>>({dst, src}, [&](auto lanes) {
            AddPacks<From, lanes.value> const op{dst.as<float>(), src.as<From>()};
            each_pack(d, dst.rows, dst.cols, op);
        });
    });
}

void gather_rows(Device const& d, Tensor dst, Tensor src, Tensor index) {
    check_gather_rows(dst, src, index);
    with_type(dst.dtype, [&](auto type) {
        using T = decltype(type);
        with_lanes<wide<T>>({dst, src}, [&](auto lanes) {
            GatherPacks<T, lanes.value> const op{dst.as<T>(), src.as<T>(),
                                                 index.as<std::int32_t>()};
            each_pack(d, dst.rows, dst.cols, op);
        });
    });
}

void scatter_add_rows(Device const& d, Tensor dst, Tensor src, Tensor index) {
    check_scatter_add_rows(dst, src, index);
    with_type(dst.dtype, [&](auto type) {
        using T = decltype(type);
        with_lanes<wide<T>>({dst, src}, [&](auto lanes) {
            ScatterAddPacks<T, lanes.value> const op{dst.as<T>(), src.as<T>(),
                                                     index.as<std::int32_t>()};
            each_pack(d, src.rows, src.cols, op);
        });
    });
}

}  // namespace cpstep::device
