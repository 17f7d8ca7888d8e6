#include "cuda/attention_graph.hpp"

#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

#include <cmath>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda/error.hpp"
#include "cuda/handle.hpp"

static_assert(CUDNN_FRONTEND_VERSION >= 11500,
              "cudnn-frontend before 1.15 gives NaN gradients for small shapes (its issue 160)");

namespace cpstep {

namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using fe::graph::Tensor_attributes;
using TensorPtr = std::shared_ptr<Tensor_attributes>;

void close_cudnn(cudnnHandle_t handle) noexcept {
    (void)cudnnDestroy(handle);
}
using CudnnHandle = Handle<cudnnHandle_t, close_cudnn>;

void check(cudnnStatus_t status, char const* call) {
    require(status == CUDNN_STATUS_SUCCESS, ExitCode::environment, "{}: {}", call,
            cudnnGetErrorString(status));
}

/// Unsupported shapes are the environment's matter, the rest is ours.
void check(fe::error_t const& status, char const* what) {
    require(status.is_good(),
            status.code == fe::error_code_t::GRAPH_NOT_SUPPORTED ? ExitCode::environment
                                                                 : ExitCode::internal,
            "cuDNN attention: {}: {}", what, status.err_msg);
}

constexpr std::int64_t uid_of(Operand operand) {
    return 1 + static_cast<std::int64_t>(operand);
}
constexpr std::int64_t offsets_uid_of(Operand operand) {
    return 101 + static_cast<std::int64_t>(operand);
}
constexpr std::int64_t q_lengths_uid = 201;
constexpr std::int64_t kv_lengths_uid = 202;

bool has_key_rows(Operand operand) {
    return operand == Operand::k || operand == Operand::v || operand == Operand::dk ||
           operand == Operand::dv;
}

/// The graph of one shape. Row strides, alignment and offsets of its tensors are the caller's.
class Builder {
  public:
    explicit Builder(GraphShape const& shape) : shape_(shape), graph_(std::make_shared<Graph>()) {
        graph_->set_io_data_type(fe::DataType_t::BFLOAT16)
            .set_intermediate_data_type(fe::DataType_t::FLOAT)
            .set_compute_data_type(fe::DataType_t::FLOAT);
    }

    std::shared_ptr<Graph> forward() {
        auto options = fe::graph::SDPA_attributes().set_name("attention").set_generate_stats(true);
        apply(options);
        auto [o, stats] =
            graph_->sdpa(input(Operand::q), input(Operand::k), input(Operand::v), options);
        output(o, Operand::o);
        output(stats, Operand::stats);
        return graph_;
    }

    std::shared_ptr<Graph> backward() {
        auto options = fe::graph::SDPA_backward_attributes().set_name("attention_backward");
        apply(options);
        if (several()) {
            options.set_max_total_seq_len_q(shape_.q_total);
            options.set_max_total_seq_len_kv(shape_.kv_total);
        }
        auto [dq, dk, dv] = graph_->sdpa_backward(
            input(Operand::q), input(Operand::k), input(Operand::v), input(Operand::o),
            input(Operand::d_o), input(Operand::stats), options);
        output(dq, Operand::dq);
        output(dk, Operand::dk);
        output(dv, Operand::dv);
        return graph_;
    }

  private:
    bool several() const { return shape_.sequences > 0; }
    std::int64_t batch() const { return several() ? shape_.sequences : 1; }

    template <class Options>
    void apply(Options& options) {
        options.set_attn_scale(
            static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape_.head_dim))));
        if (shape_.mask != Piece::Mask::full) {
            options
                .set_diagonal_alignment(shape_.mask == Piece::Mask::causal
                                            ? fe::DiagonalAlignment_t::TOP_LEFT
                                            : fe::DiagonalAlignment_t::BOTTOM_RIGHT)
                .set_diagonal_band_right_bound(0);
        }
        if (several()) {
            options.set_padding_mask(true)
                .set_seq_len_q(index("q_lengths", q_lengths_uid, batch(), fe::DataType_t::INT32))
                .set_seq_len_kv(
                    index("kv_lengths", kv_lengths_uid, batch(), fe::DataType_t::INT32));
        }
    }

    TensorPtr index(char const* name, std::int64_t uid, std::int64_t count, fe::DataType_t type) {
        return graph_->tensor(Tensor_attributes()
                                  .set_name(name)
                                  .set_uid(uid)
                                  .set_dim({count, 1, 1, 1})
                                  .set_stride({1, 1, 1, 1})
                                  .set_data_type(type));
    }

    /// Shape, strides, offsets and uid of an operand: (batch, heads, rows, columns of a head).
    void describe(Tensor_attributes& tensor, Operand operand) {
        bool const keys = has_key_rows(operand);
        std::int64_t const heads = keys ? shape_.kv_heads : shape_.heads;
        std::int64_t const rows = keys ? shape_.kv_rows : shape_.q_rows;
        tensor.set_uid(uid_of(operand));
        if (operand == Operand::stats) {
            tensor.set_data_type(fe::DataType_t::FLOAT).set_dim({batch(), heads, rows, 1});
            // Token-major stats of one sequence are read wrongly before 9.26; head-major ones of
            // several give zero gradients (cudnn-frontend pull request 462).
            tensor.set_stride(several() ? std::vector<std::int64_t>{heads * rows, 1, heads, 1}
                                        : std::vector<std::int64_t>{heads * rows, rows, 1, 1});
        } else {
            std::int64_t const stride = shape_.strides[static_cast<std::size_t>(operand)];
            tensor.set_data_type(fe::DataType_t::BFLOAT16)
                .set_dim({batch(), heads, rows, shape_.head_dim})
                .set_stride({rows * stride, shape_.head_dim, stride, 1});
        }
        if (several()) {
            tensor.set_ragged_offset(
                index("offsets", offsets_uid_of(operand), batch() + 1, fe::DataType_t::INT64));
        }
    }

    TensorPtr input(Operand operand) {
        Tensor_attributes tensor;
        tensor.set_name("operand" + std::to_string(uid_of(operand)));
        describe(tensor, operand);
        return graph_->tensor(tensor);
    }

    void output(TensorPtr const& tensor, Operand operand) {
        describe(*tensor, operand);
        tensor->set_output(true);
    }

    GraphShape const& shape_;
    std::shared_ptr<Graph> graph_;
};

struct Plan {
    std::shared_ptr<Graph> graph;
    std::size_t workspace_bytes = 0;
    std::unordered_map<std::int64_t, void*> pointers;  // by uid, filled anew for each run
};

Plan build(GraphShape const& shape, cudnnHandle_t handle) {
    Builder builder(shape);
    Plan plan;
    plan.graph = shape.backward ? builder.backward() : builder.forward();
    check(plan.graph->validate(), "validate");
    check(plan.graph->build_operation_graph(handle), "build the operation graph");
    check(plan.graph->create_execution_plans({fe::HeurMode_t::A}), "create execution plans");
    check(plan.graph->check_support(handle), "check support");
    check(plan.graph->build_plans(handle), "build plans");
    std::int64_t bytes = 0;
    check(plan.graph->get_workspace_size(bytes), "size of the workspace");
    plan.workspace_bytes = static_cast<std::size_t>(bytes);
    return plan;
}

}  // namespace

class CudnnGraphs::Plans {
  public:
    explicit Plans(CUstream_st* stream) {
        cudnnHandle_t handle = nullptr;
        check(cudnnCreate(&handle), "cudnnCreate");
        handle_.reset(handle);
        check(cudnnSetStream(handle, stream), "cudnnSetStream");
    }

    Plan& of(GraphShape const& shape) {
        auto const known = plans_.find(shape);
        return known != plans_.end()
                   ? known->second
                   : plans_.emplace(shape, build(shape, handle_.get())).first->second;
    }

    cudnnHandle_t handle() const { return handle_.get(); }

  private:
    CudnnHandle handle_;
    std::map<GraphShape, Plan> plans_;
};

CudnnGraphs::CudnnGraphs(CUstream_st* stream) : plans_(std::make_unique<Plans>(stream)) {}
CudnnGraphs::~CudnnGraphs() = default;

std::size_t CudnnGraphs::version() {
    return cudnnGetVersion();
}

std::size_t CudnnGraphs::workspace_bytes(GraphShape const& shape) {
    return plans_->of(shape).workspace_bytes;
}

void CudnnGraphs::run(GraphShape const& shape, GraphMemory const& memory, void* workspace) {
    Plan& plan = plans_->of(shape);
    for (std::size_t i = 0; i < operands; ++i) {
        if (memory.data[i] != nullptr) {
            plan.pointers[uid_of(static_cast<Operand>(i))] = memory.data[i];
        }
        if (memory.offsets[i] != nullptr) {
            plan.pointers[offsets_uid_of(static_cast<Operand>(i))] = memory.offsets[i];
        }
    }
    if (shape.sequences > 0) {
        plan.pointers[q_lengths_uid] = memory.q_lengths;
        plan.pointers[kv_lengths_uid] = memory.kv_lengths;
    }
    check(plan.graph->execute(plans_->handle(), plan.pointers, workspace),
          shape.backward ? "backward" : "forward");
}

}  // namespace cpstep
