// Which parts of a block of memory are free.
#pragma once

#include <cstddef>
#include <iterator>
#include <map>
#include <optional>

namespace cpstep {

/// The free ranges of [0, size); neighbours are one range.
class FreeRanges {
  public:
    explicit FreeRanges(std::size_t size) {
        if (size > 0) {
            free_.emplace(0, size);
        }
    }

    /// The offset of `bytes` > 0 bytes that are free no longer, as low as possible; nothing if no
    /// range is that long.
    std::optional<std::size_t> take(std::size_t bytes) {
        for (auto range = free_.begin(); range != free_.end(); ++range) {
            auto const [offset, length] = *range;
            if (length < bytes) {
                continue;
            }
            free_.erase(range);
            if (length > bytes) {
                free_.emplace(offset + bytes, length - bytes);
            }
            return offset;
        }
        return std::nullopt;
    }

    /// Gives back what take() gave.
    void give(std::size_t offset, std::size_t bytes) {
        auto next = free_.lower_bound(offset);
        if (next != free_.begin()) {
            auto const before = std::prev(next);
            if (before->first + before->second == offset) {
                offset = before->first;
                bytes += before->second;
                free_.erase(before);
            }
        }
        if (next != free_.end() && offset + bytes == next->first) {
            bytes += next->second;
            free_.erase(next);
        }
        free_.emplace(offset, bytes);
    }

  private:
    std::map<std::size_t, std::size_t> free_;  // offset, length
};

}  // namespace cpstep
