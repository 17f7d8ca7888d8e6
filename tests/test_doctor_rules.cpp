#define BOOST_TEST_MODULE doctor_rules
#include <algorithm>
#include <boost/test/unit_test.hpp>

#include "app/doctor/rules.hpp"
#include "doctor_job.hpp"
#include "errors.hpp"

using namespace cpstep;
using namespace cpstep::doctor;
using namespace cpstep::test;

namespace {

Row row_of(JobFacts const& job, std::string const& check) {
    std::vector<Row> const rows = judge(job);
    auto const row = std::ranges::find(rows, check, &Row::check);
    BOOST_REQUIRE_MESSAGE(row != rows.end(), "no check " << check);
    return *row;
}

/// What `change` does to the good job turns one check, and no other, to `status`, and the row says
/// `words`, in value or fix.
template <class Change>
void expect(std::string const& check, Status status, std::vector<std::string> const& words,
            Change const& change) {
    JobFacts job = good_job();
    change(job);
    BOOST_TEST_CONTEXT(check) {
        Row const row = row_of(job, check);
        std::string const text = row.finding.value + " | " + row.finding.fix;
        BOOST_TEST(name_of(row.finding.status) == name_of(status), text);
        for (std::string const& word : words) {
            BOOST_TEST(test::contains(text, word), "'" << word << "' is not in: " << text);
        }
        BOOST_TEST((row.finding.status <= Status::pass) == row.finding.fix.empty());
        for (Row const& other : judge(job)) {
            BOOST_TEST((other.check == check || other.finding.status <= Status::pass),
                       other.check << ": " << other.finding.value);
        }
    }
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_good_machine_passes_every_check) {
    for (Row const& row : judge(good_job())) {
        BOOST_TEST(name_of(row.finding.status) == "PASS", row.check << ": " << row.finding.value);
        BOOST_TEST(!row.finding.value.empty());
        BOOST_TEST(!row.wanted.empty());
    }
}

BOOST_AUTO_TEST_CASE(facts_come_through_their_text_unchanged) {
    JobFacts job = good_job();
    job.ranks[0].gpu.host_link = {.to_device = known(51.5), .to_host = unknown<double>("why")};
    for (RankFacts const& rank : job.ranks) {
        std::string const text = to_text(rank);
        BOOST_TEST(to_text(rank_facts_of(text)) == text);
    }
    RankFacts const back = rank_facts_of(to_text(job.ranks[0]));
    BOOST_TEST(*back.gpu.host_link.to_device.value == 51.5);
    BOOST_TEST(back.gpu.host_link.to_host.why == "why");
    BOOST_TEST(!back.gpu.host_link.to_host.known());
    BOOST_TEST(back.peers.size() == 2U);
    BOOST_TEST(back.output.value->file_system == "lustre");
}

BOOST_AUTO_TEST_CASE(a_machine_without_gpus_skips_and_says_why) {
    JobFacts job = good_job();
    for (RankFacts& rank : job.ranks) {
        rank.gpu = no_gpu("no NVIDIA driver is loaded");
        rank.driver = unknown<std::string>("libnvidia-ml.so.1 is not there");
        rank.cuda = {.runtime = known(12040), .driver = unknown<int>("no NVIDIA driver is loaded")};
        rank.nccl = {.header = unknown<int>("no NCCL"), .library = unknown<int>("no NCCL")};
        rank.peers.clear();
    }
    int skipped = 0;
    for (Row const& row : judge(job)) {
        BOOST_TEST((row.finding.status <= Status::pass), row.check << ": " << row.finding.value);
        BOOST_TEST(!row.finding.value.empty());
        skipped += row.finding.status == Status::skip ? 1 : 0;
    }
    BOOST_TEST(skipped == 17);
}

BOOST_AUTO_TEST_CASE(drivers) {
    expect("driver", Status::fail, {"535.129 on rank 0", "550"}, [](JobFacts& job) {
        for (RankFacts& rank : job.ranks) {
            rank.driver = known(std::string("535.129"));
        }
    });
    expect("driver", Status::fail, {"550.54.15 on ranks 0,1,2; 555.42 on rank 3", "same driver"},
           [](JobFacts& job) { job.ranks[3].driver = known(std::string("555.42")); });
    expect("driver", Status::fail, {"rank 2: no library"},
           [](JobFacts& job) { job.ranks[2].driver = unknown<std::string>("no library"); });
}

BOOST_AUTO_TEST_CASE(cuda_versions) {
    auto const with = [](int runtime, int driver) {
        return [=](JobFacts& job) {
            job.ranks[1].cuda = {.runtime = known(runtime), .driver = known(driver)};
        };
    };
    expect("CUDA", Status::fail, {"12.0", "rank 1"}, with(12000, 12040));
    expect("CUDA", Status::fail, {"13.0, driver for 12.4", "older"}, with(13000, 12040));
    expect("CUDA", Status::warn, {"12.9, driver for 12.4", "minor version"}, with(12090, 12040));
    expect("CUDA", Status::pass, {}, with(12040, 13000));
}

BOOST_AUTO_TEST_CASE(gpus_of_ranks) {
    expect("GPUs", Status::fail, {"rank 1 without: none is visible", "--device cpu"},
           [](JobFacts& job) {
               GpuFacts const other = job.ranks[1].gpu;
               job.ranks[1].gpu = no_gpu("none is visible");
               job.ranks[1].gpu.name = other.name;
               job.ranks[1].gpu.memory_bytes = other.memory_bytes;
           });
    expect("GPUs", Status::warn, {"ranks 2,3 share 0000:1B:00.0 of host1", "--allow-gpu-sharing"},
           [](JobFacts& job) { job.ranks[3].gpu.pci_bus_id = job.ranks[2].gpu.pci_bus_id; });
    expect("GPU model", Status::warn, {"NVIDIA A100, 40 GiB on rank 2", "slowest"},
           [](JobFacts& job) {
               job.ranks[2].gpu.name = "NVIDIA A100";
               job.ranks[2].gpu.memory_bytes = std::int64_t{40} << 30;
           });
}

BOOST_AUTO_TEST_CASE(gpu_code_and_attention) {
    expect("GPU code", Status::fail, {"sm_75", "rank 3"},
           [](JobFacts& job) { job.ranks[3].gpu.capability = 75; });
    expect("attention", Status::warn, {"mma (no cuDNN)", "--attention-backend mma"},
           [](JobFacts& job) {
               job.ranks[0].gpu.backend =
                   known(std::string("NVIDIA H100, bf16, attention mma (no cuDNN)"));
           });
    JobFacts job = good_job();
    job.ranks[0].gpu.backend = unknown<std::string>("no kernel image");
    Row const row = row_of(job, "GPU code");
    BOOST_TEST((row.finding.status == Status::fail));
    BOOST_TEST(test::contains(row.finding.value, "no kernel image"));
}

BOOST_AUTO_TEST_CASE(states_that_spoil_times) {
    auto const with = [](auto NvmlFacts::* fact, auto value) {
        return [=](JobFacts& job) { job.ranks[1].gpu.nvml.*fact = known(value); };
    };
    expect("MIG", Status::fail, {"on (rank 1)", "parity"}, with(&NvmlFacts::mig, 1));
    expect("compute mode", Status::fail, {"exclusive"}, with(&NvmlFacts::compute_mode, 3));
    expect("compute mode", Status::fail, {"prohibited"}, with(&NvmlFacts::compute_mode, 2));
    expect("persistence", Status::warn, {"nvidia-smi -pm 1"}, with(&NvmlFacts::persistence, 0));
    expect("other processes", Status::fail, {"2 on 0000:1C:00.0"}, with(&NvmlFacts::processes, 2));
    expect("GPU clocks", Status::fail, {"too hot"},
           with(&NvmlFacts::clock_reasons, std::int64_t{0x40}));
    expect("GPU clocks", Status::fail, {"by the hardware"},
           with(&NvmlFacts::clock_reasons, std::int64_t{0x80}));
    expect("GPU clocks", Status::warn, {"power limit", "1980 of 1980 MHz, 120 of 700 W, 31 C"},
           with(&NvmlFacts::clock_reasons, std::int64_t{0x4}));
}

BOOST_AUTO_TEST_CASE(broken_memory_and_xids) {
    auto const with = [](auto NvmlFacts::* fact, auto value) {
        return [=](JobFacts& job) { job.ranks[0].gpu.nvml.*fact = known(value); };
    };
    expect("GPU memory", Status::fail, {"uncorrected errors: 3 on 0000:1B:00.0 GPU-1"},
           with(&NvmlFacts::ecc_uncorrected, std::int64_t{3}));
    expect("GPU memory", Status::fail, {"waiting to be remapped"},
           with(&NvmlFacts::remap_pending, 1));
    expect("GPU memory", Status::fail, {"could not be remapped"},
           with(&NvmlFacts::remap_failed, 1));
    expect("GPU memory", Status::fail, {"retired"}, with(&NvmlFacts::pages_pending, 1));
    expect("Xid", Status::warn, {"4 in the kernel's log"},
           [](JobFacts& job) { job.ranks[0].machine.xids = known(4); });
}

BOOST_AUTO_TEST_CASE(links) {
    auto const rank0 = [](auto const& change) {
        return [=](JobFacts& job) { change(job.ranks[0]); };
    };
    expect("PCIe", Status::warn, {"generation 5 x8 of x16"},
           rank0([](RankFacts& rank) { rank.gpu.nvml.pcie_width = known(8); }));
    expect("PCIe", Status::warn, {"12.0 GB/s to the GPU, 50.0 back, 63.0 by specification"},
           rank0([](RankFacts& rank) {
               rank.gpu.host_link = {.to_device = known(12.0), .to_host = known(50.0)};
           }));
    expect("NVLink", Status::warn, {"no link is active"},
           rank0([](RankFacts& rank) { rank.gpu.nvml.nvlinks = known(0); }));
    expect("NVLink", Status::warn, {"slowest copy 200.0 GB/s", "450 GB/s are expected"},
           rank0([](RankFacts& rank) {
               rank.peers[0].copy.gb_per_s = known(400.0);
               rank.peers[1].copy.gb_per_s = known(200.0);
           }));
    expect(
        "peer access", Status::fail, {"1 to 0: 4096 bytes", "NCCL_P2P_DISABLE=1", "ACS"},
        rank0([](RankFacts& rank) { rank.peers[1].copy.wrong_bytes = known(std::int64_t{4096}); }));
    expect("peer access", Status::warn, {"0 to 1 (chipset not supported; one PCIe switch)"},
           rank0([](RankFacts& rank) {
               rank.peers[0].copy.readable = false;
               rank.peers[0].nvml_status = known(std::string("chipset not supported"));
           }));
    expect("peer access", Status::fail, {"0 to 1: did not end"}, rank0([](RankFacts& rank) {
               rank.peers[0].copy.wrong_bytes = unknown<std::int64_t>("did not end");
           }));
    expect("NUMA", Status::warn, {"GPU at node 1, CPUs of node 0", "--bind-to"},
           rank0([](RankFacts& rank) { rank.gpu.numa_node = known(1); }));
}

BOOST_AUTO_TEST_CASE(limits_of_a_host) {
    auto const rank2 = [](auto const& change) {
        return [=](JobFacts& job) { change(job.ranks[2].machine); };
    };
    expect("/dev/shm", Status::warn, {"64", "--shm-size=1g", "rank 2"},
           rank2([](HostFacts& host) { host.shm_bytes = known(std::int64_t{64} << 20); }));
    expect("locked memory", Status::fail, {"NCCL_IB_DISABLE=1", "ulimit -l unlimited"},
           rank2([](HostFacts& host) { host.memlock = 8 << 20; }));
    expect("stack", Status::warn, {"unlimited", "ulimit -s"},
           rank2([](HostFacts& host) { host.stack = -1; }));
    expect("CPUs", Status::warn, {"host1: 2 ranks on 1 CPUs"}, [](JobFacts& job) {
        job.ranks[2].machine.cpus = {0};
        job.ranks[3].machine.cpus = {0};
    });
    expect("locked memory", Status::pass, {}, [](JobFacts& job) {  // one host without InfiniBand
        job.ranks.resize(2);
        for (RankFacts& rank : job.ranks) {
            rank.machine.memlock = 8 << 20;
            rank.machine.ib.clear();
        }
    });
    expect("open files", Status::pass, {}, rank2([](HostFacts& host) { host.open_files = 1024; }));
}

BOOST_AUTO_TEST_CASE(open_files_count_at_scale) {
    JobFacts job = good_job();
    for (int rank = 4; rank < 64; ++rank) {
        job.ranks.push_back(good_rank(rank, 2));
    }
    job.ranks[63].machine.open_files = 1024;
    Row const row = row_of(job, "open files");
    BOOST_TEST((row.finding.status == Status::warn));
    BOOST_TEST(row.finding.value == "1024");
}

BOOST_AUTO_TEST_CASE(hosts_without_a_fast_network) {
    expect("network", Status::warn, {"2 hosts over sockets: host1 has no InfiniBand, eth0 (up)"},
           [](JobFacts& job) {
               job.ranks[2].machine.ib.clear();
               job.ranks[3].machine.ib.clear();
           });
    expect("network", Status::warn, {"mlx5_0/1 1: DOWN", "NCCL_IB_DISABLE=1"}, [](JobFacts& job) {
        for (RankFacts& rank : job.ranks) {
            rank.machine.ib[0].state = "1: DOWN";
        }
    });
}

BOOST_AUTO_TEST_CASE(paths_that_the_environment_switches_off) {
    auto const with = [](std::vector<std::string> const& settings) {
        return [=](JobFacts& job) {
            for (RankFacts& rank : job.ranks) {
                rank.machine.nccl_settings = settings;
            }
        };
    };
    expect("NCCL settings", Status::warn, {"NCCL_P2P_DISABLE=1", "unset it"},
           with({"NCCL_DEBUG=WARN", "NCCL_P2P_DISABLE=1"}));
    expect("NCCL settings", Status::warn, {"InfiniBand is up", "unset it"},
           with({"NCCL_IB_DISABLE=1"}));
    expect("NCCL settings", Status::pass, {"NCCL_P2P_DISABLE=0 NCCL_SOCKET_IFNAME=eth0"},
           with({"NCCL_P2P_DISABLE=0", "NCCL_SOCKET_IFNAME=eth0"}));
    expect("NCCL settings", Status::warn, {"NCCL_DEBUG=INFO on rank 3", "-x NAME"},
           [](JobFacts& job) { job.ranks[3].machine.nccl_settings = {"NCCL_DEBUG=INFO"}; });
    JobFacts job = good_job();  // a GPU that cannot be read, and ports that are down: rightly off
    with({"NCCL_IB_DISABLE=1", "NCCL_P2P_DISABLE=1"})(job);
    for (RankFacts& rank : job.ranks) {
        rank.machine.ib[0].state = "1: DOWN";
        for (PeerFacts& peer : rank.peers) {
            peer.copy.readable = false;
        }
    }
    BOOST_TEST(name_of(row_of(job, "NCCL settings").finding.status) == "PASS");
}

BOOST_AUTO_TEST_CASE(the_job) {
    expect("program", Status::fail, {"0.2.0 on rank 3"},
           [](JobFacts& job) { job.ranks[3].version = "0.2.0"; });
    expect("MPI", Status::fail, {"Open MPI v5.0.1 on rank 1"},
           [](JobFacts& job) { job.ranks[1].mpi.library = "Open MPI v5.0.1, package: y"; });
    expect("launcher", Status::warn, {"rank 3 is told to be 0 of its host, MPI says 1"},
           [](JobFacts& job) { job.ranks[3].mpi.local_rank = known(0); });
    expect("launcher", Status::warn, {"2 on host0, 3 on host1"}, [](JobFacts& job) {
        job.ranks[2].local_size = 3;
        job.ranks[3].local_size = 3;
    });
    expect("NCCL", Status::fail, {"2.27.3 on rank 2"},
           [](JobFacts& job) { job.ranks[2].nccl.library = known(22703); });
    expect("NCCL", Status::fail, {"2.17.1", "2.18"}, [](JobFacts& job) {
        for (RankFacts& rank : job.ranks) {
            rank.nccl.library = known(21701);
        }
    });
    expect("NCCL", Status::warn, {"2.28.3 (/lib/libnccl.so.2), built with 2.28.9"},
           [](JobFacts& job) {
               for (RankFacts& rank : job.ranks) {
                   rank.nccl.library = known(22803);
               }
           });
    expect("rank clocks", Status::warn, {"known to 122.0 us"},
           [](JobFacts& job) { job.clocks[3].bound_ns = 120'000; });
}

BOOST_AUTO_TEST_CASE(the_output_folder) {
    auto const with = [](std::size_t rank, auto const& change) {
        return [=](JobFacts& job) { change(*job.ranks[rank].output.value); };
    };
    expect("output", Status::fail, {"host1", "not the folder that rank 0 made", "all hosts share"},
           with(2, [](OutputFacts& output) { output.sees_mark = false; }));
    expect("output", Status::fail, {"no space", "--output"},
           with(2, [](OutputFacts& output) { output.seconds = unknown<double>("no space"); }));
    expect("output", Status::fail, {"1.0 MiB free", "--dry-run"},
           with(0, [](OutputFacts& output) { output.free_bytes = known(std::int64_t{1} << 20); }));
    expect("output", Status::warn, {"256.0 MiB free"},
           with(0, [](OutputFacts& output) { output.free_bytes = known(std::int64_t{1} << 28); }));
    expect("output", Status::warn, {"nfs", "local disk"},
           with(0, [](OutputFacts& output) { output.file_system = "nfs"; }));
    expect("output", Status::fail, {"cannot be made"}, [](JobFacts& job) {
        for (RankFacts& rank : job.ranks) {
            rank.output = unknown<OutputFacts>("out: cannot be made");
        }
    });
}

BOOST_AUTO_TEST_CASE(wires) {
    expect("wire nccl", Status::fail,
           {"rank 2 received 17 wrong values", "NCCL_DEBUG=INFO", "NCCL_P2P_DISABLE=1",
            "NCCL_IB_DISABLE=1"},
           [](JobFacts& job) { job.wires[1].wrong = {0, 0, 17, 0}; });
    expect("wire nccl", Status::fail, {"timed out", "NCCL_DEBUG=INFO"},
           [](JobFacts& job) { job.wires[1].failed = "timed out after 30 s"; });
    expect("wire nccl", Status::skip, {"this build has no NCCL"},
           [](JobFacts& job) { job.wires[1].refused = "this build has no NCCL"; });
    expect("wire nccl", Status::warn, {"sockets"},
           [](JobFacts& job) { job.wires[1].timing_valid = false; });
    expect("wire mpi", Status::fail, {"OMPI_MCA_btl_tcp_if_include"},
           [](JobFacts& job) { job.wires[0].wrong = {1, 0, 0, 0}; });
}

BOOST_AUTO_TEST_CASE(many_ranks_are_not_all_listed) {
    JobFacts job = good_job();
    for (int rank = 4; rank < 200; ++rank) {
        job.ranks.push_back(good_rank(rank, 2));
    }
    for (std::size_t rank = 0; rank < 100; ++rank) {
        job.ranks[rank].gpu.nvml.mig = known(1);
    }
    Row const row = row_of(job, "MIG");
    BOOST_TEST(row.finding.value == "on (ranks 0,1,2,3,4,5,6,7 and 92 more)");
}
