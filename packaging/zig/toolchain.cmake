# CMake's toolchain for wheels: zig c++ compiles for glibc 2.28 and later, for LONGCAT_ARCH (x86_64 or aarch64).
# packaging/wheels.sh sets the environment variables that c++ and ar beside this file read.
set(LONGCAT_ARCH "$ENV{LONGCAT_ARCH}" CACHE STRING "Architecture of the wheel: x86_64 or aarch64")
if(NOT LONGCAT_ARCH STREQUAL CMAKE_HOST_SYSTEM_PROCESSOR)
  set(CMAKE_SYSTEM_NAME Linux)
  set(CMAKE_SYSTEM_PROCESSOR ${LONGCAT_ARCH})
  # What CMake runs is the building Python, a program of this machine.
  set(CMAKE_CROSSCOMPILING_EMULATOR env)
endif()
set(CMAKE_CXX_COMPILER "${CMAKE_CURRENT_LIST_DIR}/c++")
set(CMAKE_CXX_COMPILER_TARGET ${LONGCAT_ARCH}-linux-gnu.2.28)
set(CMAKE_AR "${CMAKE_CURRENT_LIST_DIR}/ar")
set(CMAKE_RANLIB :)  # ar writes the index
set(CMAKE_STRIP "")  # that of this machine may not know the architecture, so the linker strips
set(CMAKE_MODULE_LINKER_FLAGS_INIT -s)
set(CMAKE_CXX_SCAN_FOR_MODULES OFF)
# Checks compile only: the first link of each kind would compile libc++ for a minute.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
