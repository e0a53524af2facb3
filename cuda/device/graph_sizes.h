// The numbers of decode rows for which graphs are recorded. A step is padded to the next such number.
#pragma once

#include <cstdint>

namespace longcat {

// 1, 2, 4, 8, then multiples of 8: at most 7 padded rows.
constexpr int64_t graph_rows(int64_t rows) {
  if (rows <= 1) return 1;
  if (rows <= 2) return 2;
  if (rows <= 4) return 4;
  return (rows + 7) / 8 * 8;
}

}  // namespace longcat
