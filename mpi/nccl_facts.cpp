#include "mpi/nccl_facts.hpp"

#ifdef CPSTEP_NCCL
#include <dlfcn.h>
#include <nccl.h>
#endif

#include "cuda/error.hpp"

namespace cpstep {

std::string nccl_version_text(int code) {
    return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100);
}

#ifdef CPSTEP_NCCL

NcclFacts nccl_facts() {
    NcclFacts facts{.header = known(NCCL_VERSION_CODE), .library = {}, .path = "linked statically"};
    int version = 0;
    ncclResult_t const rc = ncclGetVersion(&version);
    facts.library = rc == ncclSuccess
                        ? known(version)
                        : unknown<int>(fmt::format("ncclGetVersion: {}", ncclGetErrorString(rc)));
    Dl_info info{};
    void const* const loaded = dlsym(RTLD_DEFAULT, "ncclGetVersion");
    if (loaded != nullptr && dladdr(loaded, &info) != 0 && info.dli_fname != nullptr) {
        facts.path = info.dli_fname;
    }
    return facts;
}

#else

NcclFacts nccl_facts() {
    constexpr char const* none = "this build has no NCCL";
    return {.header = unknown<int>(none), .library = unknown<int>(none), .path = {}};
}

#endif

}  // namespace cpstep
