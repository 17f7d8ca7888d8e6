// Where the time of a variant's steps goes.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "app/analysis/run_data.hpp"
#include "app/statistics.hpp"

namespace cpstep {

inline constexpr double not_known = std::numeric_limits<double>::quiet_NaN();

/// Over ranks, of each rank's median over steps.
struct Spread {
    double low = not_known, mid = not_known, high = not_known;
};

/// Of one value a rank; all NaN of none.
Spread spread_of(std::vector<double> const& values);

/// Seconds unless said otherwise; NaN is not known.
struct VariantTimes {
    std::string name;
    bool timed = false;  ///< else of verification and warm-up steps, which are not compared
    std::int64_t steps = 0;
    double median = not_known, low = not_known, p5 = not_known, p95 = not_known;
    RatioEstimate ratio;  ///< to the first variant, over blocks both have; no blocks: none
    Spread compute, comm, exposed, wait, idle;
    Spread overlap;                ///< of comm, the share under compute, 0 to 1
    double imbalance = not_known;  ///< largest over mean compute of a step's ranks, its median
    int slowest_rank = -1;         ///< the rank that most often computed longest in a step
    double slowest_share = 0;      ///< in this share of steps
    double bytes = 0;              ///< of calls, a rank and step
    double bus_gb_s = not_known;   ///< bytes that must cross the wire over comm
};

/// One a variant that ran. Steps without a trace give times, but no parts.
std::vector<VariantTimes> variant_times(RunData const& run);

/// Seconds of the steps of a variant; of verification and warm-up where none was timed.
std::vector<double> step_seconds(RunData const& run, std::string const& variant);

/// log(mean of `name` / mean of `base`) of each block that is complete in both.
std::vector<double> block_log_ratios(RunData const& run, std::string const& name,
                                     std::string const& base);

/// The step whose time is next to its variant's median; of the last variant that communicates, else
/// the last.
std::uint32_t typical_step(RunData const& run);

/// Row of every RankData::steps that holds this step. Error(usage) names the steps there are.
std::size_t row_of_step(RunData const& run, std::uint32_t step);

}  // namespace cpstep
