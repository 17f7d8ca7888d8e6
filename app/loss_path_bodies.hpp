// Private to loss_*.cpp: the bodies of LossPath.
#pragma once

#include "app/loss_path.hpp"

namespace cpstep {

std::unique_ptr<LossPath> make_scalar_loss(Backend& backend, Comm& cp, MicroBatch const& batch);
std::unique_ptr<LossPath> make_padded_loss(Backend& backend, Comm& cp, MicroBatch const& batch);
std::unique_ptr<LossPath> make_gather_loss(Backend& backend, Comm& cp, MicroBatch const& batch);

}  // namespace cpstep
