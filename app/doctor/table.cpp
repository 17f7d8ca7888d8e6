#include "app/doctor/table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>

namespace cpstep::doctor {
namespace {

int count_of(std::vector<Row> const& rows, Status status) {
    return static_cast<int>(
        std::ranges::count_if(rows, [&](Row const& row) { return row.finding.status == status; }));
}

std::string verdict_line(std::vector<Row> const& rows) {
    int const failed = count_of(rows, Status::fail);
    return fmt::format("{} passed, {} warned, {} failed, {} skipped: {}\n",
                       count_of(rows, Status::pass), count_of(rows, Status::warn), failed,
                       count_of(rows, Status::skip),
                       failed > 0 ? "not ready (exit 3)" : "ready (exit 0)");
}

char peer_letter(PeerCopy const& copy) {
    if (!copy.wrong_bytes.known() || *copy.wrong_bytes.value > 0) {
        return '!';
    }
    return copy.readable ? 'd' : 'h';
}

/// A line a source device, a column a target: of the first rank of each host.
void add_peer_matrix(std::string& out, RankFacts const& rank) {
    auto const to = std::back_inserter(out);
    fmt::format_to(to, "\npeers of {} (d direct, h through the host, ! wrong or failed)\n",
                   rank.host);
    for (int from = 0; from < rank.gpu.visible; ++from) {
        fmt::format_to(to, "  GPU {:<2}", from);
        for (int target = 0; target < rank.gpu.visible; ++target) {
            auto const pair = std::ranges::find_if(rank.peers, [&](PeerFacts const& peer) {
                return peer.copy.from == from && peer.copy.to == target;
            });
            if (pair == rank.peers.end()) {
                fmt::format_to(to, " {:>6}", "-");
            } else if (pair->copy.gb_per_s.known()) {
                fmt::format_to(to, " {}{:>5.0f}", peer_letter(pair->copy),
                               *pair->copy.gb_per_s.value);
            } else {
                fmt::format_to(to, " {:>6}", peer_letter(pair->copy));
            }
        }
        out += "\n";
    }
}

void add_rates(std::string& out, WireFacts const& wire) {
    auto const to = std::back_inserter(out);
    fmt::format_to(to, "\nwire {}: {}\n  {:<10} {:>10} {:>12} {:>12}\n", wire.name,
                   wire.description, "operation", "message", "us a call", "bus GB/s");
    std::vector<WireRate> rates = wire.rates;
    std::ranges::stable_sort(rates, std::greater<>(), &WireRate::op);
    for (WireRate const& rate : rates) {
        fmt::format_to(to, "  {:<10} {:>10} {:>12.1f} {:>12.3f}\n", rate.op, size_text(rate.bytes),
                       1e6 * rate.seconds, rate.bus_gb_per_s);
    }
}

}  // namespace

std::string size_text(std::int64_t bytes) {
    return bytes >= (std::int64_t{1} << 20) ? fmt::format("{} MiB", bytes >> 20)
                                            : fmt::format("{} KiB", bytes >> 10);
}

std::string text_of(std::vector<Row> const& rows, JobFacts const& job) {
    std::string out;
    auto const to = std::back_inserter(out);
    fmt::format_to(to, "{:<16} {:<4}  {:<32} {}\n", "check", "", "wanted", "found");
    for (Row const& row : rows) {
        fmt::format_to(to, "{:<16} {:<4}  {:<32} {}\n", row.check, name_of(row.finding.status),
                       row.wanted, row.finding.value);
        if (!row.finding.fix.empty()) {
            fmt::format_to(to, "{:<16} {:<4}  fix: {}\n", "", "", row.finding.fix);
        }
    }
    for (RankFacts const& rank : job.ranks) {
        if (!rank.peers.empty()) {
            add_peer_matrix(out, rank);
        }
    }
    for (WireFacts const& wire : job.wires) {
        if (!wire.rates.empty()) {
            add_rates(out, wire);
        }
    }
    return out + "\n" + verdict_line(rows);
}

std::string json_of(std::vector<Row> const& rows, JobFacts const& job) {
    nlohmann::json checks = nlohmann::json::array();
    for (Row const& row : rows) {
        checks.push_back({{"check", row.check},
                          {"status", name_of(row.finding.status)},
                          {"value", row.finding.value},
                          {"wanted", row.wanted},
                          {"fix", row.finding.fix}});
    }
    bool const failed = worst_of(rows) == Status::fail;
    nlohmann::json const out{
        {"format", "cpstep-doctor"},
        {"format_version", 1},
        {"version", job.ranks.front().version},
        {"ranks", job.ranks.size()},
        {"verdict", failed ? "not ready" : "ready"},
        {"exit_code", static_cast<int>(failed ? ExitCode::environment : ExitCode::pass)},
        {"checks", checks},
        {"wires", wires_json(job.wires)}};
    return out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace cpstep::doctor
