#include "mpi/mpi_group.hpp"

#include <array>
#include <string_view>

#include "mpi/comm_bodies.hpp"

namespace cpstep {
namespace {

constexpr int group_tag = 32767;  // on MPI_COMM_WORLD; MPI promises tags 0 .. 32767

/// Every member has entered.
void meet(World const& world, std::vector<int> const& members) {
    for (int const peer : members) {
        if (peer == world.rank()) {
            continue;
        }
        std::array<MPI_Request, 2> both{MPI_REQUEST_NULL, MPI_REQUEST_NULL};
        MPI_CHECK(MPI_Irecv(nullptr, 0, MPI_BYTE, peer, group_tag, MPI_COMM_WORLD, both.data()));
        MPI_CHECK(
            MPI_Isend(nullptr, 0, MPI_BYTE, peer, group_tag, MPI_COMM_WORLD, both.data() + 1));
        auto const done = [&] {
            int flag = 0;
            MPI_CHECK(MPI_Testall(2, both.data(), &flag, MPI_STATUSES_IGNORE));
            return flag != 0;
        };
        wait_for(done, world.deadline(), [&] {
            return fmt::format("rank {} to form a group of {}", peer, members.size());
        });
    }
}

}  // namespace

void check_mpi(int rc, char const* call) {
    if (rc == MPI_SUCCESS) {
        return;
    }
    std::array<char, MPI_MAX_ERROR_STRING> text{};
    int length = 0;
    (void)MPI_Error_string(rc, text.data(), &length);
    std::string_view const name(call);
    fail(ExitCode::communication, "{}: {}", name.substr(0, name.find('(')), text.data());
}

MPI_Comm form_mpi_group(World const& world, std::vector<int> const& members) {
    meet(world, members);
    MPI_Group all = MPI_GROUP_NULL;
    MPI_Group group = MPI_GROUP_NULL;
    MPI_CHECK(MPI_Comm_group(MPI_COMM_WORLD, &all));
    MPI_CHECK(MPI_Group_incl(all, static_cast<int>(members.size()), members.data(), &group));
    MPI_Comm comm = MPI_COMM_NULL;
    MPI_CHECK(MPI_Comm_create_group(MPI_COMM_WORLD, group, group_tag, &comm));
    MPI_CHECK(MPI_Group_free(&group));
    MPI_CHECK(MPI_Group_free(&all));
    MPI_CHECK(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN));
    return comm;
}

}  // namespace cpstep
