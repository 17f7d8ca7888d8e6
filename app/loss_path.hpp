// How the policy loss of one micro-batch learns what the tokens on other CP ranks say.
#pragma once

#include <memory>
#include <string_view>

#include "app/batch_buffers.hpp"
#include "mpi/comm.hpp"

namespace cpstep {

/// One object a micro-batch. Own rows and loss rows as in BatchBuffers.
///   scalar  sums of n or 2n floats forward, the gradient in closed form; loss rows are own rows;
///   padded  each response as a zero-padded vector, summed, and its gradient the same way back;
///   gather  the stream's log-probs and entropies on every rank, the loss replicated.
/// In a group of one nothing is sent.
class LossPath {
  public:
    LossPath(Backend& backend, Comm& cp) : backend_(backend), cp_(cp) {}
    LossPath(LossPath const&) = delete;
    LossPath& operator=(LossPath const&) = delete;
    virtual ~LossPath() = default;

    /// After a pass without gradients ("ref" or "old"): its log-probs of own rows, brought to
    /// `loss_rows` (Q,1). The entropy travels with them where a path moves both.
    virtual void share(std::string_view pass, Tensor own_log_probs, Tensor own_entropy,
                       Tensor loss_rows);

    /// The policy loss of `inputs` (log_probs and entropy of own rows, the others of loss rows).
    /// Writes b.seq_kl, b.d_log_probs and b.d_entropy: the gradient of the loss of all CP ranks.
    /// Adds to `metrics` what sums to the loss of the micro-batch over CP ranks.
    virtual void apply(BatchBuffers& b, PolicyTensors const& inputs,
                       PolicyLossOptions const& options, Tensor metrics) = 0;

    /// After apply(), b.seq_kl is k_j on every CP rank; else each has a share and they sum to k_j.
    virtual bool seq_kl_complete(PolicyLossOptions const& options) const;

  protected:
    Backend& backend_;
    Comm& cp_;
};

/// The path of `batch.loss()`. `cp` must outlive the result.
std::unique_ptr<LossPath> make_loss_path(Backend& backend, Comm& cp, MicroBatch const& batch);

}  // namespace cpstep
