# cmake -DNM=nm -DOBJECTS=a.o;b.o -P check_kernels.cmake: fails where a kernel file emits a function that the linker may
# share with other files (cpp/cpu/simd/dispatch.h).
execute_process(COMMAND "${NM}" -C --defined-only ${OBJECTS} OUTPUT_VARIABLE _symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[0-9a-f]+ [WVu] [^\n]*" _shared "${_symbols}")
list(FILTER _shared EXCLUDE REGEX "DW\\.ref\\.")  # of TSan's unwinding: a pointer, no code
if(_shared)
  list(JOIN _shared "\n  " _shared)
  message(FATAL_ERROR "kernel files emit functions that other files may use too; make them LC_INLINE, or call none:\n  ${_shared}")
endif()
