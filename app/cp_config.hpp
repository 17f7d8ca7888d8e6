// How one variant shares sequences among the ranks of a context-parallel group.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace cpstep {

/// What moves so that every query meets its keys (--cp-comm-type, the trainer's names).
enum class CpMethod : std::uint8_t { p2p, all_gather, a2a, a2a_p2p };
inline constexpr std::array<std::string_view, 4> cp_method_names{"p2p", "all_gather", "a2a",
                                                                 "a2a+p2p"};

/// Which rows of a sequence a rank owns (--cp-layout).
enum class CpLayout : std::uint8_t { zigzag, contiguous };
inline constexpr std::array<std::string_view, 2> cp_layout_names{"zigzag", "contiguous"};

/// How the loss learns what other ranks' tokens say (--cp-loss-comm).
enum class LossComm : std::uint8_t { scalar, padded, gather };
inline constexpr std::array<std::string_view, 3> loss_comm_names{"scalar", "padded", "gather"};

constexpr std::string_view name_of(CpMethod method) {
    return cp_method_names[static_cast<std::size_t>(method)];
}
constexpr std::string_view name_of(CpLayout layout) {
    return cp_layout_names[static_cast<std::size_t>(layout)];
}
constexpr std::string_view name_of(LossComm loss) {
    return loss_comm_names[static_cast<std::size_t>(loss)];
}

struct CpConfig {
    int size = 1;
    CpMethod method = CpMethod::p2p;
    CpLayout layout = CpLayout::zigzag;
    LossComm loss = LossComm::scalar;
    /// Adjacent ranks that scatter heads among each other: `size` for a2a, a divisor of it for
    /// a2a+p2p, else 1.
    int a2a = 1;

    friend bool operator==(CpConfig const&, CpConfig const&) = default;
};

}  // namespace cpstep
