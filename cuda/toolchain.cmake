# nvcc, the CUDA toolkit and what its libraries need at run time. Included where the languages are chosen.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(CMAKE_CUDA_COMPILER nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin REQUIRED)
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90 CACHE STRING "Compute capabilities this build holds code for" FORCE)
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

# CMake before 3.26 does not know that nvcc compiles C++20.
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()

# The toolkit's libraries, or copies of them beside the program.
list(APPEND CMAKE_BUILD_RPATH "\$ORIGIN" /usr/local/cuda/lib64)
list(APPEND CMAKE_INSTALL_RPATH "\$ORIGIN" /usr/local/cuda/lib64)
