// Cuts a rank's part out of a matrix, in its stored format.
#pragma once

#include <memory>
#include <string>

#include "model/shard.h"
#include "ops/weight.h"

namespace longcat {

// Returns rows and columns of `whole`, which is in host memory. A range of rows is a view; a range of columns is copied
// to `storage`. Throws Error where the cut would split a block of the format; the message lists the possible numbers of
// parts. `name` is for that message.
Weight slice_of(const Weight& whole, Range rows, Range cols, const std::string& name,
                std::unique_ptr<std::byte[]>& storage);

}  // namespace longcat
