// Runs the tile instructions of compiled kernels on a processor without them.
#include <atomic>
#include <csignal>
#include <cstring>

#include "base/error.h"
#include "tests/native/emulated_tiles.h"

#if defined(__x86_64__) && defined(__linux__)
#include <ucontext.h>
#endif

namespace longcat {

#if defined(__x86_64__) && defined(__linux__)

namespace {

struct sigaction before;
std::atomic<bool> traps = false;

// An instruction with the prefix VEX of three bytes, without displacement.
struct Instruction {
  uint8_t prefix;        // 0: none, 1: 66, 2: F3, 3: F2
  uint8_t opcode;        // of the map 0F38
  bool in_memory;        // the operand rm
  int reg, rm, other;    // registers; `other` is that of VEX
  bool has_index;        // rm, in memory, is base + index
  int base, index, log;  // of it
  int length;
};

bool decode(Instruction& out, const uint8_t* code) {
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0) return false;  // map 0F38, W 0, 128 bits
  const bool r = !(code[1] & 0x80), x = !(code[1] & 0x40), b = !(code[1] & 0x20);
  const uint8_t modrm = code[4], mode = modrm >> 6;
  out = {.prefix = static_cast<uint8_t>(code[2] & 3),
         .opcode = code[3],
         .in_memory = mode != 3,
         .reg = (modrm >> 3 & 7) + 8 * r,
         .rm = (modrm & 7) + 8 * b,
         .other = ~(code[2] >> 3) & 15,
         .has_index = false,
         .base = (modrm & 7) + 8 * b,
         .index = 0,
         .log = 0,
         .length = 5};
  if (!out.in_memory) return true;
  if ((modrm & 7) == 4) {
    const uint8_t sib = code[5];
    out.base = (sib & 7) + 8 * b;
    out.index = (sib >> 3 & 7) + 8 * x;
    out.log = sib >> 6;
    out.has_index = out.index != 4;
    out.length = 6;
  }
  if (mode == 0) return (out.base & 7) != 5;  // otherwise relative to the program counter, or without a base
  out.length += mode == 1 ? 1 : 4;
  return true;
}

// The general registers in the order of their numbers.
int64_t value_of(const ucontext_t& context, int number) {
  static constexpr int kNames[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                     REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return context.uc_mcontext.gregs[kNames[number]];
}

bool run(ucontext_t& context) {
  const uint8_t* const code = reinterpret_cast<const uint8_t*>(context.uc_mcontext.gregs[REG_RIP]);
  Instruction in;
  if (!decode(in, code)) return false;
  int64_t address = 0, stride = 0;
  if (in.in_memory) {
    address = value_of(context, in.base);
    stride = in.has_index ? value_of(context, in.index) << in.log : 0;
    int32_t displacement = 0;
    if (code[4] >> 6 == 1) displacement = static_cast<int8_t>(code[in.length - 1]);
    if (code[4] >> 6 == 2) std::memcpy(&displacement, code + in.length - 4, 4);
    address += displacement;
  }
  void* const memory = reinterpret_cast<void*>(address);
  TileMachine& machine = tile_machine();
  const auto is = [&](uint8_t prefix, uint8_t opcode, bool in_memory) {
    return in.prefix == prefix && in.opcode == opcode && in.in_memory == in_memory;
  };
  if (is(0, 0x49, true) && in.reg == 0) {
    vec::TileConfig config;
    std::memcpy(&config, reinterpret_cast<const char*>(address + stride), sizeof(config));
    machine.configure(config);
  } else if (is(0, 0x49, false) && in.reg == 0 && in.rm == 0) {
    machine.release();
  } else if (is(3, 0x49, false) && in.rm == 0) {
    machine.zero(in.reg);
  } else if (is(3, 0x4b, true) && in.has_index) {
    machine.load(in.reg, memory, stride);
  } else if (is(2, 0x4b, true) && in.has_index) {
    machine.store(in.reg, memory, stride);
  } else if (is(2, 0x5c, false)) {
    machine.add_product(in.reg, in.rm, in.other);
  } else {
    return false;
  }
  context.uc_mcontext.gregs[REG_RIP] += in.length;
  return true;
}

void handle(int, siginfo_t*, void* context) {
  if (!traps || !run(*static_cast<ucontext_t*>(context))) ::sigaction(SIGILL, &before, nullptr);  // and fault again
}

}  // namespace

TrappedTiles::TrappedTiles() {
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  LC_CHECK(::sigaction(SIGILL, &action, &before) == 0);
  traps = true;
}

TrappedTiles::~TrappedTiles() {
  traps = false;
  ::sigaction(SIGILL, &before, nullptr);
}

#else

TrappedTiles::TrappedTiles() { throw Error("[tiles] traps need Linux on x86-64"); }
TrappedTiles::~TrappedTiles() = default;

#endif

}  // namespace longcat
