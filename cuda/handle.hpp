// One owner for every C handle.
#pragma once

#include <utility>

namespace cpstep {

/// Owns a C handle: move only, closes once, safe on self-move. `Close` is a named function.
template <class H, auto Close, H Null = H{}>
class Handle {
  public:
    Handle() noexcept = default;
    explicit Handle(H handle) noexcept : handle_(handle) {}
    Handle(Handle const&) = delete;
    Handle& operator=(Handle const&) = delete;
    Handle(Handle&& other) noexcept : handle_(std::exchange(other.handle_, Null)) {}
    Handle& operator=(Handle&& other) noexcept {
        H taken = std::exchange(other.handle_, Null);
        reset(taken);
        return *this;
    }
    ~Handle() { reset(Null); }

    H get() const noexcept { return handle_; }
    explicit operator bool() const noexcept { return handle_ != Null; }
    void reset(H next = Null) noexcept {
        if (handle_ != Null && handle_ != next) {
            (void)Close(handle_);
        }
        handle_ = next;
    }

  private:
    H handle_ = Null;
};

}  // namespace cpstep
