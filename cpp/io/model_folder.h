// Checks that a checkpoint's path is a folder.
#pragma once

#include <filesystem>
#include <string_view>
#include <system_error>

#include "base/error.h"
#include "io/printable.h"

namespace longcat {

// Throws Error unless `folder` is a folder that can be listed. `area` opens the message ("[config]").
inline void require_model_folder(const std::filesystem::path& folder, std::string_view area) {
  std::error_code error;
  const auto status = std::filesystem::status(folder, error);
  const std::string name = printable_path(folder);
  if (folder.empty() || status.type() == std::filesystem::file_type::not_found)
    throw Error(str_cat(
        area, " ", folder.empty() ? "the empty path" : name,
        " does not exist: expected a local folder in the Hugging Face layout (`longcat pull NAME` downloads one)"));
  if (status.type() == std::filesystem::file_type::directory) {
    std::filesystem::directory_iterator(folder, error);
    if (!error) return;
  }
  if (error) throw Error(str_cat(area, " ", name, " cannot be read: ", error.message()));
  throw Error(str_cat(area, " ", name, " is a file: expected the folder that holds it, in the Hugging Face layout"));
}

}  // namespace longcat
