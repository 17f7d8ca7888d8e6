#!/usr/bin/env python3
"""`cmake --install` and the Debian package: what is installed runs from where it lies. The build is the one of CPSTEP.

usage: install.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]
"""
import os
import re
import shutil
import subprocess
import sys
import types

from e2e import expect, expect_code, main, summary_of

# Runs a modulefile with the commands of `module` as prints.
MODULE = """
foreach command {module-whatis conflict prepend-path} { proc $command args "puts \\[list $command {*}\\$args\\]" }
set ModulesCurrentModulefile [lindex $argv 0]
source $ModulesCurrentModulefile
"""


def build_folder(program):
    return program.cpstep.parent.parent


def version_of(program):
    return re.search(r"project\(cpstep VERSION ([0-9.]+)", (program.source / "CMakeLists.txt").read_text()).group(1)


def installed(program):
    """The folder that `cmake --install` filled, once for all tests."""
    prefix = program.folder / "prefix"
    if not prefix.exists():
        expect_code(program.execute(["cmake", "--install", str(build_folder(program)), "--prefix", str(prefix)]), 0)
    return prefix


def check_tree(prefix, version):
    for name in ("bin/cpstep", "share/man/man1/cpstep.1", "share/man/man1/cpstep-run.1",
                 "share/man/man1/cpstep-doctor.1", "share/man/man1/cpstep-report.1", "bin/cpstep-report",
                 "share/bash-completion/completions/cpstep", "share/bash-completion/completions/cpstep-report",
                 "share/cpstep/python/cpstep_files.py",
                 "share/cpstep/python/plot_run.py", "share/cpstep/python/convert_rollout.py",
                 "share/cpstep/inputs/smoke.ini", "share/cpstep/inputs/tiny/model.safetensors",
                 f"share/cpstep/modulefiles/cpstep/{version}", "share/doc/cpstep/README.md", "share/doc/cpstep/FILES.md"):
        expect((prefix / name).is_file(), f"{name} is missing")
    cached = [path for path in prefix.rglob("*") if path.name in ("__pycache__", ".git", "build")]
    expect(not cached, cached)
    for name in ("bin/cpstep", "share/cpstep/python/plot_run.py", "share/cpstep/python/convert_rollout.py"):
        expect(os.access(prefix / name, os.X_OK), f"{name} cannot be run")


def check_program(program, prefix):
    """The installed program on the installed inputs; their paths are relative to the folder above them."""
    output = program.path()
    line = [program.mpiexec, "-np", "2", str(prefix / "bin/cpstep"), "run", "--config", "inputs/smoke.ini", "--blocks", "0",
            "--quiet", "--output", str(output)]
    expect_code(program.execute(line, cwd=prefix / "share/cpstep"), 0)
    expect(summary_of(output)["verdict"] == "pass", "verdict")
    done = program.execute([str(prefix / "bin/cpstep"), "--version"])
    expect(f"cpstep {version_of(program)}" in done.out, done.out)


def test_an_installed_tree_is_complete_and_runs(program):
    prefix = installed(program)
    check_tree(prefix, version_of(program))
    check_program(program, prefix)
    module = f"import sys; sys.path.insert(0, {str(prefix / 'share/cpstep/python')!r}); import cpstep_files"
    expect_code(program.execute([sys.executable, "-B", "-c", module]), 0)


def test_the_modulefile_follows_the_tree(program):
    if shutil.which("tclsh") is None:
        print("SKIPPED: no tclsh here")
        return
    moved, script = program.path("moved"), program.path("module.tcl")
    shutil.copytree(installed(program), moved)
    script.write_text(MODULE)
    result = program.execute(["tclsh", str(script), str(moved / f"share/cpstep/modulefiles/cpstep/{version_of(program)}")])
    expect_code(result, 0)
    paths = dict(line.split()[1:] for line in result.out.splitlines() if line.startswith("prepend-path"))
    expect(paths == {"PATH": f"{moved}/bin", "PYTHONPATH": f"{moved}/share/cpstep/python"}, paths)
    expect(all(os.path.isdir(path) for path in paths.values()), paths)


def test_the_debian_package_names_its_libraries_and_runs(program):
    missing = [tool for tool in ("dpkg-shlibdeps", "file", "cpack") if shutil.which(tool) is None]
    if missing:
        print(f"SKIPPED: no {missing[0]} here (jobs/install.sh --deb)")
        return
    if not (build_folder(program) / "CPackConfig.cmake").exists():
        print("SKIPPED: this build makes no package (CUDA)")
        return
    folder, prefix = program.path(), program.path("package")
    result = program.execute(["cpack", "-G", "DEB", "--config", str(build_folder(program) / "CPackConfig.cmake"), "-B", str(folder)])
    expect_code(result, 0)
    package, = folder.glob("*.deb")
    fields = dict(line.split(": ", 1) for line in subprocess.run(
        ["dpkg-deb", "-f", package], capture_output=True, text=True, check=True).stdout.splitlines() if re.match("[A-Z]", line))
    expect((fields["Package"], fields["Version"]) == ("cpstep", version_of(program)), fields)
    for library in ("libc6", "libopenmpi3", "libhdf5-103", "openmpi-bin"):
        expect(library in fields["Depends"], f"{library} is not in {fields['Depends']}")
    subprocess.run(["dpkg-deb", "-x", package, prefix], check=True)
    expect([path.name for path in prefix.iterdir()] == ["usr"], list(prefix.iterdir()))
    check_tree(prefix / "usr", version_of(program))
    check_program(program, prefix / "usr")


def test_the_spack_package_has_the_version_and_known_directives(program):
    """Runs package.py with recorders in place of Spack's own names; Spack itself is not needed."""
    calls = []

    def recorder(name):
        def record(*arguments, **_):
            calls.append((name, *arguments))
        return record

    class Nothing:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

    spack = types.ModuleType("spack.package")
    for name in ("version", "depends_on", "conflicts", "generator", "variant"):
        setattr(spack, name, recorder(name))
    spack.when = lambda _: Nothing()
    spack.CMakePackage, spack.CudaPackage = type("CMakePackage", (), {}), type("CudaPackage", (), {})
    sys.modules["spack"], sys.modules["spack.package"] = types.ModuleType("spack"), spack
    names = {}
    exec(compile((program.source / "jobs/packaging/package.py").read_text(), "package.py", "exec"), names)
    expect(("version", version_of(program)) in calls, [call for call in calls if call[0] == "version"])
    recipe = names["Cpstep"]()
    recipe.define = lambda name, value: f"-D{name}={value}"
    recipe.define_from_variant = recipe.define
    recipe.spec = types.SimpleNamespace(satisfies=lambda text: text == "+cuda",
                                        variants={"cuda_arch": types.SimpleNamespace(value=("90",))})
    expect(recipe.cmake_args() == ["-DCPSTEP_CUDA=cuda", "-DCMAKE_CUDA_ARCHITECTURES=('90',)"], recipe.cmake_args())


if __name__ == "__main__":
    main(dict(globals()))
