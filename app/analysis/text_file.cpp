#include "app/analysis/text_file.hpp"

#include <cerrno>
#include <cstring>
#include <fstream>

#include "cuda/error.hpp"
#include "io/atomic_file.hpp"

namespace cpstep {

void write_text_file(std::filesystem::path const& file, std::string const& text) {
    {
        std::ofstream out(part_of(file), std::ios::binary);
        out << text;
        out.close();
        require(!out.fail(), ExitCode::output, "{}: cannot be written: {}", file.string(),
                std::strerror(errno));
    }
    publish(file);
}

}  // namespace cpstep
