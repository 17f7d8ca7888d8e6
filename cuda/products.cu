// c = op(a) op(b) + beta c + bias, row-major, through cuBLASLt, which is column-major: a row-major
// matrix is its transpose there, so cuBLASLt is asked for c^T = op(b)^T op(a)^T.
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <map>
#include <tuple>
#include <utility>

#include "cuda/kernel.cuh"
#include "cuda/products.hpp"

namespace cpstep {
namespace {

void check_blas(cublasStatus_t status, char const* call) {
    if (status == CUBLAS_STATUS_SUCCESS) {
        return;
    }
    std::string const name(call);
    ExitCode const code =
        status == CUBLAS_STATUS_NOT_INITIALIZED || status == CUBLAS_STATUS_ARCH_MISMATCH
            ? ExitCode::environment
            : ExitCode::internal;
    fail(code, "{}: {}", name.substr(0, name.find('(')), cublasLtGetStatusString(status));
}
#define BLAS_CHECK(call) check_blas((call), #call)

cudaDataType_t blas_type(DType dtype) {
    return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

/// A matrix as cuBLASLt sees it: `rows` lie side by side.
struct Operand {
    DType dtype = DType::f32;
    std::int64_t rows = 0;
    std::int64_t cols = 0;
    std::int64_t leading = 0;
    std::int64_t alignment = 0;  ///< of its first element, at most 256 bytes, where cuBLASLt stops

    auto key() const { return std::tuple(dtype, rows, cols, leading, alignment); }
};

std::int64_t alignment_of(void const* pointer) {
    auto const address = reinterpret_cast<std::uintptr_t>(pointer) | 256U;
    return std::int64_t{1} << std::countr_zero(address);
}

Operand operand(Tensor t) {
    return {t.dtype, t.cols, t.rows, t.rows > 1 ? t.stride : std::max(t.stride, t.cols),
            alignment_of(t.data)};
}

/// All that the choice of an algorithm depends on.
struct Problem {
    Operand a, b, c;
    bool transpose_a = false;
    bool transpose_b = false;
    bool add = false;
    std::int64_t bias_alignment = 0;  ///< 0: no bias

    auto key() const {
        return std::tuple(a.key(), b.key(), c.key(), transpose_a, transpose_b, add, bias_alignment);
    }
};

/// The descriptors of a problem and the algorithm chosen for it.
struct Plan {
    cublasLtMatmulDescOpaque_t product{};
    cublasLtMatrixLayoutOpaque_t a{}, b{}, c{};
    cublasLtMatmulAlgo_t algorithm{};
    bool found = false;  ///< false: cuBLASLt has none, as for some addresses that are not aligned
};

void set_layout(cublasLtMatrixLayoutOpaque_t& layout, Operand const& operand) {
    BLAS_CHECK(cublasLtMatrixLayoutInit(&layout, blas_type(operand.dtype),
                                        static_cast<std::uint64_t>(operand.rows),
                                        static_cast<std::uint64_t>(operand.cols), operand.leading));
}

template <class T>
void set(cublasLtMatmulDescOpaque_t& product, cublasLtMatmulDescAttributes_t attribute, T value) {
    BLAS_CHECK(cublasLtMatmulDescSetAttribute(&product, attribute, &value, sizeof(value)));
}

template <class T>
void set(cublasLtMatmulPreferenceOpaque_t& preference,
         cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)));
}

/// CUBLAS_COMPUTE_32F: float operands stay float (TF32 has a compute type of its own).
void describe(Problem const& problem, void const* bias, Plan& plan) {
    BLAS_CHECK(cublasLtMatmulDescInit(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    auto const operation = [](bool transpose) { return transpose ? CUBLAS_OP_T : CUBLAS_OP_N; };
    set(plan.product, CUBLASLT_MATMUL_DESC_TRANSA, operation(problem.transpose_b));
    set(plan.product, CUBLASLT_MATMUL_DESC_TRANSB, operation(problem.transpose_a));
    if (problem.bias_alignment > 0) {
        set(plan.product, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
        set(plan.product, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, blas_type(problem.c.dtype));
        set(plan.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    }
    set_layout(plan.a, problem.b);
    set_layout(plan.b, problem.a);
    set_layout(plan.c, problem.c);
}

/// A sum over k that is split between blocks goes through the workspace in fp32 and is added up in
/// a fixed order; schemes that add in the output, or round to its type in between, are left out.
void choose_algorithm(cublasLtHandle_t handle, Problem const& problem, Plan& plan) {
    cublasLtMatmulPreferenceOpaque_t preference{};
    BLAS_CHECK(cublasLtMatmulPreferenceInit(&preference));
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
        static_cast<std::uint64_t>(products_workspace_bytes));
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    using Wanted = std::pair<cublasLtMatmulPreferenceAttributes_t, std::int64_t>;
    for (auto const& [attribute, alignment] :
         {Wanted{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, problem.b.alignment},
          Wanted{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, problem.a.alignment},
          Wanted{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, problem.c.alignment},
          Wanted{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, problem.c.alignment}}) {
        set(preference, attribute, static_cast<std::uint32_t>(alignment));
    }
    std::array<cublasLtMatmulHeuristicResult_t, 8> results{};
    int count = 0;
    cublasStatus_t const status = cublasLtMatmulAlgoGetHeuristic(
        handle, &plan.product, &plan.a, &plan.b, &plan.c, &plan.c, &preference,
        static_cast<int>(results.size()), results.data(), &count);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) {
        return;
    }
    BLAS_CHECK(status);
    for (int i = 0; i < count && !plan.found; ++i) {
        cublasLtMatmulHeuristicResult_t const& result = results[static_cast<std::size_t>(i)];
        plan.found = result.state == CUBLAS_STATUS_SUCCESS &&
                     result.workspaceSize <= products_workspace_bytes;
        plan.algorithm = result.algo;
    }
}

// The plain product: what cuBLASLt has no algorithm for, and products over no columns (k = 0). No
// size of a real model comes here.

constexpr unsigned plain_side = 16;  // 256 threads, neighbours read neighbouring columns of b

template <class T, class C>
struct PlainProduct {
    Matrix<C> c;
    T const* a;
    std::int64_t a_row, a_k;  // elements from one row, one k, to the next
    T const* b;
    std::int64_t b_k, b_column;
    std::int64_t k;
    bool add;
    C const* bias;  // or null
};

template <class T, class C>
__global__ void plain_product_kernel(PlainProduct<T, C> p) {
    std::int64_t const i = std::int64_t{blockIdx.x} * plain_side + threadIdx.y;
    std::int64_t const j = std::int64_t{blockIdx.y} * plain_side + threadIdx.x;
    if (i >= p.c.rows || j >= p.c.cols) {
        return;
    }
    float sum = 0;
    for (std::int64_t l = 0; l < p.k; ++l) {
        sum += device::to_float(p.a[i * p.a_row + l * p.a_k]) *
               device::to_float(p.b[l * p.b_k + j * p.b_column]);
    }
    C& result = *(p.c.data + i * p.c.stride + j);
    if (p.add) {
        sum += device::to_float(result);
    }
    if (p.bias != nullptr) {
        sum += device::to_float(p.bias[j]);
    }
    result = device::from_float<C>(sum);
}

template <class T, class C>
void plain_product(cudaStream_t stream, Tensor c, Tensor a, bool transpose_a, Tensor b,
                   bool transpose_b, bool add, Tensor bias) {
    PlainProduct<T, C> const p{.c = c.as<C>(),
                               .a = static_cast<T const*>(a.data),
                               .a_row = transpose_a ? 1 : a.stride,
                               .a_k = transpose_a ? a.stride : 1,
                               .b = static_cast<T const*>(b.data),
                               .b_k = transpose_b ? 1 : b.stride,
                               .b_column = transpose_b ? b.stride : 1,
                               .k = transpose_a ? a.rows : a.cols,
                               .add = add,
                               .bias = static_cast<C const*>(bias.data)};
    std::int64_t const across = device::ceil_div(c.cols, plain_side);
    require(across <= 65535, ExitCode::internal, "a plain product of {} columns is too wide",
            c.cols);
    dim3 const grid(static_cast<unsigned>(device::ceil_div(c.rows, plain_side)),
                    static_cast<unsigned>(across));
    plain_product_kernel<<<grid, dim3(plain_side, plain_side), 0, stream>>>(p);
    CUDA_CHECK(cudaGetLastError());
}

class BlasProducts final : public MatrixProducts {
  public:
    BlasProducts(cudaStream_t stream, void* workspace) : stream_(stream), workspace_(workspace) {
        BLAS_CHECK(cublasLtCreate(&handle_));
    }
    ~BlasProducts() override { (void)cublasLtDestroy(handle_); }

    void multiply(Tensor c, Tensor a, bool transpose_a, Tensor b, bool transpose_b, bool add,
                  Tensor bias) override {
        std::int64_t const k = transpose_a ? a.rows : a.cols;
        check(c, a, transpose_a, b, transpose_b, bias);
        if (c.rows == 0 || c.cols == 0 || (k == 0 && add && bias.absent())) {
            return;
        }
        if (k > 0) {
            Problem const problem{operand(a),
                                  operand(b),
                                  operand(c),
                                  transpose_a,
                                  transpose_b,
                                  add,
                                  bias.absent() ? 0 : alignment_of(bias.data)};
            Plan& plan = plan_of(problem, bias.data);
            if (plan.found) {
                run(plan, c, a, b, add, bias);
                return;
            }
        }
        device::with_type(a.dtype, [&]<class T>(T /*unused*/) {
            device::with_type(c.dtype, [&]<class C>(C /*unused*/) {
                plain_product<T, C>(stream_, c, a, transpose_a, b, transpose_b, add, bias);
            });
        });
    }

  private:
    static void check(Tensor c, Tensor a, bool transpose_a, Tensor b, bool transpose_b,
                      Tensor bias) {
        std::int64_t const m = transpose_a ? a.cols : a.rows;
        std::int64_t const k = transpose_a ? a.rows : a.cols;
        std::int64_t const n = transpose_b ? b.rows : b.cols;
        require((transpose_b ? b.cols : b.rows) == k && c.rows == m && c.cols == n &&
                    (bias.absent() || (bias.rows == 1 && bias.cols == n)),
                ExitCode::internal, "product: c is {} x {}, a {} x {}{}, b {} x {}{}, bias {} x {}",
                c.rows, c.cols, a.rows, a.cols, transpose_a ? " transposed" : "", b.rows, b.cols,
                transpose_b ? " transposed" : "", bias.rows, bias.cols);
        auto const computes = [](DType dtype) {
            return dtype == DType::f32 || dtype == DType::bf16;
        };
        require(computes(a.dtype) && a.dtype == b.dtype &&
                    (c.dtype == a.dtype || c.dtype == DType::f32) &&
                    (bias.absent() || bias.dtype == c.dtype),
                ExitCode::internal,
                "product: a and b are of one type, f32 or bf16, c of that or f32, bias as c");
    }

    Plan& plan_of(Problem const& problem, void const* bias) {
        auto const known = plans_.find(problem.key());
        if (known != plans_.end()) {
            return *known->second;
        }
        auto plan = std::make_unique<Plan>();
        describe(problem, bias, *plan);
        choose_algorithm(handle_, problem, *plan);
        return *plans_.emplace(problem.key(), std::move(plan)).first->second;
    }

    void run(Plan& plan, Tensor c, Tensor a, Tensor b, bool add, Tensor bias) {
        if (!bias.absent()) {
            set(plan.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                static_cast<void const*>(bias.data));
        }
        float const alpha = 1;
        float const beta = add ? 1 : 0;
        BLAS_CHECK(cublasLtMatmul(handle_, &plan.product, &alpha, b.data, &plan.a, a.data, &plan.b,
                                  &beta, c.data, &plan.c, c.data, &plan.c, &plan.algorithm,
                                  workspace_, products_workspace_bytes, stream_));
    }

    cudaStream_t stream_;
    void* workspace_;
    cublasLtHandle_t handle_ = nullptr;
    std::map<decltype(Problem().key()), std::unique_ptr<Plan>> plans_;
};

}  // namespace

std::unique_ptr<MatrixProducts> make_matrix_products(CUstream_st* stream, void* workspace) {
    return std::make_unique<BlasProducts>(stream, workspace);
}

std::string products_version() {
    std::size_t const version = cublasLtGetVersion();
    return fmt::format("cuBLASLt {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace cpstep
