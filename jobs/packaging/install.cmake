# What `cmake --install` and `make deb` put where; included at the end of the top CMakeLists.txt.
include(GNUInstallDirs)
set(share ${CMAKE_INSTALL_DATADIR}/cpstep)

# Programs, each where its target exists: a new one is a new word here.
foreach(program IN ITEMS cpstep cpstep-report)
    if(TARGET ${program})
        install(TARGETS ${program} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
    endif()
endforeach()

# Pages of all programs, as cpstep_pages wrote them.
install(DIRECTORY ${CMAKE_BINARY_DIR}/share/man/ DESTINATION ${CMAKE_INSTALL_MANDIR})
install(DIRECTORY ${CMAKE_BINARY_DIR}/share/bash-completion/ DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion)

# The inputs name each other from the folder above them: `cd PREFIX/share/cpstep` and run.
install(DIRECTORY inputs DESTINATION ${share} PATTERN __pycache__ EXCLUDE)
install(FILES jobs/cpstep_files.py DESTINATION ${share}/python)
install(PROGRAMS jobs/plot_run.py jobs/convert_rollout.py DESTINATION ${share}/python)
install(FILES jobs/packaging/modulefile DESTINATION ${share}/modulefiles/cpstep RENAME ${PROJECT_VERSION})

install(FILES README.md app/CONTEXT_PARALLEL.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES io/README.md DESTINATION ${CMAKE_INSTALL_DOCDIR} RENAME FILES.md)
if(EXISTS ${CMAKE_SOURCE_DIR}/LICENSE)
    install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
endif()

# A Debian package of the host build. With CUDA the libraries are NVIDIA's, which no Debian package brings.
if(NOT CPSTEP_CUDA)
    set(CPACK_GENERATOR DEB)
    set(CPACK_PACKAGE_CONTACT "cpstep developers")
    set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "is context parallelism in an RL training step right, and is it free?")
    set(CPACK_PACKAGE_DESCRIPTION
"Runs one training step on the same ranks with context parallel size 1 and N,
proves that loss, gradients and weights agree, and measures the ratio of times.
Host build: CPU and MPI, no GPU. Instruction set: ${CPSTEP_MARCH}.")
    set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
    set(CPACK_STRIP_FILES ON)
    set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
    set(CPACK_DEBIAN_PACKAGE_SECTION science)
    set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
    set(CPACK_DEBIAN_PACKAGE_DEPENDS openmpi-bin)
    set(CPACK_DEBIAN_PACKAGE_RECOMMENDS "python3-h5py, python3-pandas, python3-matplotlib")
    include(CPack)
endif()
