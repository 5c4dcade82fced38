# How edge has llama.cpp built. CMake reads this file when llama-cpp-python's build begins (CMAKE_PROJECT_llama_cpp_INCLUDE in the
# Makefile, and in edge/airgap/wheels.py for bundles).

# llama-cpp-python compiles, beside the libraries that edge loads (ggml and llama), llama.cpp's helper code for its own programs.
# With LLAVA_BUILD=OFF, 83 build steps are left of 193 (llama-cpp-python 0.3.36).
set(LLAMA_BUILD_COMMON OFF)

# Where the processor has AMX, GCC drops the stores that fill llama.cpp's tile configuration (its _tile_loadconfig names 8 of the 64
# bytes as read), and the first product of quantized weights ends the process: llama.cpp's pull request 26954. So GCC builds without AMX.
if (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|amd64|AMD64")
    add_compile_options(-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
endif ()

# A build for any processor of its kind (GGML_CPU_ALL_VARIANTS): one library for each generation, the best is loaded at run time.
if (GGML_CPU_ALL_VARIANTS)
    # llama-cpp-python installs the libraries that it knows by name, to llama_cpp/lib; the variants must lie beside them.
    set(CMAKE_INSTALL_BINDIR llama_cpp/lib)
    set(CMAKE_INSTALL_LIBDIR llama_cpp/lib)
    set(CMAKE_INSTALL_RPATH "$ORIGIN")

    # A variant's own flags come after those above, so its AMX is taken out by name, once all targets are known.
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

    # OpenMP's library is not on every machine (Debian's libgomp1), so the compiler's own goes along.
    if (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
        execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=libgomp.so.1
            OUTPUT_VARIABLE edge_gomp OUTPUT_STRIP_TRAILING_WHITESPACE)
        if (EXISTS "${edge_gomp}")
            file(REAL_PATH "${edge_gomp}" edge_gomp)
            install(FILES "${edge_gomp}" DESTINATION llama_cpp/lib RENAME libgomp.so.1)
        endif ()
    endif ()
endif ()
