// A rank's part of a matrix, cut out of the form it is stored in.
#pragma once

#include <memory>
#include <string>

#include "model/shard.h"
#include "ops/weight.h"

namespace longcat {

// Rows and columns of `whole`, which is in host memory. Rows alone are a view of it; columns are copied, to `storage`.
// Throws Error, with the numbers of parts that do, where the format's blocks would be cut. `name`: for that message.
Weight slice_of(const Weight& whole, Range rows, Range cols, const std::string& name,
                std::unique_ptr<std::byte[]>& storage);

}  // namespace longcat
