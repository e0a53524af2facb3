// Marks for code that nvcc compiles for the GPU and any C++ compiler for the host.
#pragma once

#ifdef __CUDACC__
#define LC_HD __host__ __device__
#else
#define LC_HD
#endif

// Before a loop: nvcc unrolls it wholly, or by a factor. Other compilers see nothing.
#ifdef __CUDA_ARCH__
#define LC_PRAGMA(text) _Pragma(#text)
#define LC_UNROLL LC_PRAGMA(unroll)
#define LC_UNROLL_BY(factor) LC_PRAGMA(unroll factor)
#else
#define LC_UNROLL
#define LC_UNROLL_BY(factor)
#endif
