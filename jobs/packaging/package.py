# Spack package; for a checkout: spack repo add ... (README.md), then spack dev-build cpstep@0.1.0.
from spack.package import *


class Cpstep(CMakePackage, CudaPackage):
    """Proves that context parallelism in an RL training step is right and measures what it costs."""

    manual_download = True  # built from a checkout

    version("0.1.0")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("cmake@3.25:", type="build")
    depends_on("ninja", type="build")
    depends_on("pkgconfig", type="build")
    depends_on("python@3.9:", type="build")  # CMake looks for the interpreter of the tests
    depends_on("mpi")
    depends_on("hdf5@1.10: ~mpi")
    depends_on("boost@1.74: +program_options +test")
    depends_on("openblas threads=openmp")
    depends_on("fmt@9:")
    depends_on("nlohmann-json@3.11:")
    depends_on("pcre2")
    depends_on("utf8proc")
    depends_on("py-h5py", type=("run", "test"))
    depends_on("py-pandas", type="run")
    depends_on("py-matplotlib", type="run")
    with when("+cuda"):
        depends_on("cuda@12.1:")
        depends_on("nccl@2.18:")
        depends_on("cudnn@9:")
        conflicts("cuda_arch=none", msg="name the GPUs: cuda_arch=80, 90, ...")

    generator("ninja")

    def cmake_args(self):
        arguments = [self.define_from_variant("CPSTEP_CUDA", "cuda")]
        if self.spec.satisfies("+cuda"):
            arguments.append(self.define("CMAKE_CUDA_ARCHITECTURES", self.spec.variants["cuda_arch"].value))
        return arguments
