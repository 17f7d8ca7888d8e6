#define BOOST_TEST_MODULE report
#include <boost/test/unit_test.hpp>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "app/report.hpp"

using namespace cpstep;
using nlohmann::json;

namespace {

double const nan_value = std::numeric_limits<double>::quiet_NaN();

VariantTiming timed(char const* name, double ratio, double low, double high) {
    VariantTiming timing;
    timing.name = name;
    timing.steps = 20;
    timing.median = 12.34567;
    timing.mad = 0.25;
    timing.low = 11.5;
    timing.high = 13.25;
    timing.exposed_comm = 1.5;
    timing.phases = {{"train_forward", 4.0}, {"backward", 7.5}};
    timing.ratio = {ratio, low, high, 10};
    return timing;
}

VariantResult some_result(char const* name) {
    VariantResult result;
    result.name = name;
    result.metrics = {.loss = -0.00025, .pg_loss = -0.0003, .grad_norm = 3.4168};
    result.ledger = {{"grad", {"all_reduce", 4, 1, 1976131072}}};
    result.budget = result.ledger;
    return result;
}

/// cp1 and cp4 of a 0.5 B model on 4 ranks, everything in order.
struct Fixture {
    Fixture() {
        report.plans = {{"cp1", {}, {4, 1}, {{{0}, {1}}, {{2}, {3}}, {{4}, {5}}, {{6}, {7}}}},
                        {"cp4", {.size = 4}, {4, 4}, {{{0, 1, 2, 3, 4, 5, 6, 7}}}}};
        report.results = {some_result("cp1"), some_result("cp4")};
        for (VariantResult& result : report.results) {
            for (Check const& check : check_result(result)) {
                report.checks.push_back(check);
            }
        }
        report.results[1].ledger["loss.seq_kl"] = {"all_reduce", 4, 1, 32};
        report.results[1].budget["loss.seq_kl"] = {"all_reduce", 4, 1, 32};
        add_check("log_probs", 3.8e-6, 1.9e-4, "max abs", "sample 127 token 8191");
        add_check("grad_norm", 3.0e-7, 1.0e-4, "abs", "");
        for (char const* name : {"model.embed_tokens.weight", "model.norm.weight"}) {
            add_check(std::string("gradient ") + name, 2.0e-6, 3.0e-5, "rel L2", "");
            add_check(std::string("updated ") + name, 0.4, 1.0, "of AdamW bound", "element 123");
        }
        report.timing.variants = {timed("cp1", 1, 1, 1), timed("cp4", 1.953, 1.908, 2.002)};
        report.signal = {true, "gradient norm 3.417; 8 of 8 samples have a non-zero advantage"};
        report.notes = {"host backend: step times say nothing about a GPU"};
        options.resolved["lr"] = {"1e-06", Origin::fallback, "default"};
        options.resolved["output"] = {"out/a \"quoted\" name", Origin::command_line,
                                      "command line"};
        facts = {.version = "0.1.0",
                 .backend = "host CPU, 16 threads, OpenBLAS 0.3.21",
                 .mpi = "Open MPI v4.1.4",
                 .host = "node1",
                 .start_utc = "2026-01-01T00:00:00Z",
                 .wires = "ipc (4 ranks of 1 host)",
                 .cuda = "CUDA 13.0, driver 13.0",
                 .parameters = 494032768,
                 .samples = 8,
                 .tokens = 65536,
                 .response_tokens = 32768,
                 .world = 4};
    }

    void add_check(std::string const& name, double measured, double bound, char const* unit,
                   char const* where) {
        report.checks.push_back({"cp4", name, measured, bound, unit, where, measured <= bound});
    }
    Check& check(std::string const& name) {
        for (Check& check : report.checks) {
            if (check.name == name && check.variant == "cp4") {
                return check;
            }
        }
        BOOST_FAIL("no check " << name);
        return report.checks.front();
    }
    std::string table() {
        judge(report, options.gate_ratio);
        return report_table(report, facts, options.gate_ratio);
    }
    json summary() {
        judge(report, options.gate_ratio);
        return json::parse(report_json(report, facts, options));
    }
    /// Lines of the table that hold all of `texts`.
    std::vector<std::string> lines_with(std::vector<std::string> const& texts) {
        std::istringstream in(table());
        std::vector<std::string> found;
        for (std::string line; std::getline(in, line);) {
            bool all = true;
            for (std::string const& text : texts) {
                all = all && line.find(text) != std::string::npos;
            }
            if (all) {
                found.push_back(line);
            }
        }
        return found;
    }
    bool shows(std::vector<std::string> const& texts) { return !lines_with(texts).empty(); }

    Report report;
    RunFacts facts;
    Options options;
};

/// The gate ends a line of the timing table.
std::string last_word(std::string const& line) {
    return line.substr(line.find_last_of(' ') + 1);
}

}  // namespace

BOOST_FIXTURE_TEST_CASE(summary_is_json_with_format_and_version, Fixture) {
    json const out = summary();
    BOOST_TEST(out.at("format") == "cpstep-summary");
    BOOST_TEST(out.at("format_version") == 1);
    BOOST_TEST(out.at("run").at("parameters") == 494032768);
    BOOST_TEST(out.at("run").at("response_tokens") == 32768);
    BOOST_TEST(out.at("config").at("lr") == "1e-06");
    BOOST_TEST(out.at("config").at("output") == "out/a \"quoted\" name");
    BOOST_TEST(out.at("gate_ratio").is_null());
    BOOST_TEST(report_json(report, facts, options).back() == '\n');
}

BOOST_FIXTURE_TEST_CASE(nan_and_infinity_are_null, Fixture) {
    check("log_probs").measured = nan_value;
    check("log_probs").pass = false;
    check("grad_norm").bound = std::numeric_limits<double>::infinity();
    report.results[1].metrics.loss = nan_value;
    report.timing.variants[1].ratio.high = nan_value;
    report.timing.variants[1].phases["backward"] = -std::numeric_limits<double>::infinity();
    json const out = summary();
    for (json const& entry : out.at("parity")) {
        if (entry.at("variant") == "cp4" && entry.at("check") == "log_probs") {
            BOOST_TEST(entry.at("measured").is_null());
            BOOST_TEST(entry.at("pass") == false);
        }
        if (entry.at("check") == "grad_norm") {
            BOOST_TEST(entry.at("bound").is_null());
        }
    }
    BOOST_TEST(out.at("variants")[1].at("metrics").at("loss").is_null());
    BOOST_TEST(out.at("variants")[1].at("timing").at("ratio_high").is_null());
    BOOST_TEST(out.at("variants")[1].at("timing").at("rank0_phases_s").at("backward").is_null());
    BOOST_TEST(out.at("variants")[0].at("metrics").at("loss") == -0.00025);
}

BOOST_FIXTURE_TEST_CASE(bytes_that_are_not_utf8_do_not_break_the_summary, Fixture) {
    report.notes.emplace_back("prompts\xff.jsonl: bad lines passed over");
    options.resolved["prompt-data"] = {"a\xc3", Origin::command_line, "command line"};
    BOOST_TEST(summary().at("notes").size() == 2U);
}

BOOST_FIXTURE_TEST_CASE(both_forms_say_the_same_verdict, Fixture) {
    auto const agree = [&](std::string const& upper_name) {
        json const out = summary();
        int const code = out.at("exit_code").get<int>();
        BOOST_TEST(code == static_cast<int>(report.code));
        std::string const reason = out.at("reason").get<std::string>();
        std::string const want = fmt::format("verdict: {} (exit {}): {}", upper_name, code, reason);
        BOOST_TEST(shows({want}), want << " is not in\n" << table());
        return code;
    };
    BOOST_TEST(agree("PASS") == 0);
    options.gate_ratio = 1.05;
    BOOST_TEST(agree("PERFORMANCE GATE FAILED") == 6);
    BOOST_TEST(summary().at("gate_ratio") == 1.05);
    options.gate_ratio = 1.95;
    BOOST_TEST(agree("INCONCLUSIVE") == 10);
    report.signal = {false, "the gradient is exactly zero"};
    BOOST_TEST(agree("INCONCLUSIVE") == 10);
    BOOST_TEST(summary().at("signal").at("present") == false);
    check("log_probs").measured = 1;
    check("log_probs").pass = false;
    BOOST_TEST(agree("PARITY FAILED") == 5);
    report.nonfinite = "log_probs of sample 0 token 0";
    BOOST_TEST(agree("NON-FINITE") == 9);
}

BOOST_FIXTURE_TEST_CASE(both_forms_show_the_same_ratio_interval_and_gate, Fixture) {
    for (double const gate : {0.0, 1.05, 1.95, 2.5}) {
        options.gate_ratio = gate;
        json const out = summary().at("variants");
        BOOST_REQUIRE(out.size() == 2U);
        json const timing = out[1].at("timing");
        auto const lines = lines_with(
            {"cp4 ", fmt::format("{:.3f} ({:.3f} .. {:.3f})", timing.at("ratio").get<double>(),
                                 timing.at("ratio_low").get<double>(),
                                 timing.at("ratio_high").get<double>())});
        BOOST_REQUIRE(lines.size() == 1U);
        std::string const shown = last_word(lines.front());
        BOOST_TEST(shown == timing.at("gate").get<std::string>());
        BOOST_TEST(shown == (gate == 0.0    ? "off"
                             : gate == 1.05 ? "FAIL"
                             : gate == 1.95 ? "inconclusive"
                                            : "pass"));
        BOOST_TEST(lines.front().find(fmt::format(
                       "{:.2f}", 1e3 * timing.at("median_s").get<double>())) != std::string::npos);
    }
    report.timing.variants.clear();
    BOOST_TEST(shows({"timing: off"}));
    BOOST_TEST(!summary().at("variants")[1].contains("timing"));
}

BOOST_FIXTURE_TEST_CASE(every_check_is_in_the_summary_and_its_kind_in_the_table, Fixture) {
    json const parity = summary().at("parity");
    BOOST_REQUIRE(parity.size() == report.checks.size());
    for (std::size_t i = 0; i < parity.size(); ++i) {
        Check const& want = report.checks[i];
        BOOST_TEST(parity[i].at("variant") == want.variant);
        BOOST_TEST(parity[i].at("check") == want.name);
        BOOST_TEST(parity[i].at("measured") == want.measured);
        BOOST_TEST(parity[i].at("bound") == want.bound);
        BOOST_TEST(parity[i].at("pass") == want.pass);
    }
    BOOST_TEST(shows({"cp1 alone"}));
    BOOST_TEST(shows({"cp4 against cp1"}));
    BOOST_TEST(
        shows({"log_probs", "3.80e-06", "1.90e-04", "max abs", " ok ", "sample 127 token 8191"}));
    BOOST_TEST(shows({"gradient (2)", "2.00e-06", " ok "}));
    BOOST_TEST(lines_with({"ledger", "labels off budget", " ok "}).size() == 2U);
    BOOST_TEST(!shows({"FAIL"}));
}

BOOST_FIXTURE_TEST_CASE(one_failed_tensor_shows_in_the_row_of_its_kind_even_if_another_is_larger,
                        Fixture) {
    check("updated model.norm.weight").pass = false;
    check("updated model.embed_tokens.weight").measured = 0.9;
    BOOST_TEST(shows({"updated (2)", "4.00e-01", "FAIL", "model.norm.weight"}));
    BOOST_TEST(shows({"gradient (2)", " ok "}));
    check("updated model.norm.weight").measured = nan_value;
    BOOST_TEST(shows({"updated (2)", "nan", "FAIL", "model.norm.weight"}));
}

BOOST_FIXTURE_TEST_CASE(ledger_and_budget_stand_side_by_side_in_both_forms, Fixture) {
    report.results[1].ledger["loss.entropy"] = {"all_reduce", 4, 1, 16};
    report.results[1].ledger_faults = {
        "[rank 0] loss.entropy: 1 calls, 16 bytes, not in the budget"};
    json const ledger = summary().at("variants")[1].at("ledger");
    BOOST_TEST(ledger.at("grad").at("bytes") == 1976131072);
    BOOST_TEST(ledger.at("grad").at("budget_bytes") == 1976131072);
    BOOST_TEST(ledger.at("loss.entropy").at("calls") == 1);
    BOOST_TEST(!ledger.at("loss.entropy").contains("budget_calls"));
    BOOST_TEST(summary().at("variants")[1].at("ledger_faults").size() == 1U);
    BOOST_TEST(shows({"cp4", "grad", "all_reduce", "1976131072"}));
    BOOST_TEST(shows({"cp4", "loss.entropy", "16", "none"}));
}

BOOST_FIXTURE_TEST_CASE(variants_notes_and_signal_are_in_both_forms, Fixture) {
    json const out = summary();
    BOOST_TEST(out.at("variants")[1].at("dp") == 1);
    BOOST_TEST(out.at("variants")[1].at("cp") == 4);
    BOOST_TEST(out.at("variants")[0].at("micro_batches") == 2);
    BOOST_TEST(
        shows({"cp1: DP 4 x CP 1, 2 micro-batches a rank, loss -0.00025, grad_norm 3.4168"}));
    BOOST_TEST(shows({"note: " + out.at("notes")[0].get<std::string>()}));
    BOOST_TEST(shows({"signal: " + out.at("signal").at("reason").get<std::string>()}));
}

BOOST_FIXTURE_TEST_CASE(precision_reference_and_wires_are_in_both_forms, Fixture) {
    BOOST_TEST(shows({"precision: fp32; wires: ipc (4 ranks of 1 host)"}));
    BOOST_TEST(shows({"CUDA 13.0, driver 13.0"}));
    BOOST_TEST(summary().at("precision") == "fp32");
    BOOST_TEST(summary().at("reference").is_null());
    report.precision = Precision::bf16;
    report.reference_name = "cp1 in fp32";
    BOOST_TEST(shows({"precision: bf16; reference: cp1 in fp32; wires: ipc"}));
    json const out = summary();
    BOOST_TEST(out.at("precision") == "bf16");
    BOOST_TEST(out.at("reference") == "cp1 in fp32");
    BOOST_TEST(out.at("run").at("wires") == "ipc (4 ranks of 1 host)");
    BOOST_TEST(out.at("run").at("cuda") == "CUDA 13.0, driver 13.0");
}

BOOST_FIXTURE_TEST_CASE(times_that_say_nothing_are_said_to_in_both_forms, Fixture) {
    report.timing_valid = false;
    BOOST_TEST(shows({"note: ranks share a GPU over sockets: step times say nothing"}));
    json const out = summary();
    BOOST_TEST(out.at("timing_valid") == false);
    BOOST_TEST(out.at("notes").size() == 2U);
    options.gate_ratio = 2.5;
    BOOST_TEST(shows({"verdict: INCONCLUSIVE (exit 10): --gate-ratio 2.5 is not judged"}));
    BOOST_TEST(last_word(lines_with({"cp4 ", "1.953"}).front()) == "inconclusive");
    report.timing.variants.clear();
    options.gate_ratio = 0;
    BOOST_TEST(!shows({"over sockets"}));
}

BOOST_FIXTURE_TEST_CASE(memory_of_each_rank_stands_beside_its_plan, Fixture) {
    BOOST_TEST(!shows({"peak / plan"}));
    std::int64_t const gib = std::int64_t{1} << 30;
    report.memory = {{10 * gib, 9 * gib}, {10 * gib, 5 * gib}};
    report.memory_parts = {{"model state", 4 * gib}, {"activations", 6 * gib}};
    BOOST_TEST(shows({"memory", "planned", "peak / plan"}));
    BOOST_TEST(shows({"rank 0", "10.0 GiB", "9.0 GiB", "0.90"}));
    BOOST_TEST(shows({"rank 1", "10.0 GiB", "5.0 GiB", "0.50"}));
    BOOST_TEST(shows({"of the plan: model state 4.0 GiB, activations 6.0 GiB"}));
    json const memory = summary().at("memory");
    BOOST_TEST(memory.at("ranks")[0].at("peak_bytes") == 9 * gib);
    BOOST_TEST(memory.at("ranks")[1].at("peak_bytes") == 5 * gib);
    BOOST_TEST(memory.at("parts_bytes").at("model state") == 4 * gib);
    report.memory.assign(16, {10 * gib, 8 * gib});
    report.memory[11].peak_bytes = 9 * gib;
    BOOST_TEST(lines_with({"rank 1", " GiB"}).size() == 1U);
    BOOST_TEST(shows({"rank 11", "9.0 GiB"}));
}

BOOST_FIXTURE_TEST_CASE(a_failure_that_rounding_may_explain_is_left_open, Fixture) {
    check("gradient model.norm.weight").pass = false;
    BOOST_TEST(shows({"gradient (2)", " FAIL ", "model.norm.weight"}));
    report.unresolved = "bf16 cannot tell";
    BOOST_TEST(shows({"gradient (2)", " open ", "model.norm.weight"}));
    BOOST_TEST(shows({"(exit 10)", "bf16 cannot tell"}));
    check("gradient model.embed_tokens.weight").pass = false;
    check("gradient model.embed_tokens.weight").measured = nan_value;
    BOOST_TEST(shows({"gradient (2)", " FAIL "}));
    BOOST_TEST(shows({"(exit 5)"}));
}
