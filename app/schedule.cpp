#include "app/schedule.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <queue>
#include <tuple>
#include <utility>

#include "cuda/error.hpp"

namespace cpstep {

namespace {

// Samples of one micro-batch and their tokens.
struct Bin {
    std::vector<std::int64_t> samples;
    std::int64_t tokens = 0;

    void add(std::int64_t sample, std::int64_t length) {
        samples.push_back(sample);
        tokens += length;
    }
};

std::vector<Bin> first_fit(std::span<std::int64_t const> lengths, std::int64_t capacity) {
    std::vector<Bin> bins;
    for (std::size_t j = 0; j < lengths.size(); ++j) {
        auto fitting = std::find_if(bins.begin(), bins.end(), [&](Bin const& bin) {
            return bin.tokens + lengths[j] <= capacity;
        });
        if (fitting == bins.end()) {
            fitting = bins.insert(bins.end(), Bin{});
        }
        fitting->add(static_cast<std::int64_t>(j), lengths[j]);
    }
    return bins;
}

// Samples by falling length (ties in order), each to the lighter half.
std::array<Bin, 2> halved(Bin const& bin, std::span<std::int64_t const> lengths) {
    std::vector<std::int64_t> order = bin.samples;
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t a, std::int64_t b) { return lengths[a] > lengths[b]; });
    std::array<Bin, 2> halves;
    for (std::int64_t const sample : order) {
        Bin& lighter = halves[0].tokens <= halves[1].tokens ? halves[0] : halves[1];
        lighter.add(sample, lengths[sample]);
    }
    for (Bin& half : halves) {
        std::sort(half.samples.begin(), half.samples.end());
    }
    return halves;
}

// The multi-sample bin with the most tokens, ties to the higher index.
std::optional<std::size_t> heaviest_divisible(std::vector<Bin> const& bins) {
    std::optional<std::size_t> heaviest;
    for (std::size_t b = 0; b < bins.size(); ++b) {
        bool const divisible = bins[b].samples.size() > 1;
        if (divisible && (!heaviest || bins[b].tokens >= bins[*heaviest].tokens)) {
            heaviest = b;
        }
    }
    return heaviest;
}

std::vector<std::vector<std::int64_t>> dynamic_bins(std::span<std::int64_t const> lengths,
                                                    ScheduleOptions const& options) {
    require(options.max_tokens_per_gpu > 0, ExitCode::usage,
            "--use-dynamic-batch-size needs --max-tokens-per-gpu of at least 1");
    std::vector<Bin> bins = first_fit(lengths, options.max_tokens_per_gpu * options.cp_size);
    while (bins.size() % options.dp_size != 0) {
        std::optional<std::size_t> const heaviest = heaviest_divisible(bins);
        require(
            heaviest.has_value(), ExitCode::usage,
            "{} samples of one micro-batch each cannot be dealt to {} data-parallel ranks: make "
            "--global-batch-size a multiple of {}",
            bins.size(), options.dp_size, options.dp_size);
        std::array<Bin, 2> halves = halved(bins[*heaviest], lengths);
        bins[*heaviest] = std::move(halves[0]);
        bins.push_back(std::move(halves[1]));
    }
    std::vector<std::vector<std::int64_t>> samples;
    for (Bin& bin : bins) {
        samples.push_back(std::move(bin.samples));
    }
    return samples;
}

// Each rank's contiguous share cut into micro-batches, ordered so that dealing r, r+DP, ... gives
// rank r its share; a share that micro_batch_size does not divide ends with a smaller micro-batch.
std::vector<std::vector<std::int64_t>> static_bins(std::int64_t samples,
                                                   ScheduleOptions const& options) {
    require(options.micro_batch_size > 0, ExitCode::usage, "--micro-batch-size must be at least 1");
    require(samples % options.dp_size == 0, ExitCode::usage,
            "{} samples cannot be shared equally by {} data-parallel ranks: make "
            "--global-batch-size a multiple of {}",
            samples, options.dp_size, options.dp_size);
    std::int64_t const share = samples / options.dp_size;
    std::vector<std::vector<std::int64_t>> bins;
    for (std::int64_t begin = 0; begin < share; begin += options.micro_batch_size) {
        std::int64_t const count = std::min(options.micro_batch_size, share - begin);
        for (int rank = 0; rank < options.dp_size; ++rank) {
            bins.emplace_back(static_cast<std::size_t>(count));
            std::iota(bins.back().begin(), bins.back().end(), rank * share + begin);
        }
    }
    return bins;
}

std::vector<std::vector<std::int64_t>> strided(std::int64_t bins, int ranks) {
    std::vector<std::vector<std::int64_t>> parts(static_cast<std::size_t>(ranks));
    for (std::int64_t b = 0; b < bins; ++b) {
        parts[b % ranks].push_back(b);
    }
    return parts;
}

std::vector<std::vector<std::int64_t>> balanced(std::vector<std::vector<std::int64_t>> const& bins,
                                                std::span<double const> costs, int ranks) {
    std::vector<double> weights;
    for (std::vector<std::int64_t> const& bin : bins) {
        weights.push_back(
            std::accumulate(bin.begin(), bin.end(), 0.0,
                            [&](double sum, std::int64_t sample) { return sum + costs[sample]; }));
    }
    return karmarkar_karp(weights, ranks, true);
}

// One of the k sets of a partial partition. The order is total, so that every rank makes the same
// choice.
struct WeightedSet {
    double sum = 0;
    std::vector<std::int64_t> items;

    bool operator<(WeightedSet const& other) const {
        return std::make_tuple(sum, items.size(), std::cref(items)) <
               std::make_tuple(other.sum, other.items.size(), std::cref(other.items));
    }
};

// A partial partition: k sets, heaviest first.
struct Partition {
    std::vector<WeightedSet> sets;

    double spread() const { return sets.front().sum - sets.back().sum; }
    void sort() {
        std::sort(sets.begin(), sets.end(),
                  [](WeightedSet const& a, WeightedSet const& b) { return b < a; });
    }
    // Heap order: the largest spread on top, ties to the larger heaviest set.
    bool operator<(Partition const& other) const {
        return spread() != other.spread() ? spread() < other.spread()
                                          : sets.front() < other.sets.front();
    }
    // The i-th heaviest set takes the i-th lightest of the other.
    void merge(Partition const& other) {
        for (std::size_t i = 0; i < sets.size(); ++i) {
            WeightedSet const& light = other.sets[sets.size() - 1 - i];
            sets[i].sum += light.sum;
            sets[i].items.insert(sets[i].items.end(), light.items.begin(), light.items.end());
        }
        sort();
    }
};

// One state per `group` consecutive items of the order by rising weight.
std::priority_queue<Partition> initial_partitions(std::span<double const> weights, int k,
                                                  std::int64_t group) {
    std::vector<std::int64_t> order(weights.size());
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
        return std::make_pair(weights[a], a) < std::make_pair(weights[b], b);
    });
    std::priority_queue<Partition> heap;
    for (auto first = order.begin(); first != order.end(); first += group) {
        Partition state{std::vector<WeightedSet>(static_cast<std::size_t>(k))};
        for (std::int64_t i = 0; i < group; ++i) {
            state.sets[i] = {weights[first[i]], {first[i]}};
        }
        state.sort();
        heap.push(std::move(state));
    }
    return heap;
}

}  // namespace

std::vector<std::vector<std::int64_t>> karmarkar_karp(std::span<double const> weights, int k,
                                                      bool equal_size) {
    require(k >= 1, ExitCode::internal, "cannot make {} parts", k);
    require(!equal_size || weights.size() % k == 0, ExitCode::internal,
            "{} items do not make {} parts of equal count", weights.size(), k);
    for (std::size_t i = 0; i < weights.size(); ++i) {
        require(std::isfinite(weights[i]), ExitCode::internal, "weight {} of item {} is not finite",
                weights[i], i);
    }
    std::vector<std::vector<std::int64_t>> parts(static_cast<std::size_t>(k));
    if (weights.empty()) {
        return parts;
    }
    std::priority_queue<Partition> heap = initial_partitions(weights, k, equal_size ? k : 1);
    while (heap.size() > 1) {
        Partition widest = heap.top();
        heap.pop();
        widest.merge(heap.top());
        heap.pop();
        heap.push(std::move(widest));
    }
    for (std::size_t i = 0; i < parts.size(); ++i) {
        parts[i] = heap.top().sets[i].items;
        std::sort(parts[i].begin(), parts[i].end());
    }
    return parts;
}

Schedule make_schedule(std::span<std::int64_t const> lengths, std::span<double const> costs,
                       ScheduleOptions const& options) {
    require(options.dp_size >= 1 && options.cp_size >= 1, ExitCode::internal,
            "a grid of {} data-parallel by {} context-parallel ranks is impossible",
            options.dp_size, options.cp_size);
    std::int64_t const samples = static_cast<std::int64_t>(lengths.size());
    require(samples >= options.dp_size, ExitCode::usage,
            "{} samples are fewer than the {} data-parallel ranks: use a larger "
            "--global-batch-size, fewer ranks or a larger --context-parallel-size",
            samples, options.dp_size);
    require(!options.balance || costs.size() == lengths.size(), ExitCode::internal,
            "{} costs for {} samples", costs.size(), lengths.size());

    std::vector<std::vector<std::int64_t>> const bins =
        options.dynamic ? dynamic_bins(lengths, options) : static_bins(samples, options);
    std::vector<std::vector<std::int64_t>> const dealt =
        options.balance ? balanced(bins, costs, options.dp_size)
                        : strided(static_cast<std::int64_t>(bins.size()), options.dp_size);
    Schedule schedule(static_cast<std::size_t>(options.dp_size));
    for (std::size_t rank = 0; rank < schedule.size(); ++rank) {
        for (std::int64_t const b : dealt[rank]) {
            schedule[rank].push_back(bins[b]);
        }
    }
    return schedule;
}

}  // namespace cpstep
