// Runs kernels that are compiled for instructions that the processor lacks.
#pragma once

namespace longcat {

// While it lives, tile instructions of a thread run on its tile_machine(), and those of AVX-VNNI on its registers. A
// processor without them raises SIGILL at each, and a handler decodes it. One at a time in a process. Linux on x86-64
// only.
class TrappedInstructions {
 public:
  TrappedInstructions();
  ~TrappedInstructions();
  TrappedInstructions(const TrappedInstructions&) = delete;
  TrappedInstructions& operator=(const TrappedInstructions&) = delete;
};

}  // namespace longcat
