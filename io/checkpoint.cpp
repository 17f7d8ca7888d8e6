#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "cuda/error.hpp"
#include "io/json_text.hpp"
#include "io/safetensors.hpp"

namespace cpstep {
namespace {

using nlohmann::json;

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr std::uint64_t kMaxIndexBytes = 100'000'000;

/// One Error for a complete list: the summary, then a line for each problem.
void fail_with_list(std::string const& summary, std::vector<std::string> const& lines) {
    if (!lines.empty()) {
        fail(ExitCode::input_data, "{}\n  {}", summary, fmt::join(lines, "\n  "));
    }
}

/// tensor name -> shard file name, as the index states it.
std::map<std::string, std::string> read_index(std::filesystem::path const& file) {
    json const index = read_json_object(file, {.depth = 8}, kMaxIndexBytes);
    auto const found = index.find("weight_map");
    require(found != index.end() && found->is_object() && !found->empty(), ExitCode::input_data,
            "{}: needs a non-empty object weight_map", file.string());
    std::map<std::string, std::string> weight_map;
    for (auto const& [tensor, shard] : found->items()) {
        require(shard.is_string(), ExitCode::input_data,
                "{}: weight_map[\"{}\"] must be a file name", file.string(), tensor);
        auto const& name = shard.get_ref<std::string const&>();
        require(!name.empty() && name.find('/') == std::string::npos &&
                    name.find("..") == std::string::npos && name.find('\0') == std::string::npos,
                ExitCode::input_data,
                "{}: weight_map[\"{}\"] = \"{}\" must be a plain file name inside the folder",
                file.string(), tensor, name);
        weight_map[tensor] = name;
    }
    return weight_map;
}

std::set<std::string> shard_names(std::map<std::string, std::string> const& weight_map) {
    std::set<std::string> names;
    for (auto const& [tensor, shard] : weight_map) {
        names.insert(shard);
    }
    return names;
}

void require_shards_present(std::filesystem::path const& folder,
                            std::set<std::string> const& shards) {
    std::vector<std::string> missing;
    for (std::string const& name : shards) {
        if (!std::filesystem::is_regular_file(folder / name)) {
            missing.push_back(name);
        }
    }
    fail_with_list(fmt::format("{}: {} of {} shards missing; download them again:", folder.string(),
                               missing.size(), shards.size()),
                   missing);
}

using ShardsOfTensor = std::map<std::string, std::vector<std::string>>;

/// Both directions: each indexed tensor is in its shard and nowhere else; the shards hold nothing
/// more.
std::vector<std::string> index_differences(std::map<std::string, std::string> const& weight_map,
                                           ShardsOfTensor const& holders) {
    std::vector<std::string> lines;
    for (auto const& [tensor, shards] : holders) {
        if (shards.size() > 1) {
            lines.push_back(fmt::format("{}: in {} shards: {}", tensor, shards.size(),
                                        fmt::join(shards, ", ")));
        }
        if (!weight_map.contains(tensor)) {
            lines.push_back(
                fmt::format("{}: in shard {} but not in the index", tensor, shards.front()));
        }
    }
    for (auto const& [tensor, shard] : weight_map) {
        auto const found = holders.find(tensor);
        if (found == holders.end()) {
            lines.push_back(fmt::format("{}: not in {}, which the index names", tensor, shard));
        } else if (std::find(found->second.begin(), found->second.end(), shard) ==
                   found->second.end()) {
            lines.push_back(fmt::format("{}: the index names {}, it is in {}", tensor, shard,
                                        fmt::join(found->second, ", ")));
        }
    }
    return lines;
}

std::string shape_text(std::vector<std::int64_t> const& shape) {
    return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::vector<std::int64_t> expected_shape(TensorSpec const& spec) {
    return spec.vector ? std::vector{spec.cols} : std::vector{spec.rows, spec.cols};
}

}  // namespace

Checkpoint::Checkpoint(std::filesystem::path const& folder) : folder_(folder) {
    require(std::filesystem::is_directory(folder), ExitCode::input_data,
            "{}: not a folder; give the folder of a HF checkpoint", folder.string());
    if (std::filesystem::exists(folder / kSingleFile)) {
        files_.push_back(std::make_unique<SafetensorsFile>(folder / kSingleFile));
    } else {
        std::filesystem::path const index_file = folder / kIndexFile;
        require(std::filesystem::exists(index_file), ExitCode::input_data,
                "{}: holds neither {} nor {}", folder.string(), kSingleFile, kIndexFile);
        auto const weight_map = read_index(index_file);
        auto const shards = shard_names(weight_map);
        require_shards_present(folder, shards);
        ShardsOfTensor holders;
        for (std::string const& name : shards) {
            files_.push_back(std::make_unique<SafetensorsFile>(folder / name));
            for (TensorEntry const& entry : files_.back()->entries()) {
                holders[entry.name].push_back(name);
            }
        }
        auto const lines = index_differences(weight_map, holders);
        fail_with_list(fmt::format("{}: {} differences between the index and its shards:",
                                   index_file.string(), lines.size()),
                       lines);
    }
    for (std::size_t file = 0; file < files_.size(); ++file) {
        for (std::size_t i = 0; i < files_[file]->entries().size(); ++i) {
            where_[files_[file]->entries()[i].name] = {file, i};
        }
    }
}

TensorEntry const* Checkpoint::find(std::string const& name) const {
    auto const found = where_.find(name);
    return found == where_.end() ? nullptr
                                 : &files_[found->second.first]->entries()[found->second.second];
}

std::vector<std::string> Checkpoint::names() const {
    std::vector<std::string> names;
    for (auto const& [name, place] : where_) {
        names.push_back(name);
    }
    return names;
}

void Checkpoint::read(std::string const& name, std::span<float> out) const {
    TensorEntry const* const entry = find(name);
    require(entry != nullptr, ExitCode::input_data, "{}: no tensor {}", folder_.string(), name);
    files_[where_.at(name).first]->read(*entry, out);
}

void Checkpoint::require_matches(std::vector<TensorSpec> const& specs) const {
    std::vector<std::string> lines;
    std::set<std::string> wanted{"lm_head.weight"};  // beside a tied embedding it is left unread
    for (TensorSpec const& spec : specs) {
        wanted.insert(spec.name);
        TensorEntry const* const entry = find(spec.name);
        auto const shape = expected_shape(spec);
        if (entry == nullptr) {
            lines.push_back(fmt::format("missing: {} {}", spec.name, shape_text(shape)));
            continue;
        }
        if (entry->shape != shape) {
            lines.push_back(fmt::format("shape: {} is {}, config.json asks for {}", spec.name,
                                        shape_text(entry->shape), shape_text(shape)));
        }
        if (entry->dtype == FileDType::other) {
            lines.push_back(
                fmt::format("dtype: {} is {}, not F32, F16 or BF16", spec.name, entry->dtype_name));
        }
    }
    for (auto const& [name, place] : where_) {
        if (!wanted.contains(name)) {
            lines.push_back(fmt::format("extra: {} {}", name, shape_text(find(name)->shape)));
        }
    }
    fail_with_list(fmt::format("{}: {} differences between the checkpoint and config.json:",
                               folder_.string(), lines.size()),
                   lines);
}

}  // namespace cpstep
