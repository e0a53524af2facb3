// The emulator of tensor-core kernels: small kernels, sound and broken.
#include "cuda/emulation/emulated_device.h"
#include "cuda/emulation/simt_emulator.h"
#include "cuda/kernels/router_picks.h"
#include "cuda/kernels/simt_launch.h"
#include "emulator_kernels.h"
#include "native.h"

namespace longcat {

namespace {

namespace py = pybind11;
using namespace emulation;
using namespace emulator_kernels;

constexpr int64_t kBlocks = 3;

template <class Kernel>
py::dict emulate(bool broken, uint64_t seed, bool checks) {
  SimtEmulator gpu({.seed = seed, .checks = checks});
  constexpr int64_t kCount = kBlocks * Kernel::kThreads;
  std::vector<uint32_t> x(kCount);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint32_t>(7 * i);
  Kernel kernel;
  kernel.x = gpu.input(x);
  kernel.y = gpu.output<uint32_t>(kCount);
  kernel.counter = gpu.buffer(std::vector<uint32_t>(4));
  kernel.broken = broken;
  if constexpr (std::is_same_v<Kernel, Dependent> || std::is_same_v<Kernel, DependentEnd>) {
    TwoWriters first;
    static_cast<Base&>(first) = kernel;
    first.broken = false;
    gpu.launch(kBlocks, first);
    gpu.launch(kBlocks, kernel, true);
  } else if constexpr (std::is_same_v<Kernel, PeerFlag> || std::is_same_v<Kernel, PeerGrids>) {
    std::vector<std::vector<SimtEmulator::Grid<Kernel>>> ranks(kBlocks);
    for (kernel.rank = 0; kernel.rank < kBlocks; ++kernel.rank) {
      auto& grids = ranks[static_cast<size_t>(kernel.rank)];
      if constexpr (std::is_same_v<Kernel, PeerGrids>) {
        for (kernel.grid = 0; kernel.grid < 2; ++kernel.grid) grids.push_back({1, kernel});
      } else {
        grids.push_back({1, kernel});
      }
    }
    gpu.launch_on_ranks(ranks);
  } else {
    gpu.launch(kBlocks, kernel);
  }
  const std::vector<uint32_t> y = gpu.read(kernel.y, kCount);
  bool right = true;
  for (size_t i = 0; i < x.size(); ++i) right &= y[i] == x[i] + 1;
  py::dict counts;
  for (int kind = 0; kind < kFindingKinds; ++kind)
    if (const int64_t count = gpu.findings().count(static_cast<Finding>(kind)))
      counts[name_of(static_cast<Finding>(kind))] = count;
  py::dict result;
  result["right"] = right;
  result["counts"] = counts;
  result["texts"] = gpu.findings().texts();
  result["conflicts"] = gpu.bank_conflicts().total();
  return result;
}

using Emulate = py::dict (*)(bool, uint64_t, bool);
const std::map<std::string, Emulate> kKernels = {
    {"bank conflict", emulate<BankConflict>},
    {"block barrier", emulate<BlockBarrier>},
    {"bulk bytes", emulate<BulkBytes>},
    {"bulk read", emulate<BulkRead>},
    {"bulk ring", emulate<BulkRing>},
    {"copy arrival", emulate<CopyArrival>},
    {"copy groups", emulate<CopyGroups>},
    {"deadlock", emulate<Deadlock>},
    {"dependent end", emulate<DependentEnd>},
    {"dependent launch", emulate<Dependent>},
    {"diverged", emulate<Diverged>},
    {"exchanges", emulate<Exchanges>},
    {"forgotten copy", emulate<ForgottenCopy>},
    {"global alignment", emulate<GlobalAlignment>},
    {"global bounds", emulate<GlobalBounds>},
    {"grid barrier", emulate<GridBarrier>},
    {"input written", emulate<InputWritten>},
    {"last block", emulate<LastBlock>},
    {"named barrier", emulate<NamedBarrier>},
    {"overwrite", emulate<Overwrite>},
    {"peer flag", emulate<PeerFlag>},
    {"peer grids", emulate<PeerGrids>},
    {"shared alignment", emulate<SharedAlignment>},
    {"shared bounds", emulate<SharedBounds>},
    {"two writers", emulate<TwoWriters>},
    {"uninitialised", emulate<Uninitialised>},
    {"warp barrier", emulate<WarpBarrier>},
};

// A kernel on the emulated device, as the product launches it: y of 3 blocks for x = 0, 1, ...
std::vector<uint32_t> launch_on_device(bool reversed, bool broken) {
  constexpr int64_t kCount = kBlocks * BulkRead::kThreads, kBytes = kCount * 4;
  EmulatedDevice device(1 << 20, false, reversed);
  std::vector<uint32_t> values(kCount);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint32_t>(i);
  void* const x = device.allocate(kBytes);
  void* const y = device.allocate(kBytes);
  device.copy_from_host(x, values.data(), kBytes);
  BulkBytes kernel;
  kernel.x = static_cast<const uint32_t*>(x);
  kernel.y = static_cast<uint32_t*>(y);
  kernel.broken = broken;
  simt::launch(device, kBlocks, kernel);
  device.copy_to_host(values.data(), y, kBytes);
  device.free(x, kBytes);
  device.free(y, kBytes);
  return values;
}

// Must not run for more tokens than a mask has bits.
void launch_router_picks(int64_t num_tokens) {
  EmulatedDevice device(1 << 20, false, false);
  simt::launch(device, num_tokens, gpu::RouterPicks{});
}

// a [16, 16], b [8, 16], c [16, 8]; bf16 as their bits.
py::array_t<float> product(py::array_t<uint16_t> a, py::array_t<uint16_t> b, py::array_t<float> c, bool hopper) {
  const auto bf16s = [](py::array_t<uint16_t> bits) {
    std::vector<bf16> values;
    for (py::ssize_t i = 0; i < bits.size(); ++i) values.push_back({bits.data()[i]});
    return values;
  };
  SimtEmulator gpu({.arithmetic = hopper ? Arithmetic::hopper : Arithmetic::plain});
  const Product kernel{gpu.input(bf16s(a)), gpu.input(bf16s(b)),
                       gpu.input(std::vector<float>(c.data(), c.data() + c.size())), gpu.output<float>(128)};
  gpu.launch(1, kernel);
  LC_CHECK(gpu.findings().total() == 0);
  const std::vector<float> d = gpu.read(kernel.d, 128);
  return py::array_t<float>({16, 8}, d.data());
}

}  // namespace

void register_gpu_emulator(py::module_& testing) {
  testing.def("emulator_kernels", [] {
    std::vector<std::string> names;
    for (const auto& [name, run] : kKernels) names.push_back(name);
    return names;
  });
  testing.def(
      "emulate",
      [](const std::string& name, bool broken, uint64_t seed, bool checks) {
        return kKernels.at(name)(broken, seed, checks);
      },
      py::arg("name"), py::arg("broken"), py::arg("seed") = 1, py::arg("checks") = true);
  testing.def("launch_on_emulated_device", launch_on_device, py::arg("reversed"), py::arg("broken") = false);
  testing.def("launch_router_picks", launch_router_picks);
  testing.def("emulated_product", product, py::arg("a"), py::arg("b"), py::arg("c"), py::arg("hopper"));
}

}  // namespace longcat
