# llama-cpp-python compiles, beside the libraries that edge loads (ggml and llama), llama.cpp's helper code for its own programs.
# CMake reads this file when that build begins (CMAKE_PROJECT_llama_cpp_INCLUDE in the Makefile), so that it is left out.
# With LLAVA_BUILD=OFF, 83 build steps are left of 193 (llama-cpp-python 0.3.36).
set(LLAMA_BUILD_COMMON OFF)

# Where the processor has AMX, GCC drops the stores that fill llama.cpp's tile configuration (its _tile_loadconfig names 8 of the 64
# bytes as read), and the first product of quantized weights ends the process: llama.cpp's pull request 26954. So GCC builds without AMX.
if (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|amd64|AMD64")
    add_compile_options(-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
endif ()
