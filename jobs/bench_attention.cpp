// Attention of a CP rank against that of CP=1, on one device without wires: is a layout's cut of
// the work as fast as the whole? Heads of Qwen2.5-0.5B.
//
// usage: bench_attention [auto | cudnn | mma | reference] [SEQUENCESxTOKENS ...]: the attention
// backend; the micro-batches of CP=1, 4x512 is 4 of 512
#include <algorithm>
#include <array>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "app/cp_attention.hpp"
#include "app/cp_plan.hpp"
#include "app/statistics.hpp"
#include "cuda/attention_segments.hpp"
#include "cuda/cuda_device.hpp"

namespace {

using namespace cpstep;

constexpr HeadShape heads{.heads = 14, .kv_heads = 2, .head_dim = 64};
constexpr int warm_up = 3;
constexpr int repeats = 15;
constexpr int calls_a_value = 4;  // so that the device, not the host, is what a value times

/// Operands for q_rows queries and kv_rows keys; dtype of sums as a CP method has them.
struct Operands {
    Operands(Backend& backend, std::int64_t q_rows, std::int64_t kv_rows, DType sums)
        : q(backend, q_rows, width, DType::bf16),
          d_o(backend, q_rows, width, DType::bf16),
          o(backend, q_rows, width, DType::bf16),
          kv(backend, kv_rows, kv_width, DType::bf16),
          lse(backend, q_rows, heads.heads, DType::f32),
          sum_o(backend, q_rows, width, sums),
          dq(backend, q_rows, width, sums),
          dkv(backend, kv_rows, kv_width, sums) {
        unsigned state = 1;
        for (Tensor const t : {q.tensor(), d_o.tensor(), o.tensor(), kv.tensor()}) {
            std::vector<std::uint16_t> bits(static_cast<std::size_t>(t.elements()));
            std::generate(bits.begin(), bits.end(), [&] {  // +-1 .. 2, an eighth of that
                state = state * 1664525U + 1013904223U;
                return static_cast<std::uint16_t>(0x3e00U | (state >> 16U & 0x807fU));
            });
            backend.upload(t, bits.data());
        }
    }

    static constexpr std::int64_t width = heads.heads * heads.head_dim;
    static constexpr std::int64_t kv_width = 2 * heads.kv_heads * heads.head_dim;
    Buffer q, d_o, o, kv, lse, sum_o, dq, dkv;
};

/// Milliseconds of what `work` queues, the median; work that the device has not begun yet.
double milliseconds(Backend& backend, std::function<void()> const& work) {
    std::vector<double> times;
    for (int i = 0; i < warm_up + repeats; ++i) {
        backend.begin_marks();
        work();
        Mark const begin = backend.mark(Queue::compute);
        for (int call = 0; call < calls_a_value; ++call) {
            work();
        }
        Mark const end = backend.mark(Queue::compute);
        backend.synchronize();
        if (i >= warm_up) {
            times.push_back(static_cast<double>(backend.mark_ns(end) - backend.mark_ns(begin)) *
                            1e-6 / calls_a_value);
        }
    }
    return median(times);
}

struct Cost {
    double forward = 0, backward = 0;  // ms
};

/// One call, printed.
Cost measure(Backend& backend, std::string const& what, std::vector<Segment> const& segments,
             Operands const& t, Tensor kv, Tensor dkv, Accumulate mode) {
    backend.attention_forward(t.sum_o, t.lse, t.q, keys_of(kv), values_of(kv), heads, segments,
                              Accumulate::overwrite);
    Cost cost;
    cost.forward = milliseconds(backend, [&] {
        backend.attention_forward(t.sum_o, t.lse, t.q, keys_of(kv), values_of(kv), heads, segments,
                                  mode);
    });
    cost.backward = milliseconds(backend, [&] {
        backend.attention_backward(t.dq, keys_of(dkv), values_of(dkv), t.q, keys_of(kv),
                                   values_of(kv), t.o, t.d_o, t.lse, heads, segments, mode);
    });
    double const flop = 1e-9 * forward_flop(segments, heads);
    fmt::print("  {:<34} {:8.3f} ms {:6.0f} TFLOP/s   backward {:8.3f} ms {:6.0f} TFLOP/s\n", what,
               cost.forward, flop / cost.forward, cost.backward, 2.5 * flop / cost.backward);
    return cost;
}

/// All calls of one rank.
Cost rank_cost(Backend& backend, CpPlan const& plan, DType sums) {
    std::vector<std::pair<std::int64_t, std::vector<Segment>>> calls;
    if (plan.config.method == CpMethod::all_gather) {
        calls.emplace_back(plan.own_rows, plan.gather.own);
        for (GatherGap const& gap : plan.gather.gaps) {
            calls.emplace_back(gap.rows, gap.segments);
        }
    } else {
        for (RingStep const& step : plan.ring.steps) {
            calls.emplace_back(step.rows, step.segments);
        }
    }
    Cost total;
    for (std::size_t i = 0; i < calls.size(); ++i) {
        auto const& [rows, segments] = calls[i];
        Operands const t(backend, plan.own_rows, rows, sums);
        Cost const cost =
            measure(backend,
                    fmt::format("CP={} {} rank {} call {}", plan.config.size,
                                name_of(plan.config.method), plan.rank, i),
                    segments, t, t.kv, t.dkv, i == 0 ? Accumulate::overwrite : Accumulate::merge);
        total.forward += cost.forward;
        total.backward += cost.backward;
    }
    return total;
}

struct MicroBatch {
    std::int64_t sequences = 1, tokens = 0;
};

MicroBatch micro_batch_of(std::string const& word) {
    std::size_t const x = word.find('x');
    MicroBatch const result{std::atoll(word.c_str()),
                            x == std::string::npos ? 0 : std::atoll(word.c_str() + x + 1)};
    require(result.sequences > 0 && result.tokens > 1, ExitCode::usage,
            "bench_attention: '{}' is not SEQUENCESxTOKENS, such as 4x512", word);
    return result;
}

/// CP=2 with as many sequences in a micro-batch as CP=1 and with twice as many, which is as many
/// rows a rank; as many calls as make the ranks' share of CP=1's.
void compare(Backend& backend, MicroBatch const& batch) {
    fmt::print("{} x {} tokens\n", batch.sequences, batch.tokens);
    std::vector<std::int64_t> lengths(static_cast<std::size_t>(batch.sequences), batch.tokens);
    Cost const whole = rank_cost(backend, make_cp_plan(lengths, {}, 0), DType::bf16);
    for (std::int64_t const times : {1, 2}) {
        lengths.assign(static_cast<std::size_t>(times * batch.sequences), batch.tokens);
        for (CpMethod const method : {CpMethod::p2p, CpMethod::all_gather}) {
            Cost worst;
            for (int rank = 0; rank < 2; ++rank) {
                Cost const own =
                    rank_cost(backend, make_cp_plan(lengths, {.size = 2, .method = method}, rank),
                              DType::f32);
                worst = {std::max(worst.forward, own.forward),
                         std::max(worst.backward, own.backward)};
            }
            double const share = 2.0 / static_cast<double>(times);
            fmt::print("  => {}, {} packed: forward x{:.3f}, backward x{:.3f}\n", name_of(method),
                       times * batch.sequences, share * worst.forward / whole.forward,
                       share * worst.backward / whole.backward);
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    try {
        std::vector<std::string> words(argv + 1, argv + argc);
        std::array<char const*, 4> const names = {"auto", "cudnn", "mma", "reference"};
        AttentionBackend attention = AttentionBackend::automatic;
        auto const* const name =
            words.empty() ? names.end() : std::find(names.begin(), names.end(), words.front());
        if (name != names.end()) {
            attention = static_cast<AttentionBackend>(name - names.begin());
            words.erase(words.begin());
        }
        std::vector<MicroBatch> batches;
        std::transform(words.begin(), words.end(), std::back_inserter(batches), micro_batch_of);
        if (batches.empty()) {
            batches = {{2, 1024}, {1, 2048}, {1, 8192}, {1, 16384}, {1, 32768}, {1, 65536}};
        }
        auto const backend = make_cuda_backend({.attention = attention});
        fmt::print("{}\n", backend->description());
        for (MicroBatch const& batch : batches) {
            compare(*backend, batch);
        }
    } catch (Error const& error) {
        fmt::print(stderr, "bench_attention: {}\n", error.what());
        return static_cast<int>(error.code());
    }
}
