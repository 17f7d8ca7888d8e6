# Writes OUT, a header with the commit of the source tree, if it differs from what is there. Run at every build.
execute_process(COMMAND git describe --always --dirty WORKING_DIRECTORY ${SOURCE}
    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT commit)
    set(commit "no commit")
endif()
file(CONFIGURE OUTPUT ${OUT} CONTENT "#define CPSTEP_COMMIT \"${commit}\"\n" @ONLY)
