// The bugs that --self-test plants, where each one shows, and what it takes to see it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "app/cp_config.hpp"
#include "cuda/fault.hpp"

namespace cpstep {

/// The loss a fault is looked for with: gspo or token-level grpo, both with OPSM, KL, entropy and
/// whitening.
enum class ProbeLoss : std::uint8_t { gspo, grpo };

/// What must be there for a fault to change anything.
enum class Needs : std::uint8_t {
    nothing,
    three_ranks,
    masked_tokens,      ///< response tokens that do not count
    split_response,     ///< a sample whose counting response rows lie on two ranks or more
    rank_without_rows,  ///< a micro-batch of which some rank has no response row
};

struct FaultSpec {
    Fault fault;
    std::string_view name;
    std::string_view what;  ///< the bug in a few words
    CpMethod method = CpMethod::p2p;
    LossComm loss = LossComm::scalar;
    ProbeLoss probe = ProbeLoss::gspo;
    Needs needs = Needs::nothing;
};

/// Every fault but Fault::none, once, in the order of the report; those after which a wire cannot
/// be used again stand last.
std::span<FaultSpec const> fault_table();

}  // namespace cpstep
