// Reading HF checkpoints: one safetensors file, or an index with shards.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "io/model_config.hpp"

namespace cpstep {

enum class FileDType : std::uint8_t { f32, f16, bf16, other };

/// One tensor's header entry; offsets are absolute in the file.
struct TensorEntry {
    std::string name;
    FileDType dtype = FileDType::other;
    std::string dtype_name;
    std::vector<std::int64_t> shape;
    std::uint64_t begin = 0;
    std::uint64_t end = 0;

    std::int64_t elements() const;
};

/// A parsed and fully checked header; the data stay on disk. Every format rule is enforced
/// (header at most 100 MB and within the file, JSON object, unique keys, offsets contiguous and
/// covering, sizes matching shapes without overflow, known dtypes); errors are Error(input_data)
/// naming the file. Nothing is allocated by a size that the file merely claims.
class SafetensorsFile {
  public:
    explicit SafetensorsFile(std::filesystem::path path);

    std::filesystem::path const& path() const { return path_; }
    std::vector<TensorEntry> const& entries() const { return entries_; }
    /// Decode an f32/f16/bf16 tensor into `out` (exactly elements() long).
    void read(TensorEntry const& entry, std::span<float> out) const;

  private:
    std::filesystem::path path_;
    std::vector<TensorEntry> entries_;
};

/// A checkpoint folder: model.safetensors, or model.safetensors.index.json with its shards (all
/// present, each tensor in the shard the index names and in no other).
class Checkpoint {
  public:
    explicit Checkpoint(std::filesystem::path const& folder);

    std::filesystem::path const& folder() const { return folder_; }
    /// nullptr when absent.
    TensorEntry const* find(std::string const& name) const;
    std::vector<std::string> names() const;
    void read(std::string const& name, std::span<float> out) const;
    /// Complete list of missing, extra and misshapen tensors against the model, one line each;
    /// throws Error(input_data) if there is any. An lm_head.weight beside a tied embedding is
    /// accepted.
    void require_matches(std::vector<TensorSpec> const& specs) const;

  private:
    std::filesystem::path folder_;
    std::vector<std::unique_ptr<SafetensorsFile>> files_;
    std::map<std::string, std::pair<std::size_t, std::size_t>> where_;
};

}  // namespace cpstep
