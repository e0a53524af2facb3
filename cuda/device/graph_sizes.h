// Which numbers of decode rows are recorded as graphs: a step is padded to the next one.
#pragma once

#include <cstdint>

namespace longcat {

// 1, 2, 4, 8, 16, 24, 32 and so on in steps of 8: at most 7 rows are wasted.
constexpr int64_t graph_rows(int64_t rows) {
  if (rows <= 1) return 1;
  if (rows <= 2) return 2;
  if (rows <= 4) return 4;
  return (rows + 7) / 8 * 8;
}

}  // namespace longcat
