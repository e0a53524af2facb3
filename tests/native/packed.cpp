// Packed weight formats without a file, for tests.
#include "ops/packed.h"

#include <algorithm>

#include "base/available_threads.h"
#include "bindings/bindings.h"
#include "cpu/gemm/pack.h"
#include "model/weight_slice.h"
#include "tests/native/arrays.h"
#include "tests/native/kernel_bits.h"
#include "tests/native/native.h"

namespace py = pybind11;

namespace longcat {

void register_packed_formats(py::module_& testing) {
  // (set, reference, kernel, values, differences) per row.
  testing.def("compare_instruction_sets", [] {
    std::vector<std::tuple<std::string, std::string, std::string, int64_t, int64_t>> rows;
    for (const KernelBits& row : compare_instruction_sets())
      rows.emplace_back(row.set, row.reference, row.kernel, row.values, row.differences);
    return rows;
  });
  testing.def(
      "pack_matrix",
      [](const Array<float>& matrix, const std::string& format) {
        const int64_t rows = matrix.shape(0), cols = matrix.shape(1);
        const float* values = matrix.data();
        const WeightFormat packed = packed_format(format);
        const int64_t stride = packed_stride(packed, cols);
        Array<uint8_t> out({packed_bytes(packed, rows, cols) / stride, stride});
        ThreadPool pool(available_threads());
        cpu::pack(pool, out.mutable_data(), packed, rows, cols,
                  [&](int64_t row, float* to) { std::copy_n(values + row * cols, cols, to); });
        return out;
      },
      py::arg("matrix"), py::arg("format"));
  // Returns a range of rows and columns of a packed matrix, still packed.
  testing.def(
      "slice_packed",
      [](const py::array_t<uint8_t, py::array::c_style>& packed, const std::string& name, int64_t rows, int64_t cols,
         std::pair<int64_t, int64_t> row_range, std::pair<int64_t, int64_t> col_range) {
        const WeightFormat format = packed_format(name);
        std::unique_ptr<std::byte[]> storage;
        const Weight part =
            slice_of({.format = format, .out_features = rows, .in_features = cols, .data = packed.data()},
                     {row_range.first, row_range.second}, {col_range.first, col_range.second}, "matrix", storage);
        const int64_t stride = packed_stride(format, part.in_features);
        py::array_t<uint8_t> out({part.num_bytes() / stride, stride});
        std::copy_n(static_cast<const uint8_t*>(part.data), part.num_bytes(), out.mutable_data());
        return out;
      },
      py::arg("packed"), py::arg("format"), py::arg("rows"), py::arg("cols"), py::arg("row_range"),
      py::arg("col_range"));
}

}  // namespace longcat
