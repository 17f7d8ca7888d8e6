// Private to the rules: how findings are made and joined over ranks.
#pragma once

#include <string>
#include <vector>

#include "app/doctor/rules.hpp"

namespace cpstep::doctor {

Finding pass(std::string value);
Finding warn(std::string value, std::string fix);
Finding fail(std::string value, std::string fix);
Finding skip(std::string const& why);
/// A fact about a rank's GPU is not known: why, or why there is no GPU.
Finding skip_gpu(RankFacts const& rank, std::string const& why);

/// The worst of all ranks' findings.
Finding joined(std::vector<Finding> const& by_rank);

template <Finding (*of_rank)(RankFacts const&)>
Finding over_ranks(JobFacts const& job) {
    std::vector<Finding> findings;
    for (RankFacts const& rank : job.ranks) {
        findings.push_back(of_rank(rank));
    }
    return joined(findings);
}

/// The one value that all ranks have, or "" with `listing` = "550.54 on ranks 0,1; 535.1 on rank
/// 2".
std::string common_value(std::vector<std::string> const& by_rank, std::string& listing);

/// "rank 3", "ranks 0,2,3", "ranks 0,1,2 and 61 more".
std::string ranks_text(std::vector<int> const& ranks);

inline constexpr char const* parity_only = "such a run can prove parity; its times do not count";

}  // namespace cpstep::doctor
