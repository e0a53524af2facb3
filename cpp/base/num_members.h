// Counts the members of an aggregate. With it a static_assert shows that a list of the members is complete.
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
