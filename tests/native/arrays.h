// Makes tensors and weights in host memory of NumPy arrays, which must outlive them.
#pragma once

#include "bindings/bindings.h"
#include "ops/weight.h"

namespace longcat {

template <class T>
using Array = pybind11::array_t<T, pybind11::array::c_style | pybind11::array::forcecast>;

inline Tensor view(const pybind11::array& array, DType dtype) {
  void* data = const_cast<void*>(array.data());
  switch (array.ndim()) {
    case 1:
      return Tensor(data, dtype, {array.shape(0)});
    case 2:
      return Tensor(data, dtype, {array.shape(0), array.shape(1)});
    case 3:
      return Tensor(data, dtype, {array.shape(0), array.shape(1), array.shape(2)});
    default:
      throw std::invalid_argument("testing: arrays have 1 to 3 dimensions");
  }
}
inline Tensor f32(const pybind11::array& array) { return view(array, DType::f32); }
inline Tensor i32(const pybind11::array& array) { return view(array, DType::i32); }

// Makes a Weight of a matrix: float32 [out, in], uint16 (bf16 bits) [out, in], or uint8 (e4m3) with float32 scales.
inline Weight as_weight(const pybind11::array& array, const pybind11::object& scales = pybind11::none()) {
  Weight weight{.out_features = array.shape(0), .in_features = array.shape(1), .data = array.data()};
  if (array.dtype().is(pybind11::dtype::of<float>())) return weight;
  if (array.dtype().is(pybind11::dtype::of<uint16_t>())) {
    weight.format = WeightFormat::bf16;
  } else if (array.dtype().is(pybind11::dtype::of<uint8_t>())) {
    weight.format = WeightFormat::fp8_block;
    weight.scales = scales.cast<Array<float>>().data();
  } else {
    throw std::invalid_argument("testing: weights are float32, uint16 or uint8");
  }
  return weight;
}

}  // namespace longcat
