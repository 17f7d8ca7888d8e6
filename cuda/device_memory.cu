#include <algorithm>
#include <cstring>
#include <exception>
#include <iterator>
#include <utility>

#include "cuda/device_memory.hpp"

namespace cpstep {
namespace {

constexpr std::size_t alignment = 256;
/// The driver's page; sharing memory between processes shares whole pages.
constexpr std::size_t page = std::size_t{2} << 20;
constexpr std::size_t slab_bytes = 16 * page;
/// Pieces up to this size come from slabs.
constexpr std::size_t small_limit = page / 2;

constexpr std::size_t rounded_up(std::size_t bytes, std::size_t unit) {
    return (std::max<std::size_t>(bytes, 1) + unit - 1) / unit * unit;
}

std::string gibibytes(std::size_t bytes) {
    return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1 << 30));
}

struct MemoryInfo {
    std::size_t free = 0;
    std::size_t total = 0;
};

MemoryInfo memory_info() {
    MemoryInfo info;
    CUDA_CHECK(cudaMemGetInfo(&info.free, &info.total));
    return info;
}

[[noreturn]] void fail_short(std::size_t bytes, std::string_view name) {
    MemoryInfo const info = memory_info();
    fail(ExitCode::input_data,
         "device memory is short: {} bytes ({}) wanted for {}, {} free of {}; use more ranks, a "
         "smaller --max-tokens-per-gpu or a larger card",
         bytes, gibibytes(bytes), name, gibibytes(info.free), gibibytes(info.total));
}

}  // namespace

PinnedMemory pinned_memory(std::size_t bytes) {
    void* pointer = nullptr;
    CUDA_CHECK(cudaMallocHost(&pointer, bytes));
    return PinnedMemory(pointer);
}

EventHandle ordering_event() {
    cudaEvent_t event = nullptr;
    CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return EventHandle(event);
}

EventHandle timing_event() {
    cudaEvent_t event = nullptr;
    CUDA_CHECK(cudaEventCreate(&event));
    return EventHandle(event);
}

DeviceMemory::DeviceMemory(CudaQueues& queues)
    : queues_(queues), drained_(ordering_event()), total_(memory_info().total) {}

DeviceMemory::~DeviceMemory() {
    for (auto const& [base, block] : blocks_) {
        (void)cudaFree(base);
    }
}

void* DeviceMemory::allocate(std::size_t bytes, std::string_view name) {
    if (!released_large_.empty()) {
        free_large();
    }
    std::byte* piece = nullptr;
    if (bytes > small_limit) {
        piece = new_block(bytes, name, false);
    } else {
        std::size_t const rounded = rounded_up(bytes, alignment);
        piece = from_slabs(rounded);
        if (piece == nullptr && !released_small_.empty()) {
            reuse_small();
            piece = from_slabs(rounded);
        }
        if (piece == nullptr) {
            (void)new_block(slab_bytes, name, true);
            piece = from_slabs(rounded);
        }
        small_.emplace(piece, rounded);
    }
#ifndef NDEBUG
    // Whatever is read before it is written shows.
    CUDA_CHECK(cudaMemsetAsync(piece, 0xff, std::max<std::size_t>(bytes, 1), queues_.compute()));
#endif
    return piece;
}

void DeviceMemory::release(void* pointer) noexcept {
    if (pointer == nullptr) {
        return;
    }
    auto* const piece = static_cast<std::byte*>(pointer);
    try {
        if (small_.contains(piece)) {
            released_small_.push_back(piece);
            return;
        }
        released_large_.push_back(piece);
        if (std::uncaught_exceptions() == 0) {
            free_large();
        }
    } catch (std::exception const&) {
        // The device does not answer or the host has no memory: the next call that can throw says
        // so; this piece stays taken.
        return;
    }
}

IpcBlock DeviceMemory::block_of(void const* pointer) const {
    auto const* const at = static_cast<std::byte const*>(pointer);
    auto after = blocks_.upper_bound(const_cast<std::byte*>(at));
    require(after != blocks_.begin(), ExitCode::internal, "not memory of this device");
    auto const& [base, block] = *std::prev(after);
    require(at < base + block.bytes, ExitCode::internal, "not memory of this device");
    return {base, block.bytes, block.id};
}

std::byte* DeviceMemory::new_block(std::size_t bytes, std::string_view name, bool slab) {
    if (bytes > total_) {
        fail_short(bytes, name);
    }
    std::size_t const rounded = rounded_up(bytes, page);
    void* base = nullptr;
    cudaError_t const rc = cudaMalloc(&base, rounded);
    if (rc == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();  // else the next launch would be taken to have failed
        fail_short(bytes, name);
    }
    check_cuda(rc, "cudaMalloc");
    Block& block = blocks_[static_cast<std::byte*>(base)];
    block.bytes = rounded;
    block.id = ++last_id_;
    if (slab) {
        block.ranges.emplace(rounded);
    }
    taken_ += rounded;
    peak_ = std::max(peak_, taken_);
    return static_cast<std::byte*>(base);
}

std::byte* DeviceMemory::from_slabs(std::size_t bytes) {
    for (auto& [base, block] : blocks_) {
        if (!block.ranges) {
            continue;
        }
        if (auto const offset = block.ranges->take(bytes)) {
            return base + *offset;
        }
    }
    return nullptr;
}

/// What is queued from now on runs after all that is queued by now, so released pieces are free.
void DeviceMemory::reuse_small() {
    queues_.wire_after_compute();
    queues_.compute_after_wire();
    for (std::byte* const piece : released_small_) {
        auto const known = small_.find(piece);
        auto const slab = std::prev(blocks_.upper_bound(piece));
        slab->second.ranges->give(static_cast<std::size_t>(piece - slab->first), known->second);
        small_.erase(known);
    }
    released_small_.clear();
}

/// cudaFree waits for the device, but knows no deadline.
void DeviceMemory::free_large() {
    queues_.compute_after_wire();
    CUDA_CHECK(cudaEventRecord(drained_.get(), queues_.compute()));
    queues_.wait(drained_.get());
    while (!released_large_.empty()) {
        auto const block = blocks_.find(released_large_.back());
        released_large_.pop_back();
        require(block != blocks_.end(), ExitCode::internal, "released memory was not allocated");
        taken_ -= block->second.bytes;
        void* const base = block->first;
        blocks_.erase(block);
        CUDA_CHECK(cudaFree(base));
    }
}

void* NamedScratch::at_least(std::size_t bytes, std::string_view name) {
    auto known = pieces_.find(name);
    if (known == pieces_.end()) {
        known = pieces_.emplace(name, Piece{}).first;
    }
    Piece& piece = known->second;
    if (piece.data == nullptr || piece.bytes < bytes) {
        memory_.release(std::exchange(piece, Piece{}).data);
        piece.data = memory_.allocate(bytes, name);
        piece.bytes = bytes;
    }
    return piece.data;
}

namespace {

/// A part of a tensor that fits the staging memory: rows x width bytes, rows `pitch` bytes apart.
struct Part {
    std::byte* device = nullptr;
    std::size_t pitch = 0;
    std::size_t rows = 0;
    std::size_t width = 0;

    std::size_t bytes() const { return rows * width; }
};

void copy_part(void* to, std::size_t to_pitch, void const* from, std::size_t from_pitch,
               Part const& part, cudaMemcpyKind kind, cudaStream_t stream) {
    if (part.rows == 1) {  // its pitch may exceed what 2D copies allow
        CUDA_CHECK(cudaMemcpyAsync(to, from, part.width, kind, stream));
        return;
    }
    CUDA_CHECK(
        cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, part.width, part.rows, kind, stream));
}

/// Calls visit(part, offset) for parts of at most `most` bytes that make up `t`; offset is where
/// the part lies in contiguous host memory. Parts of one row each where a row exceeds `most`.
template <class Visit>
void for_parts(Tensor t, std::size_t most, Visit const& visit) {
    if (t.elements() == 0) {
        return;
    }
    auto* const data = static_cast<std::byte*>(t.data);
    std::size_t const size = element_bytes(t.dtype);
    bool const flat = t.contiguous();
    std::size_t const rows = flat ? 1 : static_cast<std::size_t>(t.rows);
    std::size_t const width = flat ? t.bytes() : static_cast<std::size_t>(t.cols) * size;
    std::size_t const pitch = flat ? width : static_cast<std::size_t>(t.stride) * size;
    std::size_t const rows_a_part = std::max<std::size_t>(1, most / width);
    for (std::size_t row = 0; row < rows; row += rows_a_part) {
        std::size_t const count = std::min(rows_a_part, rows - row);
        for (std::size_t begin = 0; begin < width; begin += most) {
            visit(Part{data + row * pitch + begin, pitch, count, std::min(most, width - begin)},
                  row * width + begin);
        }
    }
}

}  // namespace

Staging::Staging(CudaQueues& queues)
    : queues_(queues),
      pinned_(pinned_memory(2 * half_bytes)),
      last_use_{ordering_event(), ordering_event()},
      arrived_(ordering_event()) {}

std::byte* Staging::claim(std::size_t bytes) {
    if (used_ + bytes > half_bytes) {
        CUDA_CHECK(cudaEventRecord(last_use_[half_].get(), queues_.compute()));
        half_ = 1 - half_;
        used_ = 0;
        queues_.wait(last_use_[half_].get());  // at once if it was never recorded
    }
    std::byte* const claimed = static_cast<std::byte*>(pinned_.get()) + half_ * half_bytes + used_;
    used_ += rounded_up(bytes, alignment);
    return claimed;
}

void Staging::upload(Tensor dst, void const* src) {
    for_parts(dst, half_bytes, [&](Part const& part, std::size_t offset) {
        std::byte* const pinned = claim(part.bytes());
        std::memcpy(pinned, static_cast<std::byte const*>(src) + offset, part.bytes());
        copy_part(part.device, part.pitch, pinned, part.width, part, cudaMemcpyHostToDevice,
                  queues_.compute());
    });
}

void Staging::download(void* dst, Tensor src) {
    for_parts(src, half_bytes, [&](Part const& part, std::size_t offset) {
        std::byte* const pinned = claim(part.bytes());
        copy_part(pinned, part.width, part.device, part.pitch, part, cudaMemcpyDeviceToHost,
                  queues_.compute());
        CUDA_CHECK(cudaEventRecord(arrived_.get(), queues_.compute()));
        queues_.wait(arrived_.get());
        std::memcpy(static_cast<std::byte*>(dst) + offset, pinned, part.bytes());
    });
}

}  // namespace cpstep
