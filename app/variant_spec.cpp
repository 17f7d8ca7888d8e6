#include "app/variant_spec.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "cuda/error.hpp"
#include "mpi/grid.hpp"

namespace cpstep {
namespace {

/// First factors that leave a ring of two or more and a whole number of query heads to each rank,
/// rising.
std::vector<int> first_factors(int size, std::int64_t heads) {
    std::vector<int> factors;
    for (int u = 2; u <= size / 2; ++u) {
        if (size % u == 0 && heads % u == 0) {
            factors.push_back(u);
        }
    }
    return factors;
}

/// The largest first factor that also divides the KV heads, so that none is replicated; else the
/// largest. 0: there is none.
int default_first_factor(int size, HeadShape heads) {
    int best = 0;
    int best_unreplicated = 0;
    for (int const u : first_factors(size, heads.heads)) {
        best = u;
        best_unreplicated = heads.kv_heads % u == 0 ? u : best_unreplicated;
    }
    return best_unreplicated > 0 ? best_unreplicated : best;
}

/// Divisors of `count`, rising.
std::vector<std::int64_t> divisors(std::int64_t count) {
    std::vector<std::int64_t> result;
    for (std::int64_t d = 1; d <= count; ++d) {
        if (count % d == 0) {
            result.push_back(d);
        }
    }
    return result;
}

std::vector<int> two_level_sizes(HeadShape heads, int world) {
    std::vector<int> sizes = valid_cp_sizes(world);
    std::erase_if(sizes, [&](int size) { return default_first_factor(size, heads) == 0; });
    return sizes;
}

/// Ranks that exchange heads in a2a+p2p. `given`: factors whose product is the size.
int first_factor(std::string const& name, int size, std::optional<HierarchicalSizes> given,
                 HeadShape heads, int world) {
    if (given) {
        std::vector<int> const valid = first_factors(size, heads.heads);
        require(heads.heads % given->a2a == 0, ExitCode::usage,
                "variant {}: the first of the hierarchical sizes {}x{} must divide the {} query "
                "heads; {}",
                name, given->a2a, given->p2p, heads.heads,
                valid.empty()
                    ? fmt::format("CP size {} has no such factor, use p2p or all_gather", size)
                    : fmt::format("valid first factors of CP size {}: {}", size,
                                  fmt::join(valid, ", ")));
        return given->a2a;
    }
    int const factor = default_first_factor(size, heads);
    if (factor == 0) {
        std::vector<int> const sizes = two_level_sizes(heads, world);
        fail(ExitCode::usage,
             "variant {}: a2a+p2p needs a CP size of two factors above 1 whose first divides the "
             "{} query heads, not {}; {}; use p2p or all_gather for others",
             name, heads.heads, size,
             sizes.empty()
                 ? fmt::format("no size works with {} ranks", world)
                 : fmt::format("sizes that work with {} ranks: {}", world, fmt::join(sizes, ", ")));
    }
    return factor;
}

/// Fills cp.a2a and checks that the heads can be shared so.
VariantSpec checked(std::string name, CpConfig cp, std::optional<HierarchicalSizes> hierarchical,
                    HeadShape heads, int world) {
    if (cp.method == CpMethod::a2a) {
        require(heads.heads % cp.size == 0, ExitCode::usage,
                "variant {}: a2a needs a CP size that divides the {} query heads: {}; use p2p, "
                "all_gather or a2a+p2p for others",
                name, heads.heads, fmt::join(divisors(heads.heads), ", "));
        cp.a2a = cp.size;
    } else if (cp.method == CpMethod::a2a_p2p) {
        cp.a2a = first_factor(name, cp.size, hierarchical, heads, world);
    }
    return {std::move(name), cp};
}

/// The global factors apply to the CP size that is their product.
std::optional<HierarchicalSizes> factors_of(Options const& options, int size) {
    bool const apply = options.hierarchical && options.hierarchical->product() == size;
    return apply ? options.hierarchical : std::nullopt;
}

int default_size(Options const& options, int world) {
    auto const& sizes = options.context_parallel_size;
    int const largest = sizes.empty() ? 1 : *std::max_element(sizes.begin(), sizes.end());
    return largest > 1 ? largest : world;
}

VariantSpec named_cp(Options const& options, NamedVariant const& variant, HeadShape heads,
                     int world) {
    CpConfig const cp{.size = variant.size.value_or(default_size(options, world)),
                      .method = variant.method.value_or(options.cp_comm_type.front()),
                      .layout = variant.layout.value_or(options.cp_layout.front()),
                      .loss = variant.loss.value_or(options.cp_loss_comm.front())};
    if (!variant.hierarchical) {
        return checked(variant.name, cp, factors_of(options, cp.size), heads, world);
    }
    HierarchicalSizes const factors = *variant.hierarchical;
    require(cp.method == CpMethod::a2a_p2p, ExitCode::usage,
            "variant {}: hierarchical-context-parallel-sizes is for cp-comm-type=a2a+p2p, not {}; "
            "set that or leave the sizes out",
            variant.name, name_of(cp.method));
    require(factors.product() == cp.size, ExitCode::usage,
            "variant {0}: hierarchical sizes {1}x{2} make a CP size of {3}, not {4}; set "
            "context-parallel-size={3} or other factors",
            variant.name, factors.a2a, factors.p2p, factors.product(), cp.size);
    return checked(variant.name, cp, factors, heads, world);
}

VariantSpec named_spec(Options const& options, NamedVariant const& variant, HeadShape heads,
                       int world) {
    VariantSpec spec = named_cp(options, variant, heads, world);
    spec.trace_detail = variant.trace_detail;
    return spec;
}

std::string product_name(Options const& options, CpConfig const& cp) {
    std::string name = fmt::format("cp{}", cp.size);
    auto const add = [&name](bool several, std::string_view part) {
        name += several ? fmt::format("-{}", part) : "";
    };
    add(options.cp_comm_type.size() > 1, name_of(cp.method));
    add(options.cp_loss_comm.size() > 1, name_of(cp.loss));
    add(options.cp_layout.size() > 1, name_of(cp.layout));
    return name;
}

/// All combinations of the lists at one size.
void append_product(std::vector<VariantSpec>& specs, Options const& options, int size,
                    HeadShape heads, int world) {
    for (CpMethod const method : options.cp_comm_type) {
        for (LossComm const loss : options.cp_loss_comm) {
            for (CpLayout const layout : options.cp_layout) {
                CpConfig const cp{.size = size, .method = method, .layout = layout, .loss = loss};
                specs.push_back(checked(product_name(options, cp), cp, factors_of(options, size),
                                        heads, world));
            }
        }
    }
}

}  // namespace

std::string description(CpConfig const& cp) {
    if (cp.size == 1) {
        return "";
    }
    std::string const factors =
        cp.method == CpMethod::a2a_p2p ? fmt::format(" {}x{}", cp.a2a, cp.size / cp.a2a) : "";
    return fmt::format(" ({}{}, {}, {})", name_of(cp.method), factors, name_of(cp.layout),
                       name_of(cp.loss));
}

std::vector<VariantSpec> variant_specs(Options const& options, HeadShape heads, int world) {
    std::vector<VariantSpec> specs{{"cp1", {.size = 1}}};
    for (NamedVariant const& variant : options.variants) {
        specs.push_back(named_spec(options, variant, heads, world));
    }
    if (!options.variants.empty()) {
        return specs;
    }
    std::vector<int> const given = options.context_parallel_size;
    for (int const size : given.empty() ? std::vector{world} : given) {
        if (size > 1) {
            append_product(specs, options, size, heads, world);
        }
    }
    return specs;
}

}  // namespace cpstep
