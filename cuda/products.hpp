// Matrix products of a device through cuBLASLt.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "cuda/device_ops.hpp"

namespace cpstep {

/// What NVIDIA advises for Hopper.
inline constexpr std::size_t products_workspace_bytes = std::size_t{32} << 20;

/// Works on `stream`; `workspace` is device memory of products_workspace_bytes, aligned to 256,
/// that nothing else uses. Equal calls give equal bits.
std::unique_ptr<MatrixProducts> make_matrix_products(CUstream_st* stream, void* workspace);

/// "cuBLASLt 13.1.0", the version that runs.
std::string products_version();

}  // namespace cpstep
