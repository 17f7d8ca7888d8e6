#include <numeric>

#include "app/loss_path_bodies.hpp"
#include "cuda/fault.hpp"

namespace cpstep {

namespace {

/// Each sample's weight over the CP size: C ranks evaluate the same loss, and what they add up is
/// the loss once.
std::vector<float> shared_weight(MicroBatch const& batch, int ranks) {
    std::vector<float> weight = batch.weight;
    for (float& w : weight) {
        w /= planted(Fault::replicated_loss_not_divided) ? 1.0F : static_cast<float>(ranks);
    }
    return weight;
}

/// FSDP trainers' path: log-probs and entropies of all stream rows, stacked (S,2), gathered on
/// every rank in every pass; every rank evaluates the loss over all response rows; the gradient
/// returns by a reduce-scatter, the backward of the gather. S_all: rows of all streams.
class GatherLoss final : public LossPath {
  public:
    GatherLoss(Backend& backend, Comm& cp, MicroBatch const& batch)
        : LossPath(backend, cp),
          stream_rows_(batch.stream_rows),
          response_rows_(uploaded(backend, batch.response_rows)),
          all_in_streams_(uploaded(backend, batch.all_in_streams)),
          weight_(uploaded(backend, shared_weight(batch, cp.size()))),
          own_stream_(backend, batch.rows(), 2, DType::f32),
          streams_(backend, rows_of(stream_rows_), 2, DType::f32),
          log_probs_(backend, batch.all.size(), 1, DType::f32),
          entropy_(backend, batch.all.size(), 1, DType::f32),
          d_log_probs_(backend, batch.all.size(), 1, DType::f32),
          d_entropy_(backend, batch.all.size(), 1, DType::f32),
          d_seq_kl_(backend, batch.sample_count(), 1, DType::f32) {}

    void share(std::string_view pass, Tensor own_log_probs, Tensor own_entropy,
               Tensor loss_rows) override {
        gather(fmt::format("loss.gather.{}", pass), own_log_probs, own_entropy);
        backend_.gather_rows(loss_rows, log_prob_column(streams_), all_in_streams_);
    }

    void apply(BatchBuffers& b, PolicyTensors const& inputs, PolicyLossOptions const& options,
               Tensor metrics) override {
        gather("loss.gather.train", inputs.log_probs, inputs.entropy);
        backend_.gather_rows(log_probs_, log_prob_column(streams_), all_in_streams_);
        backend_.gather_rows(entropy_, entropy_column(streams_), all_in_streams_);
        PolicyTensors rows = inputs;
        rows.log_probs = log_probs_;
        rows.entropy = entropy_;
        rows.weight = weight_;
        backend_.zero(b.seq_kl);
        backend_.sequence_kl_partial(b.seq_kl, {}, b.mask_sum, rows, options);
        backend_.zero(d_seq_kl_);
        backend_.policy_loss(d_log_probs_, d_entropy_, d_seq_kl_, metrics, rows, options);
        backend_.sequence_kl_backward(d_log_probs_, d_seq_kl_, b.mask_sum, b.mask, b.sample_of);
        scatter_back(b);
    }

    /// Every rank has every row.
    bool seq_kl_complete(PolicyLossOptions const& /*options*/) const override { return true; }

  private:
    static std::int64_t rows_of(std::vector<std::int64_t> const& streams) {
        return std::accumulate(streams.begin(), streams.end(), std::int64_t{0});
    }
    static Tensor log_prob_column(Tensor stacked) { return stacked.columns(0, 1); }
    static Tensor entropy_column(Tensor stacked) { return stacked.columns(1, 1); }

    /// Rows of a stream that are no response rows are sent as zeros.
    void gather(std::string_view label, Tensor own_log_probs, Tensor own_entropy) {
        backend_.zero(own_stream_);
        backend_.scatter_add_rows(log_prob_column(own_stream_), own_log_probs, response_rows_);
        backend_.scatter_add_rows(entropy_column(own_stream_), own_entropy, response_rows_);
        if (cp_.size() == 1) {
            backend_.copy(streams_, own_stream_);
        } else {
            cp_.all_gather(label, streams_, own_stream_, stream_rows_);
        }
    }

    void scatter_back(BatchBuffers& b) {
        backend_.zero(streams_);
        backend_.scatter_add_rows(log_prob_column(streams_), d_log_probs_, all_in_streams_);
        backend_.scatter_add_rows(entropy_column(streams_), d_entropy_, all_in_streams_);
        if (cp_.size() == 1) {
            backend_.copy(own_stream_, streams_);
        } else {
            cp_.reduce_scatter_sum("loss.gather.backward", own_stream_, streams_, stream_rows_);
        }
        backend_.gather_rows(b.d_log_probs, log_prob_column(own_stream_), response_rows_);
        backend_.gather_rows(b.d_entropy, entropy_column(own_stream_), response_rows_);
    }

    std::vector<std::int64_t> stream_rows_;  // S of each CP rank
    Buffer response_rows_, all_in_streams_;  // i32
    Buffer weight_;                          // (n,1)
    Buffer own_stream_, streams_;            // (S,2), (S_all,2)
    Buffer log_probs_, entropy_;             // (Q,1)
    Buffer d_log_probs_, d_entropy_;         // (Q,1)
    Buffer d_seq_kl_;                        // (n,1)
};

}  // namespace

std::unique_ptr<LossPath> make_gather_loss(Backend& backend, Comm& cp, MicroBatch const& batch) {
    return std::make_unique<GatherLoss>(backend, cp, batch);
}

}  // namespace cpstep
