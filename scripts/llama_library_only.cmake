# llama-cpp-python compiles, beside the libraries that edge loads (ggml and llama), llama.cpp's helper code for its own programs.
# CMake reads this file when that build begins (CMAKE_PROJECT_llama_cpp_INCLUDE in the Makefile), so that it is left out.
# With LLAVA_BUILD=OFF, 83 build steps are left of 193 (llama-cpp-python 0.3.36).
set(LLAMA_BUILD_COMMON OFF)
