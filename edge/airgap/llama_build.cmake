# Build options of llama.cpp for edge. CMake reads this file at the start of llama-cpp-python's build: the Makefile and, for
# bundles, edge/airgap/wheels.py set CMAKE_PROJECT_llama_cpp_INCLUDE.

# edge loads only the libraries ggml and llama. Do not compile the helper code of llama.cpp's programs. Together with
# LLAVA_BUILD=OFF, this leaves 83 of 193 build steps (llama-cpp-python 0.3.36).
set(LLAMA_BUILD_COMMON OFF)

# GCC must not use AMX. Its _tile_loadconfig declares only 8 of 64 bytes as read, so GCC drops the stores that fill llama.cpp's
# tile configuration. The first product of quantized weights then stops the process (llama.cpp's pull request 26954).
if (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|amd64|AMD64")
    add_compile_options(-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
endif ()

# A build for every processor (GGML_CPU_ALL_VARIANTS): one library for each generation. llama.cpp loads the best one at run time.
if (GGML_CPU_ALL_VARIANTS)
    # llama-cpp-python installs the libraries that it knows by name in llama_cpp/lib. The variants must be in the same folder.
    set(CMAKE_INSTALL_BINDIR llama_cpp/lib)
    set(CMAKE_INSTALL_LIBDIR llama_cpp/lib)
    set(CMAKE_INSTALL_RPATH "$ORIGIN")

    # The flags of a variant come after those above. So remove its AMX flags by name, after all targets are defined.
    function(edge_without_amx)
        if (TARGET ggml-cpu-sapphirerapids)
            foreach (property COMPILE_OPTIONS COMPILE_DEFINITIONS)
                get_target_property(values ggml-cpu-sapphirerapids ${property})
                list(FILTER values EXCLUDE REGEX "amx|AMX")
                set_target_properties(ggml-cpu-sapphirerapids PROPERTIES ${property} "${values}")
            endforeach ()
        endif ()
    endfunction ()
    cmake_language(DEFER CALL edge_without_amx)

    # Not every machine has the OpenMP library (Debian's libgomp1). Install the one of the compiler too.
    if (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
        execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=libgomp.so.1
            OUTPUT_VARIABLE edge_gomp OUTPUT_STRIP_TRAILING_WHITESPACE)
        if (EXISTS "${edge_gomp}")
            file(REAL_PATH "${edge_gomp}" edge_gomp)
            install(FILES "${edge_gomp}" DESTINATION llama_cpp/lib RENAME libgomp.so.1)
        endif ()
    endif ()
endif ()
