# A menu over the CMake presets: what each target does, CMakePresets.json and jobs/ say.
# TESTFLAGS goes to ctest: make test TESTFLAGS="-L np3". NP and INPUT go to run.
SHELL := /bin/bash
.DEFAULT_GOAL := help

NP ?= 2
INPUT ?= inputs/smoke.ini
MPIRUN ?= mpirun --bind-to none --oversubscribe
TESTFLAGS ?=
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1

.PHONY: help run test build check format asan cuda gpu-test bench memory deb deps cuda-deps clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' Makefile

run: deps build/host/build.ninja ## build, then compare CP=1 with CP=NP on INPUT (2 ranks, inputs/smoke.ini)
	cmake --build --preset host --target cpstep
	$(MPIRUN) -np $(NP) build/host/bin/cpstep run --config $(INPUT) --force

test: deps build ## build, then all tests (TESTFLAGS="-L np3" selects, see tests/README.md)
	ctest --preset host -j2 $(TESTFLAGS)

build: build/host/build.ninja ## build the program and its tests into build/host
	cmake --build --preset host

check: build/host/build.ninja ## format, lint and layer rules; changes nothing
	jobs/install.sh --check
	cmake --build --preset host --target cpstep_commit
	git ls-files '*.cpp' '*.hpp' '*.cu' '*.cuh' | xargs -r clang-format-19 --dry-run -Werror
	run-clang-tidy-19 -quiet -p build/host '/(app|app/analysis|app/doctor|cuda|mpi|io)/[^/]*\.cpp$$' 2>/dev/null
	tests/layers.sh

format: ## apply the format that check asks for
	git ls-files '*.cpp' '*.hpp' '*.cu' '*.cuh' | xargs -r clang-format-19 -i

asan: build/asan/build.ninja ## build with address and undefined sanitizers into build/asan, then test
	cmake --build --preset asan
	ctest --preset asan -j2 $(TESTFLAGS)

cuda: build/cuda/build.ninja ## build for NVIDIA GPUs into build/cuda (needs nvcc; sm_90)
	cmake --build --preset cuda --target cpstep cpstep-report bench_attention gpu_tests

gpu-test: cuda ## build for NVIDIA GPUs, then the tests that need one; without one they are skipped
	ctest --preset cuda -L gpu $(TESTFLAGS)

bench: build ## speed of the host backend against PyTorch on this machine (16 GB, minutes)
	jobs/install.sh --bench
	jobs/host_speed.sh

memory: build ## peak memory of one rank against the sequence length
	jobs/host_speed.sh --memory

deb: build/host/build.ninja ## a Debian package of the host build, in build/deb (jobs/packaging)
	jobs/install.sh --deb
	cmake --build --preset host --target cpstep pages
	cpack --config build/host/CPackConfig.cmake -B build/deb

deps: ## install what is missing on Debian and Ubuntu, else name it
	jobs/install.sh

cuda-deps: deps
	jobs/install.sh --cuda

clean: ## remove build/ and out/
	rm -rf build out

# Configured once for each preset; later changes of CMakeLists.txt are ninja's business.
build/%/build.ninja: | CMakePresets.json deps
	cmake --preset $*
build/cuda/build.ninja build/release/build.ninja: | cuda-deps
