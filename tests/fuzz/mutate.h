// Structure-aware damage: mutations that know JSON's tokens reach deeper than flipped bytes.
#pragma once

#include <string>
#include <vector>

#include "seeds.h"

namespace longcat::fuzz {

// One random change of `seed`; `donors` give text to splice in.
void mutate(Seed& seed, const std::vector<Seed>& donors, Random& random);

}  // namespace longcat::fuzz
