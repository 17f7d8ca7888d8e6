#include "app/loss_path.hpp"

#include "app/loss_path_bodies.hpp"

namespace cpstep {

void LossPath::share(std::string_view /*pass*/, Tensor own_log_probs, Tensor /*own_entropy*/,
                     Tensor loss_rows) {
    backend_.copy(loss_rows, own_log_probs);
}

bool LossPath::seq_kl_complete(PolicyLossOptions const& options) const {
    return needs_sequence_kl(options);
}

std::unique_ptr<LossPath> make_loss_path(Backend& backend, Comm& cp, MicroBatch const& batch) {
    switch (batch.loss()) {
        case LossComm::scalar:
            return make_scalar_loss(backend, cp, batch);
        case LossComm::padded:
            return make_padded_loss(backend, cp, batch);
        case LossComm::gather:
            return make_gather_loss(backend, cp, batch);
    }
    throw Error(ExitCode::internal, "no such loss path");
}

}  // namespace cpstep
