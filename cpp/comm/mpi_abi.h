// What differs between the binary interfaces of MPI libraries, as far as ranks need it. longcat is built without mpi.h;
// tests/parallel/test_mpi_abi.py compares this file with the header of each MPI library at hand.
#pragma once

namespace longcat {

// Handle: the type of MPI_Comm, MPI_Datatype, MPI_Errhandler and MPI_Request.
template <class Handle>
struct MpiConstants {
  Handle comm_world, byte, errors_return;
  void* status_ignore;
  int thread_multiple;
};

constexpr int kMpiMaxText = 8192;  // [bytes] the longest text that a library writes

// MPICH, and by the same ABI Intel MPI and MVAPICH.
inline MpiConstants<int> mpich_constants() {
  return {0x44000000, 0x4c00010d, 0x54000001, reinterpret_cast<void*>(1), 3};
}

// The standard ABI (MPI 5.0, chapter 20): libmpi_abi.so.
inline MpiConstants<void*> standard_mpi_constants() {
  const auto handle = [](long value) { return reinterpret_cast<void*>(value); };
  return {handle(0x101), handle(0x247), handle(0x143), nullptr, 4096};
}

// Open MPI, whose handles are addresses of its variables. address: of a symbol's name.
template <class Address>
MpiConstants<void*> open_mpi_constants(Address address) {
  return {address("ompi_mpi_comm_world"), address("ompi_mpi_byte"), address("ompi_mpi_errors_return"), nullptr, 3};
}

}  // namespace longcat
