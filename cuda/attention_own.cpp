// Our kernels as an attention backend: `reference`, or `mma`.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/attention_device.hpp"

namespace cpstep {

namespace {

class OwnAttention final : public DeviceAttention {
  public:
    OwnAttention(Device const& device, bool mma) : device_(device), mma_(mma) {}

    std::string name() const override { return mma_ ? "mma" : "reference"; }

    void forward(Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, HeadShape shape,
                 std::span<Segment const> segments, Accumulate mode) override {
        AttentionForward const call{o, lse, q, k, v, shape};
        check_attention(call, segments, mode);
        if (mma_) {
            device::mma_attention(device_, call, segments, mode);
        } else {
            device::reference_attention(device_, call, segments, mode);
        }
    }

    void backward(Tensor dq, Tensor dk, Tensor dv, Tensor q, Tensor k, Tensor v, Tensor o,
                  Tensor d_o, Tensor lse, HeadShape shape, std::span<Segment const> segments,
                  Accumulate mode) override {
        AttentionBackward const call{dq, dk, dv, q, k, v, o, d_o, lse, shape};
        check_attention(call, segments, mode);
        std::vector<RowRange> queries;
        std::vector<RowRange> keys;
        for (Segment const& s : segments) {
            queries.push_back({s.q_row, s.q_rows});
            keys.push_back({s.kv_row, s.kv_rows});
        }
        if (mode == Accumulate::overwrite) {
            device::zero_rows(device_, dq, rows_outside(std::move(queries), q.rows));
        }
        std::vector<RowRange> const unseen = rows_outside(std::move(keys), k.rows);
        device::zero_rows(device_, dk, unseen);
        device::zero_rows(device_, dv, unseen);
        if (mma_) {
            device::mma_attention(device_, call, segments, mode, Accumulate::overwrite);
        } else {
            device::reference_attention(device_, call, segments, mode, Accumulate::overwrite);
        }
    }

    std::size_t scratch_bytes(HeadShape shape, std::int64_t q_rows,
                              std::int64_t kv_rows) const override {
        return device::own_scratch_bytes(shape, q_rows, kv_rows);
    }

  private:
    Device device_;
    bool mma_;
};

}  // namespace

std::unique_ptr<DeviceAttention> make_reference_attention(Device const& device) {
    return std::make_unique<OwnAttention>(device, false);
}

std::unique_ptr<DeviceAttention> make_mma_attention(Device const& device) {
    return std::make_unique<OwnAttention>(device, true);
}

}  // namespace cpstep
