# Kernel files are compiled once for each instruction set of the architecture. cpp/cpu/simd/dispatch.h tells how.
#
# The options of a set need what cpp/cpu/simd/isa.cpp looks for, and no more. Compilers differ in whether they fuse
# multiply-adds unasked, so that is said.
set(_kernels_portable -ffp-contract=fast)
set(_kernels_avx2 ${_kernels_portable} -mavx2 -mfma -mf16c -mbmi -mbmi2)
set(_kernels_avx_vnni ${_kernels_avx2} -mavxvnni)
set(_kernels_avx512 ${_kernels_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
set(_kernels_avx512_vnni ${_kernels_avx512} -mavx512vnni)
set(_kernels_avx512_bf16 ${_kernels_avx512_vnni} -mavx512bf16)
set(_kernels_amx_bf16 ${_kernels_avx512_bf16} -mamx-tile -mamx-bf16)
# GCC 12 for Arm moves all loads of a tile to its begin, and then spills them.
set(_kernels_neon_dotprod
  ${_kernels_portable} -march=armv8.2-a+dotprod $<$<CXX_COMPILER_ID:GNU>:-fno-schedule-insns>)

set(_kernel_sets portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
  list(APPEND _kernel_sets avx2 avx_vnni avx512 avx512_vnni avx512_bf16)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  list(APPEND _kernel_sets neon_dotprod)
endif()

set(_check_kernels "${CMAKE_CURRENT_LIST_DIR}/simd/check_kernels.cmake")

# Adds kernel files to a target, compiled for one set.
function(longcat_add_kernels_of set target)
  add_library(${target}_${set} OBJECT ${ARGN})
  target_link_libraries(${target}_${set} PRIVATE longcat_options)
  target_compile_definitions(${target}_${set} PRIVATE LC_ISA=${set})
  target_compile_options(${target}_${set} PRIVATE ${_kernels_${set}})
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_${set}>)
  # Without optimisation, small inline functions remain.
  if(CMAKE_NM AND NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
    add_custom_command(TARGET ${target} POST_BUILD VERBATIM
      COMMAND "${CMAKE_COMMAND}" "-DNM=${CMAKE_NM}" "-DOBJECTS=$<TARGET_OBJECTS:${target}_${set}>"
              -P "${_check_kernels}")
  endif()
endfunction()

# Adds kernel files to a target, compiled for each set but amx_bf16, whose other kernels are those of avx512_bf16.
function(longcat_add_kernels target)
  foreach(set IN LISTS _kernel_sets)
    longcat_add_kernels_of(${set} ${target} ${ARGN})
  endforeach()
endfunction()

if(NOT TARGET longcat_runtime)  # a program that adds some kernels to a target of its own
  return()
endif()
set(_kernel_files
  attention/bf16_kernels.cpp
  attention/index_kernels.cpp
  attention/latent_kernels.cpp
  attention/softmax_kernels.cpp
  gemm/dot_kernels.cpp
  gemm/packed_kernels.cpp
  gemm/product_kernels.cpp
  gemm/scale_kernels.cpp
  row_kernels.cpp)
list(TRANSFORM _kernel_files PREPEND "${CMAKE_CURRENT_LIST_DIR}/")
longcat_add_kernels(longcat_runtime ${_kernel_files})
if("avx512_bf16" IN_LIST _kernel_sets)
  longcat_add_kernels_of(amx_bf16 longcat_runtime "${CMAKE_CURRENT_LIST_DIR}/gemm/tile_kernels.cpp")
endif()
