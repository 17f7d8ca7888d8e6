// Reading of --variant and of the factors of a2a+p2p. Private to the options files.
#pragma once

#include <string>

#include "app/options.hpp"

namespace cpstep {

/// Two integers above 1 with `separator` between them; else Error(usage) opened by `label`.
HierarchicalSizes parse_factors(std::string const& text, char separator, std::string const& label);

/// Variants `NAME[:key=value,...]` with ';' between them; replaces options.variants. Canonical
/// form: the keys given, in one order.
std::string apply_variants(Options& options, std::string const& text, std::string const& label);

}  // namespace cpstep
