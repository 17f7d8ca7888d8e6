// Waiting for something another process or a device does.
#pragma once

#include <chrono>
#include <thread>

namespace cpstep {

/// Calls done() until it is true; false once `deadline` has passed. Spins briefly for short
/// messages, then gives the core away: with more ranks than cores a spinning rank slows the one it
/// waits for. watch(), which may throw, is called between polls that do not spin.
template <class Done, class Watch>
bool poll_until(Done const& done, std::chrono::milliseconds deadline, Watch const& watch) {
    using namespace std::chrono_literals;
    constexpr int spins = 200;
    auto const start = std::chrono::steady_clock::now();
    for (int polls = 0; !done(); ++polls) {
        if (polls < spins) {
            continue;
        }
        watch();
        auto const waited = std::chrono::steady_clock::now() - start;
        if (waited > deadline) {
            return false;
        }
        if (waited < 5ms) {
            std::this_thread::yield();
        } else {
            std::this_thread::sleep_for(50us);
        }
    }
    return true;
}

template <class Done>
bool poll_until(Done const& done, std::chrono::milliseconds deadline) {
    return poll_until(done, deadline, [] {});
}

}  // namespace cpstep
