// A view of memory that another object owns: pointer, dtype, shape, strides. It is small and is passed by value.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/dtype.h"
#include "base/error.h"

namespace longcat {

class Tensor {
 public:
  static constexpr int kMaxDims = 4;

  Tensor() = default;

  // Contiguous, row-major.
  Tensor(void* data, DType dtype, std::initializer_list<int64_t> shape) : data_(data), dtype_(dtype) {
    LC_CHECK(shape.size() <= kMaxDims);
    for (int64_t extent : shape) shape_[ndim_++] = extent;
    int64_t stride = 1;
    for (int d = ndim_ - 1; d >= 0; --d) {
      stride_[d] = stride;
      stride *= shape_[d];
    }
  }

  bool empty() const { return data_ == nullptr; }
  DType dtype() const { return dtype_; }
  int ndim() const { return ndim_; }
  int64_t size(int dim) const { return shape_[dim]; }
  int64_t stride(int dim) const { return stride_[dim]; }  // [elements]

  int64_t numel() const {
    int64_t count = 1;
    for (int d = 0; d < ndim_; ++d) count *= shape_[d];
    return count;
  }
  int64_t num_bytes() const { return numel() * size_of(dtype_); }

  bool is_contiguous() const {
    int64_t stride = 1;
    for (int d = ndim_ - 1; d >= 0; --d) {
      if (shape_[d] != 1 && stride_[d] != stride) return false;
      stride *= shape_[d];
    }
    return true;
  }

  void* raw() const { return data_; }

  template <class T>
  T* data() const {
    return static_cast<T*>(data_);
  }

  // First element of row `i` of dimension 0.
  template <class T>
  T* row(int64_t i) const {
    return data<T>() + i * stride_[0];
  }

  // Elements [begin, end) of dimension `dim`, as a view of the same memory.
  Tensor slice(int dim, int64_t begin, int64_t end) const {
    LC_CHECK(dim < ndim_ && 0 <= begin && begin <= end && end <= shape_[dim], "slice ", begin, ":", end, " of ",
             shape_string());
    Tensor view = *this;
    view.data_ = static_cast<char*>(data_) + begin * stride_[dim] * size_of(dtype_);
    view.shape_[dim] = end - begin;
    return view;
  }

  // Entry `i` of dimension `dim`, as a view of the same memory without that dimension.
  Tensor index(int dim, int64_t i) const {
    Tensor view = slice(dim, i, i + 1);
    for (int d = dim; d + 1 < ndim_; ++d) {
      view.shape_[d] = view.shape_[d + 1];
      view.stride_[d] = view.stride_[d + 1];
    }
    --view.ndim_;
    return view;
  }

  // The first `count` rows.
  Tensor first(int64_t count) const { return slice(0, 0, count); }

  // The same contiguous memory with another shape.
  Tensor reshape(std::initializer_list<int64_t> shape) const {
    LC_CHECK(is_contiguous());
    Tensor view(data_, dtype_, shape);
    LC_CHECK(view.numel() == numel(), shape_string(), " as ", view.shape_string());
    return view;
  }

  std::string shape_string() const {
    std::string text = "[";
    for (int d = 0; d < ndim_; ++d) {
      if (d > 0) text += ", ";
      text += std::to_string(shape_[d]);
    }
    return text + "]";
  }

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::f32;
  int ndim_ = 0;
  std::array<int64_t, kMaxDims> shape_{};
  std::array<int64_t, kMaxDims> stride_{};
};

}  // namespace longcat
