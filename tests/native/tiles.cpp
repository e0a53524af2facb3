// Products in tiles, emulated, and the choice of the instruction set that has them.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "cpu/gemm/packed_matmul.h"
#include "cpu/gemm/tile_kernels.h"
#include "cpu/gemm/tile_matmul.h"
#include "cpu/gemm/tile_products.h"
#include "cpu/simd/assumed_isa.h"
#include "cpu/simd/dispatch.h"
#include "ops/packed.h"
#include "tests/native/arrays.h"
#include "tests/native/emulated_tiles.h"
#include "tests/native/native.h"
#include "tests/native/trapped_instructions.h"

namespace py = pybind11;

namespace longcat {

namespace {

using cpu::TileKernels;

// A copy of memory that ends where a page without access begins.
class Guarded {
 public:
  Guarded(const void* from, int64_t count) {
    const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE)), bytes = static_cast<size_t>(count);
    size_ = (bytes + page - 1) / page * page + page;
    memory_ = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    LC_CHECK(memory_ != MAP_FAILED);
    char* const end = static_cast<char*>(memory_) + size_ - page;
    data_ = end - bytes;
    std::memcpy(data_, from, bytes);
    LC_CHECK(::mprotect(end, page, PROT_NONE) == 0);
  }
  ~Guarded() { ::munmap(memory_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  const void* data() const { return data_; }

 private:
  void* memory_;
  char* data_;
  size_t size_;
};

const TileKernels& emulated_kernels() {
  using Products = cpu::TileProducts<EmulatedTiles>;
  static constexpr TileKernels kKernels{.rows = Products::rows, .groups = Products::groups, .pair = Products::pair};
  return kKernels;
}

// The kernels of amx_bf16, which are compiled for AVX512_BF16 besides; null where this machine lacks that.
const TileKernels* compiled_kernels() {
#if defined(__x86_64__) && defined(__linux__)
  const std::span<const Isa> here = isas_of_this_machine();
  if (std::find(here.begin(), here.end(), Isa::avx512_bf16) != here.end())
    return &cpu::table_of<TileKernels, Isa::amx_bf16>();
#endif
  return nullptr;
}

bool has_tiles() {
#if defined(__x86_64__)
  return isas_of_this_machine().back() == Isa::amx_bf16 && request_tiles() == 0;
#else
  return false;
#endif
}

void round_row(bf16* values, const float* x, int64_t n) {
  std::transform(x, x + n, values, to_bf16);
  std::fill(values + n, values + num_quant_blocks(n) * kQuantBlock, bf16{});
}

}  // namespace

void register_tiles(py::module_& testing) {
  // c + a b, as the emulated tdpbf16ps computes it. c: float32 [m, n], a: uint16 [m, 32], b: uint16 [32, n].
  testing.def(
      "tile_product",
      [](const Array<float>& c, const Array<uint16_t>& a, const Array<uint16_t>& b) {
        const int64_t m = c.shape(0), n = c.shape(1);
        uint16_t pairs[16][16][2] = {};
        for (int64_t k = 0; k < 32; ++k)
          for (int64_t j = 0; j < n; ++j) pairs[k / 2][j][k % 2] = b.at(k, j);
        Array<float> out({m, n});
        TileMachine machine;
        machine.configure(vec::tile_config(m, 4 * n));
        machine.load(0, c.data(), 4 * n);
        machine.load(4, a.data(), 64);
        machine.load(6, pairs, 64);
        machine.add_product(0, 4, 6);
        machine.store(0, out.mutable_data(), 4 * n);
        if (!machine.fault.empty()) throw Error(machine.fault);
        return out;
      },
      py::arg("c"), py::arg("a"), py::arg("b"));

  // x W^T for the rows `first` and later of x, or its rows row_idx, and for each range (first, count) of weight rows.
  // weight: uint16 [out, in], or uint8 packed as bf16_x8. Other outputs are -1, and so are 3 columns behind the last.
  // kernels: "emulated", or "compiled" for the machine code of amx_bf16, whose tile instructions are emulated where the
  // processor lacks them; None where it lacks others. Returns the outputs and the number of configurations.
  testing.def(
      "tile_linear",
      [](const Array<float>& x, const py::array& weight, int64_t out_features,
         const std::vector<std::pair<int64_t, int64_t>>& ranges, int64_t first,
         const std::optional<Array<int32_t>>& row_idx, bool paired,
         const std::string& kernels) -> std::optional<std::pair<Array<float>, int64_t>> {
        const bool emulated = kernels == "emulated";
        const TileKernels* const tiles = emulated ? &emulated_kernels() : compiled_kernels();
        if (!tiles) return std::nullopt;
        const int64_t in = x.shape(1), num_inputs = row_idx ? row_idx->shape(0) : x.shape(0) - first;
        const Guarded guarded(weight.data(), weight.nbytes());
        const Weight matrix{
            .format = weight.dtype().is(py::dtype::of<uint16_t>()) ? WeightFormat::bf16 : WeightFormat::bf16_x8,
            .out_features = out_features,
            .in_features = in,
            .data = guarded.data()};
        LC_CHECK(matrix.num_bytes() == weight.nbytes());
        ThreadPool pool(1);
        cpu::PackedKernels rounding{};
        rounding.round_row = round_row;
        cpu::QuantizedInputs inputs;
        inputs.round(pool, x.data(), in, x.shape(0), in, rounding);
        if (paired) inputs.pair(pool, x.shape(0), *tiles);
        const int64_t stride = out_features + 3;
        Array<float> out({num_inputs, stride});
        std::fill_n(out.mutable_data(), out.size(), -1.0f);

        TileMachine& machine = tile_machine();
        machine = {};
        std::optional<TrappedInstructions> traps;
        if (!emulated && !has_tiles()) traps.emplace();
        for (const auto& [row, count] : ranges)
          cpu::tile_matmul_block(matrix,
                                 {.out = out.mutable_data() + row,
                                  .out_stride = stride,
                                  .x = nullptr,
                                  .x_stride = in,
                                  .row_idx = row_idx ? row_idx->data() : nullptr,
                                  .num_inputs = num_inputs,
                                  .first_row = row,
                                  .num_rows = count,
                                  .quantized = &inputs,
                                  .quantized_first = first},
                                 *tiles);
        traps.reset();
        if (!machine.fault.empty()) throw Error("[tiles] " + machine.fault);
        if (machine.is_configured()) throw Error("[tiles] found configured tiles; expected released ones");
        return std::pair{out, machine.num_configured};
      },
      py::arg("x"), py::arg("weight"), py::arg("out_features"), py::arg("ranges"), py::arg("first") = 0,
      py::arg("row_idx") = py::none(), py::arg("paired") = false, py::arg("kernels") = "emulated");

  // From now on the CPU backend of this module runs amx_bf16, on emulated tiles where the processor has none.
  testing.def("assume_tiles", [] {
    assume_isa(Isa::amx_bf16);
    static const TrappedInstructions* const traps =
        has_tiles() ? nullptr : new TrappedInstructions;  // for the process's life
    return traps != nullptr;
  });
  testing.def("tile_counts", [] {
    const TileCounts counts = tile_counts();
    return std::tuple(counts.configured, counts.released, counts.faults);
  });

#if defined(__x86_64__)
  // The sets of a processor with these features.
  testing.def(
      "sets_of",
      [](unsigned ecx1, unsigned ebx7, unsigned ecx7, unsigned edx7, unsigned eax7_1, unsigned xcr0) {
        std::vector<std::string> names;
        for (const Isa isa :
             sets_of({.ecx1 = ecx1, .ebx7 = ebx7, .ecx7 = ecx7, .edx7 = edx7, .eax7_1 = eax7_1, .xcr0 = xcr0}))
          names.push_back(name_of(isa));
        return names;
      },
      py::arg("ecx1"), py::arg("ebx7"), py::arg("ecx7"), py::arg("edx7"), py::arg("eax7_1"), py::arg("xcr0"));
#endif
}

}  // namespace longcat
