// Failures: one exception type that carries the process exit code.
#pragma once

#ifdef __CUDACC__
#define FMT_USE_CONSTEXPR 1  // fmt 9 takes nvcc for a compiler without constexpr
#endif
#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace cpstep {

/// Process exit codes. They avoid 110, 124 and 126..165, which launchers and signals use.
enum class ExitCode : int {
    pass = 0,
    internal = 1,
    usage = 2,
    environment = 3,
    input_data = 4,
    parity = 5,
    performance = 6,
    communication = 7,
    output = 8,
    nonfinite = 9,
    inconclusive = 10,
    interrupted = 75,
};

/// The one exception of the program: a line a user can act on, and the exit code it leads to.
class Error : public std::runtime_error {
  public:
    Error(ExitCode code, std::string const& text) : std::runtime_error(text), code_(code) {}
    ExitCode code() const noexcept { return code_; }

  private:
    ExitCode code_;
};

/// Throw an Error; arguments are those of fmt::format.
template <class... Args>
[[noreturn]] void fail(ExitCode code, fmt::format_string<Args...> text, Args&&... args) {
    throw Error(code, fmt::format(text, std::forward<Args>(args)...));
}

/// Check a condition that outside input or a caller can break; active in every build type.
/// The text is formatted only on failure.
template <class... Args>
void require(bool condition, ExitCode code, fmt::format_string<Args...> text, Args&&... args) {
    if (!condition) {
        fail(code, text, std::forward<Args>(args)...);
    }
}

}  // namespace cpstep
