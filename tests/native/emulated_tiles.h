// The tile registers of a processor with AMX-BF16, emulated. The arithmetic is that of the pseudo-code of TDPBF16PS in
// Intel's Software Developer's Manual.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/simd/tiles.h"

namespace longcat {

// The registers of one thread. Each function is an instruction, and records in `fault` why a processor would refuse it.
class TileMachine {
 public:
  void configure(const vec::TileConfig& config);
  void release();
  void zero(int tile);
  void load(int tile, const void* from, int64_t stride);
  void store(int tile, void* to, int64_t stride);
  void add_product(int c, int a, int b);

  bool is_configured() const { return configured_; }

  std::string fault;  // the first one
  int64_t num_configured = 0, num_products = 0;

 private:
  void clear();
  bool has(int tile, const char* instruction);
  void refuse(const std::string& why);

  bool configured_ = false;
  int64_t rows_[8] = {}, row_bytes_[8] = {};
  uint8_t bytes_[8][16][64] = {};
};

// The machine of this thread.
TileMachine& tile_machine();

// Those of all threads: configurations, releases, and instructions that a processor would refuse.
struct TileCounts {
  int64_t configured, released, faults;
};
TileCounts tile_counts();

// vec::Tiles on it.
struct EmulatedTiles {
  static void configure(const vec::TileConfig& config) { tile_machine().configure(config); }
  static void release() { tile_machine().release(); }
  template <int t>
  static void zero() {
    tile_machine().zero(t);
  }
  template <int t>
  static void load(const void* from, int64_t stride) {
    tile_machine().load(t, from, stride);
  }
  template <int t>
  static void store(void* to, int64_t stride) {
    tile_machine().store(t, to, stride);
  }
  template <int c, int a, int b>
  static void add_product() {
    tile_machine().add_product(c, a, b);
  }
};

}  // namespace longcat
