#include "tests/native/trapped_instructions.h"

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

// An instruction of the map 0F38 with the prefix VEX of three bytes.
struct Instruction {
  uint8_t prefix;  // 0: none, 1: 66, 2: F3, 3: F2
  uint8_t opcode;
  bool is_wide;        // 256 bits
  bool in_memory;      // the operand rm
  int reg, rm, other;  // registers; `other` is that of VEX
  bool has_base, has_index;
  int base, index, log;  // rm, in memory, is base + (index << log) + displacement
  int32_t displacement;
  bool from_end;  // of the instruction, instead of a base
  int length;
};

bool decode(Instruction& out, const uint8_t* code) {
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x80) != 0) return false;  // map 0F38, W 0
  const bool r = !(code[1] & 0x80), x = !(code[1] & 0x40), b = !(code[1] & 0x20);
  const uint8_t modrm = code[4], mode = modrm >> 6;
  out = {};
  out.prefix = static_cast<uint8_t>(code[2] & 3);
  out.opcode = code[3];
  out.is_wide = code[2] & 4;
  out.in_memory = mode != 3;
  out.reg = (modrm >> 3 & 7) + 8 * r;
  out.rm = out.base = (modrm & 7) + 8 * b;
  out.other = ~(code[2] >> 3) & 15;
  out.length = 5;
  if (!out.in_memory) return true;
  const bool has_sib = (modrm & 7) == 4;
  if (has_sib) {
    const uint8_t sib = code[5];
    out.base = (sib & 7) + 8 * b;
    out.index = (sib >> 3 & 7) + 8 * x;
    out.log = sib >> 6;
    out.has_index = out.index != 4;
    out.length = 6;
  }
  const bool no_base = mode == 0 && (out.base & 7) == 5;
  out.has_base = !no_base;
  out.from_end = no_base && !has_sib;
  if (mode == 1) {
    out.displacement = static_cast<int8_t>(code[out.length]);
    out.length += 1;
  } else if (mode == 2 || no_base) {
    std::memcpy(&out.displacement, code + out.length, 4);
    out.length += 4;
  }
  return true;
}

// The general registers in the order of their numbers.
int64_t value_of(const ucontext_t& context, int number) {
  static constexpr int kNames[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                     REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return context.uc_mcontext.gregs[kNames[number]];
}

// The vector registers as the kernel saved them: the lower halves, and where XSAVE's standard format has the upper
// ones.
class Vectors {
 public:
  explicit Vectors(ucontext_t& context) : saved_(reinterpret_cast<char*>(context.uc_mcontext.fpregs)) {
    uint64_t present;  // XSTATE_BV
    std::memcpy(&present, saved_ + 512, sizeof(present));
    present |= 6;
    std::memcpy(saved_ + 512, &present, sizeof(present));
  }
  void read(void* to, int number) const {
    std::memcpy(to, saved_ + 160 + 16 * number, 16);
    std::memcpy(static_cast<char*>(to) + 16, saved_ + 576 + 16 * number, 16);
  }
  void write(int number, const void* from) {
    std::memcpy(saved_ + 160 + 16 * number, from, 16);
    std::memcpy(saved_ + 576 + 16 * number, static_cast<const char*>(from) + 16, 16);
  }

 private:
  char* saved_;
};

// VPDPBUSD: each lane of `sum` adds the products of four unsigned and four signed bytes. All sums wrap.
void dot_bytes(uint32_t* sum, const void* first, const void* second) {
  uint8_t a[32];
  int8_t b[32];
  std::memcpy(a, first, 32);
  std::memcpy(b, second, 32);
  for (int i = 0; i < 32; ++i) sum[i / 4] += static_cast<uint32_t>(a[i] * b[i]);
}

// VPDPWSSD: the same of two signed 16-bit numbers.
void dot_words(uint32_t* sum, const void* first, const void* second) {
  int16_t a[16], b[16];
  std::memcpy(a, first, 32);
  std::memcpy(b, second, 32);
  for (int i = 0; i < 16; ++i) sum[i / 2] += static_cast<uint32_t>(a[i] * b[i]);
}

bool run_vectors(ucontext_t& context, const Instruction& in, const void* memory) {
  if (in.prefix != 1 || !in.is_wide || (in.opcode != 0x50 && in.opcode != 0x52)) return false;
  Vectors vectors(context);
  uint32_t sum[8];
  uint8_t first[32], second[32];
  vectors.read(sum, in.reg);
  vectors.read(first, in.other);
  if (in.in_memory) {
    std::memcpy(second, memory, 32);
  } else {
    vectors.read(second, in.rm);
  }
  (in.opcode == 0x50 ? dot_bytes : dot_words)(sum, first, second);
  vectors.write(in.reg, sum);
  return true;
}

// `address` and `stride` are the parts of a tile's address.
bool run_tiles(const Instruction& in, int64_t address, int64_t stride) {
  void* const memory = reinterpret_cast<void*>(address);
  TileMachine& machine = tile_machine();
  const auto is = [&](uint8_t prefix, uint8_t opcode, bool in_memory) {
    return !in.is_wide && in.prefix == prefix && in.opcode == opcode && in.in_memory == in_memory;
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
  return true;
}

bool run(ucontext_t& context) {
  greg_t& counter = context.uc_mcontext.gregs[REG_RIP];
  Instruction in;
  if (!decode(in, reinterpret_cast<const uint8_t*>(counter))) return false;
  int64_t address = in.displacement;
  if (in.from_end) address += counter + in.length;
  if (in.in_memory && in.has_base) address += value_of(context, in.base);
  const int64_t stride = in.has_index ? value_of(context, in.index) << in.log : 0;
  if (!run_vectors(context, in, reinterpret_cast<const void*>(address + stride)) && !run_tiles(in, address, stride))
    return false;
  counter += in.length;
  return true;
}

void handle(int, siginfo_t*, void* context) {
  if (!traps || !run(*static_cast<ucontext_t*>(context))) ::sigaction(SIGILL, &before, nullptr);  // and fault again
}

}  // namespace

TrappedInstructions::TrappedInstructions() {
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  LC_CHECK(::sigaction(SIGILL, &action, &before) == 0);
  traps = true;
}

TrappedInstructions::~TrappedInstructions() {
  traps = false;
  ::sigaction(SIGILL, &before, nullptr);
}

#else

TrappedInstructions::TrappedInstructions() { throw Error("[tests] traps need Linux on x86-64"); }
TrappedInstructions::~TrappedInstructions() = default;

#endif

}  // namespace longcat
