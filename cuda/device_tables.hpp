// Small tables that kernels read, such as which rows a block works on.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/device_ops.hpp"

namespace cpstep {

/// The last tables in device memory: the layers of a model and its passes ask for the same few.
class DeviceTables final : public Tables {
  public:
    explicit DeviceTables(Scratch& scratch, CUstream_st* stream)
        : scratch_(scratch), stream_(stream) {}
    std::int32_t* put(std::span<std::int32_t const> words) override;

  private:
    struct Table {
        std::vector<std::int32_t> words;
        std::int32_t* data = nullptr;
        std::uint64_t last_use = 0;
    };
    Scratch& scratch_;
    CUstream_st* stream_;
    std::array<Table, 16> tables_;
    std::uint64_t uses_ = 0;
};

}  // namespace cpstep
