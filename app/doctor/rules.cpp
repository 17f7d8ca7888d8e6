#include "app/doctor/rules.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "app/doctor/rule_kinds.hpp"

namespace cpstep::doctor {

Finding pass(std::string value) {
    return {.status = Status::pass, .value = std::move(value)};
}

Finding warn(std::string value, std::string fix) {
    return {.status = Status::warn, .value = std::move(value), .fix = std::move(fix)};
}

Finding fail(std::string value, std::string fix) {
    return {.status = Status::fail, .value = std::move(value), .fix = std::move(fix)};
}

Finding skip(std::string const& why) {
    return {.status = Status::skip, .value = why.empty() ? "not known" : why};
}

Finding skip_gpu(RankFacts const& rank, std::string const& why) {
    return skip(why.empty() ? rank.gpu.why : why);
}

std::string ranks_text(std::vector<int> const& ranks) {
    constexpr std::ptrdiff_t most = 8;
    std::vector<int> const first(ranks.begin(),
                                 ranks.begin() + std::min<std::ptrdiff_t>(std::ssize(ranks), most));
    return fmt::format(
        "rank{} {}{}", ranks.size() == 1 ? "" : "s", fmt::join(first, ","),
        std::ssize(ranks) > most ? fmt::format(" and {} more", std::ssize(ranks) - most) : "");
}

std::string common_value(std::vector<std::string> const& by_rank, std::string& listing) {
    std::map<std::string, std::vector<int>> ranks_of;
    for (std::size_t rank = 0; rank < by_rank.size(); ++rank) {
        ranks_of[by_rank[rank]].push_back(static_cast<int>(rank));
    }
    listing.clear();
    if (ranks_of.size() == 1) {
        return by_rank.front();
    }
    for (auto const& [value, ranks] : ranks_of) {
        listing += fmt::format("{}{} on {}", listing.empty() ? "" : "; ", value, ranks_text(ranks));
    }
    return "";
}

Finding joined(std::vector<Finding> const& by_rank) {
    auto const worst = std::ranges::max_element(by_rank, {}, &Finding::status);
    if (worst == by_rank.end()) {
        return skip("no ranks");
    }
    std::vector<int> alike;
    bool same = true;
    bool all_of_status = true;
    for (std::size_t rank = 0; rank < by_rank.size(); ++rank) {
        bool const equal =
            by_rank[rank].status == worst->status && by_rank[rank].value == worst->value;
        same = same && equal;
        all_of_status = all_of_status && by_rank[rank].status == worst->status;
        if (equal) {
            alike.push_back(static_cast<int>(rank));
        }
    }
    Finding finding = *worst;
    bool const unremarkable = worst->status <= Status::pass && all_of_status;
    if (!same) {
        finding.value += unremarkable ? fmt::format(" ({}; others alike)", ranks_text(alike))
                                      : fmt::format(" ({})", ranks_text(alike));
    }
    return finding;
}

std::vector<Row> judge(JobFacts const& job) {
    std::vector<Row> rows;
    auto const add = [&](std::span<Rule const> rules) {
        for (Rule const& rule : rules) {
            rows.push_back(
                {.check = rule.check, .wanted = rule.wanted, .finding = rule.judge(job)});
        }
    };
    add(gpu_rules());
    add(link_rules());
    add(host_rules());
    add(job_rules());
    for (Row& row : wire_rows(job.wires)) {
        rows.push_back(std::move(row));
    }
    return rows;
}

Status worst_of(std::vector<Row> const& rows) {
    Status worst = Status::skip;
    for (Row const& row : rows) {
        worst = std::max(worst, row.finding.status);
    }
    return worst;
}

char const* name_of(Status status) {
    switch (status) {
        case Status::pass:
            return "PASS";
        case Status::warn:
            return "WARN";
        case Status::fail:
            return "FAIL";
        case Status::skip:
            break;
    }
    return "SKIP";
}

}  // namespace cpstep::doctor
