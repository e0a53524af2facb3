# The CUDA backend. LONGCAT_CUDA is AUTO (build it where nvcc and the CUTLASS headers are found), ON (require them) or
# OFF.
#
# Without CUDA, the kernel files are compiled as C++ for longcat_emulation, and cpp/ops/no_cuda.cpp and
# cpp/comm/no_nccl.cpp replace the backend.
set(LONGCAT_CUDA "AUTO" CACHE STRING "CUDA backend: AUTO, ON or OFF")
set_property(CACHE LONGCAT_CUDA PROPERTY STRINGS AUTO ON OFF)
set(LONGCAT_HEAVY_JOBS 2 CACHE STRING "CUTLASS files compiled at once; each takes up to 3.5 GiB")

# Files of both the GPU backend and the emulation.
set(_kernels
  cuda/gemm/few_tokens.cu cuda/gemm/fp8_linear.cu cuda/gemm/gemm.cu cuda/gemm/packed.cu
  cuda/kernels/attention.cu cuda/kernels/drafts.cu cuda/kernels/elementwise.cu cuda/kernels/indexer.cu
  cuda/kernels/mla_decode.cu
  cuda/kernels/mla_prefill.cu cuda/kernels/moe.cu
  cuda/kernels/ngram_embed.cu cuda/kernels/quantize.cu cuda/kernels/rank_sum.cu cuda/kernels/rope.cu
  cuda/kernels/sample.cu)
set(_shared
  cuda/cuda_ops.cpp cuda/device/arena.cpp cuda/gemm/heuristics.cpp cuda/gemm/rearrange.cpp cuda/nccl/nccl_api.cpp
  cuda/nccl/nccl_communicator.cpp cuda/nccl/peer_sums.cpp ${_kernels})
target_link_libraries(longcat_runtime PRIVATE ${CMAKE_DL_LIBS})

# The emulated GPU, for tests and benchmarks. It is not part of _core.
add_library(longcat_emulation STATIC EXCLUDE_FROM_ALL
  cuda/emulation/bank_conflicts.cpp cuda/emulation/emulated_device.cpp cuda/emulation/emulated_ops.cpp
  cuda/emulation/fibers.cpp cuda/emulation/findings.cpp cuda/emulation/hopper.cpp cuda/emulation/simt_barriers.cpp
  cuda/emulation/simt_copies.cpp cuda/emulation/simt_emulator.cpp cuda/emulation/simt_memory.cpp
  cuda/emulation/tensor_core.cpp)
target_link_libraries(longcat_emulation PUBLIC longcat_runtime)

set(_use_cuda OFF)
set(LONGCAT_CUDA_SUMMARY "off")
if(NOT LONGCAT_CUDA STREQUAL "OFF")
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "import importlib.util as u, os
for name, sub in (('cutlass_library', 'source'), ('flashinfer', 'data/cutlass')):
    module = u.find_spec(name)
    for path in (module.submodule_search_locations if module else ()): print(os.path.join(path, sub))"
    OUTPUT_VARIABLE _python_cutlass OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  string(REPLACE "\n" ";" _python_cutlass "${_python_cutlass}")
  find_path(LONGCAT_CUTLASS_DIR include/cutlass/version.h NO_DEFAULT_PATH
    HINTS $ENV{LONGCAT_CUTLASS_DIR} "${CMAKE_CURRENT_SOURCE_DIR}/third_party/cutlass" ${_python_cutlass})
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER AND LONGCAT_CUTLASS_DIR)
    set(_use_cuda ON)
  elseif(LONGCAT_CUDA STREQUAL "ON")
    if(NOT CMAKE_CUDA_COMPILER)
      message(FATAL_ERROR "LONGCAT_CUDA=ON, but no nvcc is found: put it on PATH or pass -DCMAKE_CUDA_COMPILER")
    endif()
    message(FATAL_ERROR "LONGCAT_CUDA=ON, but no CUTLASS headers are found: run `make third_party`, or pass -DLONGCAT_CUTLASS_DIR")
  elseif(CMAKE_CUDA_COMPILER)
    set(LONGCAT_CUDA_SUMMARY "off (no CUTLASS headers: make third_party)")
  else()
    set(LONGCAT_CUDA_SUMMARY "off (no nvcc)")
  endif()
endif()

if(NOT _use_cuda)
  set_source_files_properties(${_kernels} PROPERTIES LANGUAGE CXX)
  target_sources(longcat_emulation PRIVATE ${_shared} cuda/gemm/no_cutlass.cpp)
  target_sources(longcat_runtime PRIVATE cpp/comm/no_nccl.cpp cpp/ops/no_cuda.cpp)
  return()
endif()

enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(LONGCAT_CUDA_SUMMARY "${CMAKE_CUDA_COMPILER_VERSION} for sm_90a, sm_80 and sm_120")
set_property(GLOBAL APPEND PROPERTY JOB_POOLS heavy=${LONGCAT_HEAVY_JOBS})

# NDEBUG in every build type: an assert in a wgmma kernel makes ptxas serialise it (C7510). cudart is static and CUTLASS
# finds the driver at run time, so the module can be imported without a GPU.
set(_cuda_options --expt-relaxed-constexpr -diag-suppress=2908)
function(longcat_cuda_target name architectures)
  set_target_properties(${name} PROPERTIES
    CUDA_ARCHITECTURES "${architectures}" CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
    CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static POSITION_INDEPENDENT_CODE ON
    CUDA_COMPILER_LAUNCHER "${CMAKE_CUDA_COMPILER_LAUNCHER}")  # said here: longcat_runtime is older than the language
  target_compile_options(${name} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${_cuda_options}>")
  target_compile_definitions(${name} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:NDEBUG>")
endfunction()

target_sources(longcat_runtime PRIVATE
  ${_shared} cuda/cuda_backend.cpp cuda/device/cuda_device.cpp cuda/device/shared_memory.cpp cuda/gemm/run.cpp)
# The module contains PTX of compute_80 besides the machine code. Devices other than 8.x, 9.0 and 12.x compile it when
# they load the module.
longcat_cuda_target(longcat_runtime "90a-real;80;120-real")
target_link_libraries(longcat_runtime PUBLIC CUDA::cudart_static)
# No fused multiply-adds: the sampler and the penalties must round each product as the CPU does.
set_source_files_properties(cuda/kernels/sample.cu PROPERTIES COMPILE_OPTIONS --fmad=false)

# CUTLASS kernels, each compiled for its one architecture.
add_library(longcat_gemm_sm90a OBJECT
  cuda/gemm/dense_bf16_sm90_16.cu cuda/gemm/dense_bf16_sm90_64.cu cuda/gemm/dense_bf16_sm90_128.cu
  cuda/gemm/dense_f32_sm90_16.cu cuda/gemm/dense_f32_sm90_64.cu cuda/gemm/dense_f32_sm90_128.cu
  cuda/gemm/grouped_bf16_sm90_16.cu cuda/gemm/grouped_bf16_sm90_64.cu cuda/gemm/grouped_bf16_sm90_128.cu
  cuda/gemm/gate_up_bf16_sm90_16.cu cuda/gemm/gate_up_bf16_sm90_64.cu cuda/gemm/gate_up_bf16_sm90_128.cu
  cuda/gemm/grouped_fp8_sm90.cu)
longcat_cuda_target(longcat_gemm_sm90a 90a-real)
# The dense kernels wait for the prior grid themselves, and are launched before it ends.
target_compile_definitions(longcat_gemm_sm90a PRIVATE CUTLASS_ENABLE_GDC_FOR_SM90)
add_library(longcat_gemm_sm80 OBJECT
  cuda/gemm/dense_bf16_sm80.cu cuda/gemm/dense_f32_sm80.cu cuda/gemm/grouped_bf16_sm80.cu)
longcat_cuda_target(longcat_gemm_sm80 80)
foreach(_gemm longcat_gemm_sm90a longcat_gemm_sm80)
  set_target_properties(${_gemm} PROPERTIES JOB_POOL_COMPILE heavy)
  target_link_libraries(${_gemm} PRIVATE longcat_options CUDA::cudart_static)
  target_include_directories(${_gemm} SYSTEM PRIVATE
    "${LONGCAT_CUTLASS_DIR}/include" "${LONGCAT_CUTLASS_DIR}/tools/util/include")
  target_sources(longcat_runtime PRIVATE $<TARGET_OBJECTS:${_gemm}>)
endforeach()
