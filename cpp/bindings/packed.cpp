// Binding of the packed weight formats, for `longcat convert`.
#include "ops/packed.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/available_threads.h"
#include "base/thread_pool.h"
#include "bindings/bindings.h"
#include "cpu/gemm/pack.h"
#include "io/safetensors.h"
#include "model/expected_tensors.h"
#include "model/stored_values.h"
#include "ops/packed_scan.h"

namespace py = pybind11;

namespace longcat {

namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

template <class T>
using Bytes = py::array_t<T, py::array::c_style>;

// packed_stride() of a matrix that has columns: callers divide by it.
int64_t checked_stride(WeightFormat format, int64_t cols) {
  if (cols < 1) throw std::invalid_argument(str_cat("[packed] found ", cols, " columns; expected at least 1"));
  return packed_stride(format, cols);
}

py::array_t<uint8_t> empty_packed_array(WeightFormat format, int64_t rows, int64_t cols) {
  const int64_t stride = checked_stride(format, cols);
  return py::array_t<uint8_t>({packed_bytes(format, rows, cols) / stride, stride});
}

py::array_t<uint8_t> packed_array(int num_threads, WeightFormat format, int64_t rows, int64_t cols,
                                  const cpu::RowReader& read) {
  py::array_t<uint8_t> out = empty_packed_array(format, rows, cols);
  uint8_t* data = out.mutable_data();
  const GilRelease nogil;
  ThreadPool pool(num_threads);
  cpu::pack(pool, data, format, rows, cols, read);
  return out;
}

void check_shards(const Checkpoint& checkpoint) {
  for (const MappedFile& shard : checkpoint.shards()) shard.check();
}

// Returns {tensor: "matrix" or "table"} of the tensors that may be packed.
py::dict packable_tensors(const std::string& config_text) {
  py::dict uses;
  const ModelConfig config = parse_model_config(config_text, "config.json");
  std::vector<ExpectedTensor> tensors = expected_tensors(config);
  std::ranges::move(expected_mtp_tensors(config), std::back_inserter(tensors));
  for (const ExpectedTensor& tensor : tensors)
    if (tensor.use != TensorUse::values)
      uses[py::str(tensor.name)] = tensor.use == TensorUse::matrix ? "matrix" : "table";
  return uses;
}

// Packs rows of finite floats in the calling thread: callers pack parts in threads of their own. Returns the bytes, and
// of each eighth row the sums of squared errors and of squares.
py::tuple pack_values(const Floats& values, const std::string& name) {
  const WeightFormat format = packed_format(name);
  const int64_t rows = values.shape(0), cols = values.shape(1);
  const float* data = values.data();
  py::array_t<uint8_t> packed = packed_array(1, format, rows, cols, [&](int64_t row, float* out) {
    std::memcpy(out, data + row * cols, static_cast<size_t>(cols) * sizeof(float));
  });
  const Weight weight{.format = format, .out_features = rows, .in_features = cols, .data = packed.data()};
  double error = 0, norm = 0;
  {
    const GilRelease nogil;
    std::vector<float> row_values(static_cast<size_t>(cols));
    for (int64_t row = 0; row < rows; row += kPackedRows) {
      unpack_row(row_values.data(), weight, row);
      for (int64_t col = 0; col < cols; ++col) {
        const double value = data[row * cols + col], difference = row_values[static_cast<size_t>(col)] - value;
        error += difference * difference;
        norm += value * value;
      }
    }
  }
  return py::make_tuple(packed, error, norm);
}

}  // namespace

void register_packed(py::module_& module) {
  module.def("packable_tensors", &packable_tensors, py::arg("config_text"));
  module.def("pack_values", &pack_values, py::arg("values"), py::arg("format"));
  // Returns the shape of the U8 tensor that holds a matrix in a packed format.
  module.def(
      "packed_shape",
      [](const std::string& name, int64_t rows, int64_t cols) {
        const WeightFormat format = packed_format(name);
        const int64_t stride = checked_stride(format, cols);
        return py::make_tuple(packed_bytes(format, rows, cols) / stride, stride);
      },
      py::arg("format"), py::arg("rows"), py::arg("cols"));
  // Returns the first group or row of these that holds a NaN or an infinity, or -1.
  module.def(
      "scan_packed",
      [](const py::buffer& data, const std::string& name, int64_t cols) {
        const WeightFormat format = packed_format(name);
        const py::buffer_info info = data.request();
        const int64_t bytes = info.size * info.itemsize, stride = checked_stride(format, cols);
        if (info.ndim != 1 || info.strides[0] != info.itemsize || bytes % stride)
          throw std::invalid_argument(str_cat("[packed] found ", bytes, " bytes; expected a multiple of ", stride));
        const GilRelease nogil;
        return first_not_finite(static_cast<const uint8_t*>(info.ptr), bytes / stride, format, cols);
      },
      py::arg("data"), py::arg("format"), py::arg("cols"));
  // Returns a matrix as f32, whatever its stored format.
  module.def(
      "read_matrix",
      [](const Checkpoint& checkpoint, const std::string& name) {
        const StoredTensor* stored = checkpoint.find(name);
        if (!stored || stored->shape.size() != 2) throw std::invalid_argument(str_cat(name, " is no matrix here"));
        py::array_t<float> out({stored->shape[0], stored->shape[1]});
        for (int64_t row = 0; row < out.shape(0); ++row) read_stored_row(out.mutable_data(row), checkpoint, name, row);
        check_shards(checkpoint);
        return out;
      },
      py::arg("checkpoint"), py::arg("name"));
  module.def(
      "pack_tensor",
      [](const Checkpoint& checkpoint, const std::string& name, const std::string& format) {
        const StoredTensor* stored = checkpoint.find(name);
        if (!stored || stored->shape.size() != 2) throw std::invalid_argument(str_cat(name, " is no matrix here"));
        try {
          py::array_t<uint8_t> packed =
              packed_array(available_threads(), packed_format(format), stored->shape[0], stored->shape[1],
                           [&](int64_t row, float* out) { read_stored_row(out, checkpoint, name, row); });
          check_shards(checkpoint);
          return packed;
        } catch (const Error& error) {
          throw Error(str_cat("[convert] ", checkpoint.folder().string(), ": \"", name, "\", ", error.what(),
                              " (longcat verify lists such values)"));
        }
      },
      py::arg("checkpoint"), py::arg("name"), py::arg("format"));
  module.def(
      "search_int4_scales",
      [](const Floats& values) {
        py::array_t<float> scales(values.size() / kQuantBlock);
        cpu::search_int4_scales(scales.mutable_data(), values.data(), scales.size());
        return scales;
      },
      py::arg("values"));
  // Packs integers [rows, cols] and the bits of the scales of 32 columns each [rows, ceil(cols / 32)], as they are.
  module.def(
      "pack_grid",
      [](const Bytes<int8_t>& values, const Bytes<uint16_t>& scales, const std::string& name) {
        const WeightFormat format = packed_format(name);
        if (values.ndim() != 2 || scales.ndim() != 2 || scales.shape(0) != values.shape(0) ||
            scales.shape(1) != num_quant_blocks(values.shape(1)))
          throw std::invalid_argument(
              "[packed] found scales that do not fit the values; expected values [rows, cols] "
              "and scales [rows, ceil(cols / 32)]");
        const int64_t rows = values.shape(0), cols = values.shape(1);
        py::array_t<uint8_t> out = empty_packed_array(format, rows, cols);
        uint8_t* data = out.mutable_data();
        const GilRelease nogil;
        ThreadPool pool(1);
        cpu::pack_grid(pool, data, format, rows, cols, values.data(), scales.data());
        return out;
      },
      py::arg("values"), py::arg("scales"), py::arg("format"));
  // Returns a packed matrix as f32.
  module.def(
      "unpack",
      [](const Bytes<uint8_t>& packed, const std::string& name, int64_t rows, int64_t cols) {
        const Weight weight{
            .format = packed_format(name), .out_features = rows, .in_features = cols, .data = packed.data()};
        if (rows < 0 || cols < 1 || packed.nbytes() != weight.num_bytes())
          throw std::invalid_argument(str_cat("[packed] found ", packed.nbytes(), " bytes; expected ",
                                              weight.num_bytes(), " for [", rows, ", ", cols, "] in ", name));
        py::array_t<float> out({rows, cols});
        float* values = out.mutable_data();
        const GilRelease nogil;
        ThreadPool pool(available_threads());
        pool.parallel_for(rows, 64, [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) unpack_row(values + row * cols, weight, row);
        });
        return out;
      },
      py::arg("packed"), py::arg("format"), py::arg("rows"), py::arg("cols"));
  py::list names;
  for (const WeightFormat format : kAllWeightFormats)
    if (is_packed(format)) names.append(name_of(format));
  module.attr("PACKED_FORMATS") = py::tuple(names);
  module.attr("FORMAT_VERSION_KEY") = kFormatVersionKey;
  module.attr("FORMAT_VERSION") = kFormatVersion;
}

}  // namespace longcat
