// The number of members of an aggregate, for checks that a list of them is whole.
#pragma once

#include <cstddef>

namespace longcat {

namespace internal {

struct AnyMember {
  template <class T>
  operator T() const;
};

}  // namespace internal

template <class Aggregate, class... Members>
consteval size_t num_members() {
  if constexpr (requires { Aggregate{Members{}..., internal::AnyMember{}}; }) {
    return num_members<Aggregate, Members..., internal::AnyMember>();
  } else {
    return sizeof...(Members);
  }
}

}  // namespace longcat
